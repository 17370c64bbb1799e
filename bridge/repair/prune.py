"""Delete from the outbox what every stream has applied and nobody needs any longer.

docs/guarantees.md, "Pruning", says what may go:

- a row that the floor of every registered stream shows, older than the retention, and no stream's witness;
- a row with an idempotency key stays 35 days at least, without its payload once the retention is over; one whose
  key ends as outbox.period_key's for a year does (`:2026`), until that year is over everywhere.

A batch walks the index on (xid, seq) from a mark, so that neither deleted nor kept rows are read again and
again; once a day the walk begins at the first row, for rows whose time came later than their neighbours'.
Deleted rows can be vacuumed only when no snapshot is older than their deletion: pruning stops while one is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from psycopg import Connection, Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row

from bridge.failpoints import hit
from bridge.postgres.origin import is_here
from bridge.postgres.versions import refuse_newer
from bridge.protocol.events import Snapshot, intersection, parse_snapshot, union

KEY_MEMORY = timedelta(days=35)
"""The minimum time that an idempotency key is remembered."""

_FULL_WALK_EVERY = timedelta(days=1)
_OUTSTANDING = 20  # batches whose dead rows may wait for a snapshot older than them

# The first 48 bits of a version 7 id are its milliseconds: the row's true age where occurred_at was given.
_PAGE = """
with page as materialized (
    select place, id, xid, seq, keyed, occurred_at < now() - %(age)s as old, unemptied,
           greatest(occurred_at, made_at) < now() - %(memory)s and not for_this_year as forgotten,
           pg_visible_in_snapshot(xid, %(floor)s::pg_snapshot) as applied
    from (
        select ctid as place, id, xid, seq, occurred_at, idempotency_key is not null as keyed,
               coalesce(right(idempotency_key, 5) in (
                   to_char(now() at time zone 'UTC' - interval '1 day', '":"YYYY'),
                   to_char(now() at time zone 'UTC' + interval '1 day', '":"YYYY')), false) as for_this_year,
               idempotency_key is not null
                   and headers is distinct from '{"outbox.pruned": true}' as unemptied,
               case when substr(id::text, 15, 1) = '7' then
                   to_timestamp(('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000.0)
               end as made_at
        from outbox.event
        where (xid, seq) > (%(xid)s::xid8, %(seq)s::bigint) and xid < %(xmax)s::xid8
        order by xid, seq limit %(batch)s
    ) as event
), ready as (
    select * from page
    where old and applied and id::text <> all(%(witnesses)s::text[])
), summary as (
    select (select count(*) from page) as rows,
           (select count(*) from page where old) as old,
           (select xid::text from page order by xid desc, seq desc limit 1) as last_xid,
           (select seq from page order by xid desc, seq desc limit 1) as last_seq,
           (select xid::text from page where not (old and applied) order by xid, seq limit 1) as waiting_xid,
           (select xid::text from ready order by xid desc limit 1) as greatest_xid
)
"""
_REMOVE = (
    _PAGE
    + """, deleted as (
    delete from outbox.event
    where ctid = any(array(select place from ready where not keyed or forgotten)) returning 1
), emptied as (
    update outbox.event set payload = '{}', headers = '{"outbox.pruned": true}'
    where ctid = any(array(select place from ready where unemptied and not forgotten)) returning 1
)
select summary.*, (select count(*) from deleted) as deleted, (select count(*) from emptied) as emptied
from summary
"""
)
_COUNT = (
    _PAGE
    + """
select summary.*, (select count(*) from ready where not keyed or forgotten) as deleted,
       (select count(*) from ready where unemptied and not forgotten) as emptied
from summary
"""
)
# Transactions count by their xid too: one that has written holds vacuum back between its statements.
_OLDEST = """
select who, age >= age(%(mark)s::xid8::xid) as holds from (
    select format('pid %%s (%%s, %%s)', pid, usename, application_name) as who,
           greatest(age(backend_xmin), age(backend_xid)) as age
    from pg_stat_activity
    where pid <> pg_backend_pid() and usesysid is not null  -- without one: autovacuum and other servers' own
      and (datid is null or datname = current_database())
    union all
    select format('prepared transaction %%L', gid), age(transaction)
    from pg_prepared_xacts where database = current_database()
    union all
    select format('replication slot %%I', slot_name), age(xmin) from pg_replication_slots
) as holder
where age is not null order by age desc limit 1
"""


@dataclass(frozen=True, slots=True)
class PruneResult:
    """The result of a run: rows deleted, keyed rows emptied of their payload, batches, and why it stopped."""

    deleted: int = 0
    emptied: int = 0
    batches: int = 0
    stopped: str = ""  # a sentence; empty when everything that may go is gone


@dataclass(frozen=True, slots=True)
class _Order:
    """A run's parameters."""

    retention: timedelta
    memory: timedelta
    batch: int
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Registry:
    """What every registered stream has applied, their witnesses, and the slowest stream."""

    floor: Snapshot
    witnesses: list[str]
    slowest: str


@dataclass(slots=True)
class _Walk:
    """One walk through the index, from `xid` to the first page in which no row is older than `age`."""

    column: str  # of outbox.pruned: where its mark is kept
    age: timedelta
    xid: int | None = None  # not begun
    seq: int = 0
    more: bool = True


def prune(
    source: Connection[Any],
    retention: timedelta,
    *,
    batch: int = 5000,
    dry_run: bool = False,
    go_on: Callable[[], bool] = lambda: True,
) -> PruneResult:
    """Delete delivered rows older than `retention`, `batch` rows per transaction.

    `go_on` is called before every batch. With `dry_run` nothing changes, and the result is what a run would do. A
    concurrent second run does nothing. Raises ValueError if `source` is in a transaction, and psycopg's errors;
    earlier batches stay deleted.
    """
    if source.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("prune commits its batches: give it a connection that is not in a transaction")
    refuse_newer(source, "source")
    if not is_here(
        source
    ):  # a stream's floor may be one of another cluster's, and would show what it never had
        return PruneResult(
            stopped="the outbox was restored from another cluster: bridge recover --adopt-outbox"
        )
    order = _Order(retention, max(KEY_MEMORY, retention), batch, dry_run)
    walks = [_Walk("walked_xid", retention)]
    if not dry_run:  # which begins at the first row, and so meets the forgotten keys on its way
        walks.append(_Walk("keyed_xid", order.memory))
    result = PruneResult()
    done: deque[str] = deque(maxlen=_OUTSTANDING)
    for walk in walks:
        while walk.more and not result.stopped:
            if not go_on():
                return replace(result, stopped="asked to stop")
            with source.transaction(), source.cursor(row_factory=dict_row) as cursor:
                result = _batch(cursor, order, walk, result, done)
                hit("prune.batch")
    if result.stopped:
        return result
    with source.transaction(), source.cursor(row_factory=dict_row) as cursor:
        return replace(result, stopped=_slowest(cursor, order))


def _batch(
    cursor: Cursor[DictRow], order: _Order, walk: _Walk, so_far: PruneResult, done: deque[str]
) -> PruneResult:
    # The registry is read by a later snapshot than the lock's. Never a plan that reads the whole table.
    cursor.execute("set transaction isolation level read committed")
    cursor.execute("set local enable_seqscan = off; set local enable_bitmapscan = off", prepare=False)
    position = _position(cursor, order)
    if position is None:
        return replace(so_far, stopped="another prune is running")
    registry = _registry(cursor)
    if registry is None:
        return replace(so_far, stopped="no stream is registered, so nothing is known to be delivered")
    if holder := _holder(cursor, done, position["batch_xid"]):
        return replace(so_far, stopped=f"{holder} has a snapshot that is older than the last deletions")
    if walk.xid is None:
        whole = walk.column == "walked_xid" and (order.dry_run or position["full_walk"])
        walk.xid = 0 if whole else int(position[walk.column])
    page = _page(cursor, order, walk, registry)
    walk.more = page["rows"] == order.batch and page["old"] > 0
    if not order.dry_run:
        _record(cursor, walk, registry.floor, position, page)
        if page["deleted"] or page["emptied"]:
            done.append(position["own_xid"])
    return PruneResult(so_far.deleted + page["deleted"], so_far.emptied + page["emptied"], so_far.batches + 1)


def _position(cursor: Cursor[DictRow], order: _Order) -> DictRow | None:
    """outbox.pruned, locked until the batch ends; None when another run has it. A dry run only reads."""
    own, lock = ("null", "") if order.dry_run else ("pg_current_xact_id()::text", "for update skip locked")
    return cursor.execute(
        f"""
        select floor::text, batch_xid::text, walked_xid::text, keyed_xid::text, {own} as own_xid,
               coalesce(walk_at < now() - %s, true) as full_walk
        from outbox.pruned {lock}
        """,
        [_FULL_WALK_EVERY],
    ).fetchone()


def _registry(cursor: Cursor[DictRow]) -> _Registry | None:
    rows = cursor.execute("select stream, floor::text, witness_id from outbox.stream").fetchall()
    if not rows:
        return None
    floors = {row["stream"]: parse_snapshot(row["floor"]) for row in rows}
    return _Registry(
        intersection(floors.values()),
        [row["witness_id"] for row in rows if row["witness_id"]],
        min(floors, key=lambda stream: floors[stream].xmax),
    )


def _holder(cursor: Cursor[DictRow], done: deque[str], before: str | None) -> str:
    """The session that prevents vacuum from removing the deleted rows of this or the last run; empty: none."""
    mark = done[0] if len(done) == _OUTSTANDING else before if not done else None
    if mark is None:
        return ""
    row = cursor.execute(_OLDEST, {"mark": mark}).fetchone()
    return str(row["who"]) if row and row["holds"] else ""


def _page(cursor: Cursor[DictRow], order: _Order, walk: _Walk, registry: _Registry) -> DictRow:
    page = cursor.execute(
        _COUNT if order.dry_run else _REMOVE,
        {
            "xid": str(walk.xid),
            "seq": walk.seq,
            "xmax": str(registry.floor.xmax),
            "floor": str(registry.floor),
            "witnesses": registry.witnesses,
            "age": walk.age,
            "memory": order.memory,
            "batch": order.batch,
        },
        prepare=False,  # a generic plan does not know how short a batch is
    ).fetchone()
    if page is None:
        raise AssertionError("a summary has one row")
    if page["rows"]:
        walk.xid, walk.seq = int(page["last_xid"]), page["last_seq"]
    return page


def _record(cursor: Cursor[DictRow], walk: _Walk, floor: Snapshot, position: DictRow, page: DictRow) -> None:
    """Record what the batch removed and the walk's position, in the batch's transaction."""
    cursor.execute(
        f"update outbox.pruned set {walk.column} = %(mark)s::xid8, "
        "walk_at = case when %(walked)s then now() else walk_at end",
        {
            # The next walk begins at the last page's first row whose time has not come.
            "mark": str(walk.xid if walk.more else page["waiting_xid"] or walk.xid),
            "walked": position["full_walk"] and walk.column == "keyed_xid" and not walk.more,
        },
    )
    if page["deleted"] or page["emptied"]:
        shown = union(floor, parse_snapshot(position["floor"])) if position["floor"] else floor
        cursor.execute(
            """
            update outbox.pruned set xid = greatest(xid, %s::xid8), floor = %s::pg_snapshot,
                deleted = deleted + %s, emptied = emptied + %s,
                batch_xid = pg_current_xact_id(), pruned_at = now()
            """,
            [page["greatest_xid"], str(shown), page["deleted"], page["emptied"]],
        )


def _slowest(cursor: Cursor[DictRow], order: _Order) -> str:
    """The stream that keeps the first row past the common floor, if that row is old enough to delete."""
    registry = _registry(cursor)
    if registry is None:
        return ""
    row = cursor.execute(
        """
        select occurred_at < now() - %s as old from outbox.event
        where xid >= %s::xid8 order by xid, seq limit 1
        """,
        [order.retention, str(registry.floor.xmax)],
    ).fetchone()
    return f"stream {registry.slowest} has not applied the older rows" if row and row["old"] else ""
