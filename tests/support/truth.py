"""The conservation law: what producers committed against what the target got, in SQL.

Apart from the product on purpose: this module imports nothing of it, reads both databases as
superuser, counts effects by a trigger (an upsert hides duplicates) and compares values, not counters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from tests.support.producers import Producer

Connection = psycopg.Connection[tuple[Any, ...]]

# Never deleted from; filled in the producer's own transaction. n rises in commit order within a key as
# long as a key belongs to one producer. jsonb prints the same text on every version: the hash is of that.
_SOURCE = """
create schema rig;
create table rig.truth (
    event_id uuid primary key,
    type     text not null,
    key      text,
    n        bigint generated always as identity (cache 1),
    payload  jsonb not null,
    sha256   text not null
);
create function rig.hash() returns trigger language plpgsql as $$
begin
    new.sha256 := encode(sha256(convert_to(new.payload::text, 'UTF8')), 'hex');
    return new;
end
$$;
create trigger hash before insert on rig.truth for each row execute function rig.hash();
grant usage on schema rig to app;
grant insert on rig.truth to app;
"""

_TARGET = """
create schema rig;
create table rig.effects (
    n          bigint generated always as identity (cache 1),
    table_name text not null,
    operation  text not null,
    row        jsonb not null,
    xid        xid8 not null default pg_current_xact_id()
);
create function rig.effect() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    insert into rig.effects (table_name, operation, row)
    values (tg_table_schema || '.' || tg_table_name, tg_op,
        to_jsonb(case tg_op when 'DELETE' then old else new end));
    return null;
end
$$;
"""


def install_source(connection: Connection) -> None:
    """rig.truth, writable by `app`."""
    connection.execute(_SOURCE.encode())


def install_target(connection: Connection) -> None:
    """rig.effects and the trigger function."""
    connection.execute(_TARGET.encode())


def watch(connection: Connection, table: str) -> None:
    """Append every effect on `table` ("schema.name") to rig.effects."""
    statement = sql.SQL(
        "create trigger rig_effect after insert or update or delete on {}"
        " for each row execute function rig.effect()"
    )
    connection.execute(statement.format(sql.Identifier(*table.split("."))))


USAGE_COLUMNS: Mapping[str, str] = {
    "customer_id": "t.payload->>'customer_id'",
    "metric": "t.payload->>'metric'",
    "limit": "t.payload->'limit'",
    "used": "t.payload->'used'",
    "plan": "t.payload->>'plan'",
    "mrr": "(select c.mrr from pg_temp.customer c where c.customer_id = t.payload->>'customer_id')",
    "csm": "(select c.csm from pg_temp.customer c where c.customer_id = t.payload->>'customer_id')",
    "renewal": "(select c.renewal from pg_temp.customer c where c.customer_id = t.payload->>'customer_id')",
    "payload": "t.payload",
}


@dataclass(frozen=True, slots=True)
class Unit:
    """One (pipeline, destination) and what the law expects of it. Texts are SQL over a truth row `t`
    (event_id, type, key, n, payload, sha256) or an effect `e` (row jsonb)."""

    pipeline: str = "usage-limit-hits"
    destination: str = "events"
    event_type: str = "usage.limit_reached"  # of settle()'s marker, which must pass the pipeline
    table: str | None = "events.usage_limits"  # None: a sink; its rows in bridge.delivery are the effects
    applies: str = "t.type = 'usage.limit_reached'"  # which events have an effect here
    event_id: str = "e.row->>'event_id'"  # whose effect a row is
    mine: str = "true"  # where two units fill one table: which effects are this one's
    columns: Mapping[str, str] = field(default_factory=lambda: USAGE_COLUMNS)  # column -> expected value
    payload: str | None = "e.row->'payload'"  # hashed and compared with the truth's hash; None: not stored
    latest_of: str | None = None  # a truth expression: rows are keyed by it, the last event wins
    ordered: bool = True  # effects of one key come in order


@dataclass(frozen=True, slots=True)
class Verdict:
    """What conservation() found. Every list is empty and every count adds up, or the law is broken."""

    expected: int
    applied: int  # events of `expected` with at least one effect
    in_dead_letters: int
    lost: list[UUID]
    duplicated: list[UUID]  # more than one effect, or more than one open dead letter
    in_both: list[UUID]  # an effect and an open dead letter
    unexpected: list[str]  # effects of no committed event: rolled back, filtered out, unknown
    wrong: list[tuple[UUID, str]]  # (event, column); "sha256" for the payload as a whole
    out_of_order: list[UUID]

    @property
    def holds(self) -> bool:
        broken = (self.lost, self.duplicated, self.in_both, self.unexpected, self.wrong, self.out_of_order)
        return not any(broken)

    def __str__(self) -> str:
        parts = [
            f"expected {self.expected}",
            f"applied {self.applied}",
            f"dead letters {self.in_dead_letters}",
        ]
        for name in ("lost", "duplicated", "in_both", "unexpected", "wrong", "out_of_order"):
            found = getattr(self, name)
            parts.append(f"{name} {len(found)}" + (f" (first: {found[0]})" if found else ""))
        return ", ".join(parts)


def conservation(source_dsn: str, target_dsn: str, unit: Unit | None = None) -> Verdict:
    """Compare both databases (superuser DSNs) for one unit. Producers must have stopped, see settle()."""
    unit = unit or Unit()
    with _utf8(source_dsn) as source, _utf8(target_dsn) as target:
        judge = target if target.info.parameter_status("server_encoding") == "UTF8" else source
        _carry(
            source, judge, "truth", sql.SQL("select event_id, type, key, n, payload, sha256 from rig.truth")
        )
        if source.execute("select to_regclass('crm.customer')").fetchone() != (None,):
            _carry(
                source, judge, "customer", sql.SQL("select customer_id, mrr, csm, renewal from crm.customer")
            )
        _keep(judge, "expected", sql.SQL(f"select t.* from pg_temp.truth t where {unit.applies}"))
        _carry(target, judge, "effect", _effects(unit))
        _carry(target, judge, "dead", _dead_letters(unit))
        return _judge(judge, unit)


def _utf8(dsn: str) -> Connection:
    return psycopg.connect(dsn, client_encoding="UTF8")


def settle(source_dsn: str, target_dsn: str, unit: Unit | None = None, deadline: float = 30.0) -> float:
    """Commit a marker event, part of the truth, and wait for its effect or dead letter; returns the
    seconds it took. AssertionError with the present verdict when it does not arrive."""
    unit = unit or Unit()
    began = time.monotonic()
    with Producer(source_dsn, name="marker", event_type=unit.event_type) as producer:
        [marker] = producer.transaction(1)
    query = sql.SQL(
        "select exists (select from ({}) e where e.event_id = %(id)s)"
        " or exists (select from ({}) d where d.event_id = %(id)s)"
    )
    query_now = query.format(_effects(unit), _dead_letters(unit))
    with psycopg.connect(target_dsn, autocommit=True) as target:
        while time.monotonic() - began < deadline:
            if target.execute(query_now, {"id": str(marker)}).fetchone() == (True,):
                return time.monotonic() - began
            time.sleep(0.02)
    found = conservation(source_dsn, target_dsn, unit)
    raise AssertionError(f"the marker did not arrive within {deadline:.0f} s: {found}")


_SHAPES = {
    "truth": "event_id uuid primary key, type text, key text, n bigint, payload jsonb, sha256 text",
    "customer": "customer_id text primary key, mrr numeric, csm text, renewal date",
    "effect": "event_id text, n bigint, row jsonb",
    "dead": "event_id text",
}


def _carry(origin: Connection, judge: Connection, name: str, query: sql.Composable) -> None:
    """Bring a query's rows into a temporary table of the checker's own session: on the target, or on the source if
    the target's encoding does not hold every text."""
    if origin is judge:
        _keep(judge, name, query)
        return
    judge.execute(f"create temp table {name} ({_SHAPES[name]}) on commit drop".encode())
    with (
        origin.cursor().copy(sql.SQL("copy ({}) to stdout").format(query)) as reader,
        judge.cursor().copy(f"copy pg_temp.{name} from stdin".encode()) as writer,
    ):
        for block in reader:
            writer.write(block)
    _index(judge, name)


def _keep(judge: Connection, name: str, query: sql.Composable) -> None:
    """The query's rows as they are now, indexed."""
    judge.execute(sql.SQL(f"create temp table {name} on commit drop as ") + query)
    _index(judge, name)


def _index(judge: Connection, name: str) -> None:
    column = _SHAPES.get(name, "event_id").split()[0]
    judge.execute(f"create index on pg_temp.{name} ({column})".encode())
    judge.execute(f"analyze pg_temp.{name}".encode())


def _effects(unit: Unit) -> sql.Composable:
    if unit.table is None:
        return sql.SQL(
            "select d.event_id, d.event_seq as n, d.body as row from bridge.delivery d"
            " where d.pipeline = {} and d.destination = {}"
        ).format(unit.pipeline, unit.destination)
    return sql.SQL(
        f"select {unit.event_id} as event_id, e.n, e.row from rig.effects e"
        f" where e.table_name = {{}} and ({unit.mine})"
    ).format(unit.table)


def _dead_letters(unit: Unit) -> sql.Composable:
    return sql.SQL(
        "select event_id from bridge.dead_letter where state = 'open' and pipeline = {} and destination = {}"
    ).format(unit.pipeline, unit.destination)


def _judge(judge: Connection, unit: Unit) -> Verdict:
    def column(query: str) -> list[Any]:
        return [row[0] for row in judge.execute(query.encode())]

    applied = "exists (select from effect e where e.event_id = t.event_id::text)"
    dead = "exists (select from dead d where d.event_id = t.event_id::text)"
    wanted = "expected"
    if unit.latest_of is not None:  # events folded away within a key are not lost
        key = unit.latest_of
        wanted = f"(select distinct on ({key}) t.* from expected t order by {key}, t.n desc)"
    return Verdict(
        expected=column("select count(*) from expected")[0],
        applied=column(f"select count(*) from expected t where {applied}")[0],
        in_dead_letters=column(f"select count(*) from expected t where {dead}")[0],
        lost=column(f"select t.event_id from {wanted} t where not {applied} and not {dead} order by t.n"),
        duplicated=column(_MORE_THAN_ONCE),
        in_both=column(f"select t.event_id from expected t where {applied} and {dead}"),
        unexpected=column(
            "select coalesce(e.event_id, 'null') from effect e"
            " where not exists (select from expected t where t.event_id::text = e.event_id)"
        ),
        wrong=_wrong(judge, unit),
        out_of_order=column(_OUT_OF_ORDER) if unit.ordered else [],
    )


_MORE_THAN_ONCE = """
select t.event_id from expected t join effect e on e.event_id = t.event_id::text
group by 1 having count(*) > 1
union
select t.event_id from expected t join dead d on d.event_id = t.event_id::text
group by 1 having count(*) > 1
"""

# Effects in the order they were made (e.n): events that an event of the same key overtook.
_OUT_OF_ORDER = """
select event_id from (
    select t.event_id, t.n,
        max(t.n) over (
            partition by t.key order by e.n rows between unbounded preceding and 1 preceding) as before
    from expected t join effect e on e.event_id = t.event_id::text where t.key is not null
) as effects_of_key where before > n
"""


_PAIRS = "select t.event_id from expected t join effect e on e.event_id = t.event_id::text"


def _wrong(judge: Connection, unit: Unit) -> list[tuple[UUID, str]]:
    if unit.table is None:
        return []
    checks = [
        (name, f"to_jsonb({value}) is distinct from nullif(e.row->'{name}', 'null'::jsonb)")
        for name, value in unit.columns.items()
    ]
    if unit.payload is not None:
        digest = f"encode(sha256(convert_to(({unit.payload})::text, 'UTF8')), 'hex')"
        checks.append(("sha256", f"{digest} is distinct from t.sha256"))
    found: list[tuple[UUID, str]] = []
    for name, differs in checks:
        query = f"{_PAIRS} where {differs}".encode()
        found += [(row[0], name) for row in judge.execute(query)]
    return found
