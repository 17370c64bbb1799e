"""Adoption: a restored, moved or altered outbox is made exact again. What was not applied is applied, once.

The ledger's position is one in xids, and the rows of this outbox do not have the xids that the ledger knows: another
cluster gave them out, or nobody did. So every row is placed once, by what is still known of it, and the ledger starts
again with a list of the rows that are applied instead of a floor. docs/guarantees.md, "Rows with foreign xids".

How a row is placed:

- the outbox was restored from the ledger's cluster (a dump, pg_upgrade): by the xid that it had there. Rows that were
  written after the restore are not applied;
- its rows came from elsewhere, and the old source is at hand: by id, as the ledger says of that row there;
- it is the ledger's own, with its slot: what the slot does not bring is applied;
- it is the ledger's own, without a slot: by the ledger; where a row's xid says nothing, by its seq.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from bridge.attempts import bisect
from bridge.errors import BridgeError
from bridge.postgres.ledger import LISTED, LOCK, read_listed, read_row
from bridge.postgres.origin import adopt_origin, is_here, origins, system_of
from bridge.postgres.outbox import BORN
from bridge.postgres.parts import partition_in
from bridge.postgres.source import Source
from bridge.protocol.events import NULL_SEQ, Done, Event, Seqs, listed, parse_snapshot
from bridge.protocol.facts import Ledger, Mode, Pruned
from bridge.protocol.preflight import may_miss
from bridge.repair.placed import Row, indexed_by, is_local, outbox_rows, restored_seq
from bridge.repair.recover import check_stopped, forget, forget_registration
from bridge.stream.decode import Decoder
from bridge.stream.relation import Layout
from bridge.stream.spec import StreamSpec

_LIST_AT_ONCE = 10_000
_FETCH = 5000
_BEFORE = b"w" + bytes(24)  # of XLogData, which the decoder expects before a message of pgoutput
_COMMIT = b"C"

_PEEK: LiteralString = (
    "select data from pg_logical_slot_peek_binary_changes(%s, null, null,"
    " 'proto_version', '1', 'publication_names', %s)"
)


class CannotPlace(BridgeError):
    """It cannot be known which rows are applied. Nothing was changed."""

    reason = "cannot_place"


@dataclass(slots=True)
class Adoption:
    """The plan for one stream, and how many rows it is about. applied: (xid, seq) of the rows that the ledger lists;
    left: of the others."""

    stream: str
    why: str
    rows: int = 0
    missing: int = 0
    first_missing: str = ""
    by_seq: int = 0
    ledger: Ledger | None = None
    applied: list[tuple[int, int]] = field(default_factory=list)
    left: list[tuple[int, int]] = field(default_factory=list)

    def lists(self) -> list[tuple[list[int], Seqs]]:
        """What `bridge.applied` gets: it covers every seq of a list for every xid of it. Where rows share a seq, a list
        is cut until it covers none of those that are left."""
        numbered = {seq for _, seq in self.applied}
        alike = [row for row in self.left if row[1] in numbered]
        found: list[tuple[list[int], Seqs]] = []

        def covers(rows: Sequence[tuple[int, int]]) -> bool | None:
            xids, seqs = {xid for xid, _ in rows}, {seq for _, seq in rows}
            if len(rows) > 1 and any(xid in xids and seq in seqs for xid, seq in alike):
                return True
            found.append((sorted(xids), Seqs.of(seqs)))
            return None

        for at in range(0, len(self.applied), _LIST_AT_ONCE):
            bisect(self.applied[at : at + _LIST_AT_ONCE], covers)
        return found

    def lines(self) -> Iterator[str]:
        yield f"stream {self.stream}: {self.why}"
        yield f"  rows of the outbox    {self.rows}"
        yield f"  applied already       {len(self.applied)}"
        first = f" (the first: {self.first_missing})" if self.missing else ""
        yield f"  will be applied       {self.missing}{first}"
        if self.by_seq:
            yield f"  placed by seq alone   {self.by_seq} (applied, unless seq is above the last applied event's)"


class Adopter:
    """Plans the adoption for one stream, and carries it out. source and target: in autocommit, no bridge runs."""

    def __init__(
        self,
        plan: StreamSpec,
        source: psycopg.Connection[Any],
        target: psycopg.Connection[Any],
        old_source: psycopg.Connection[Any] | None = None,
    ) -> None:
        self._plan = plan
        self._partition = partition_in(plan.stream)
        self._source = source
        self._target = target
        self._old_source = old_source

    def survey(self) -> Adoption:
        """What would be done. Raises CannotPlace, and BridgeRuns."""
        ledger = self._ledger()
        adoption = self._survey(ledger)
        adoption.ledger = ledger
        return adoption

    def _survey(self, ledger: Ledger) -> Adoption:
        stream, outbox = self._plan.stream, self._plan.outbox
        if not {"xid", "seq"} <= outbox.columns.keys():
            raise CannotPlace(
                f"{outbox.schema}.{outbox.table} has no xid and seq: only its slot knows what is applied",
                hint="bridge recover --accept-source --since now",
            )
        check_stopped(self._target, stream)
        here = system_of(self._source)
        if ledger.mode is Mode.NEW:
            has = self._by_ledger(ledger)  # what an adoption before its start has listed
            adoption = Adoption(stream, "it has not started since its position was given up")
            return self._judged(adoption, lambda row: has(row.placed, row.seq))
        if self._old_source is not None:
            return self._beside_old(ledger, self._old_source)
        self._check_not_pruned(ledger)
        if ledger.system_identifier != here or not is_here(self._source):
            return self._restored(ledger, here)
        return self._altered(ledger)

    def carry_out(self, adoption: Adoption) -> None:
        """The ledger first, then the source's registry, then the target commits: a failure half-way leaves a stream
        that halts as before."""
        stream = adoption.stream
        with self._target.transaction():
            check_stopped(self._target, stream)
            now = self._ledger()
            if adoption.ledger is None or _position(now) != _position(adoption.ledger):
                raise CannotPlace(
                    f"a bridge has worked on stream {stream} meanwhile: nothing was changed",
                    hint="stop every bridge of this configuration, then run it again",
                )
            forget(self._target, stream, now.since)
            for xids, seqs in adoption.lists():
                self._target.execute(
                    "insert into bridge.applied (stream, incarnation, end_lsn, xids, end_lsns, seqs)"
                    " values (%s, 0, '0/0', %s::xid8[], array_fill('0/0'::pg_lsn, array[%s]), %s::int8multirange)",
                    [
                        stream,
                        "{" + ",".join(map(str, xids)) + "}",
                        len(xids),
                        str(seqs),
                    ],
                )
            with self._source.transaction():
                adopt_origin(self._source)
                forget_registration(self._source, stream)

    def settle_xids(self) -> str:
        """Write into every row the xid by which it is placed, so that another move finds its own. Its place is the same
        before and after. Returns the statement where it has to be run by the table's owner; empty: nothing is left."""
        outbox = self._plan.outbox
        strangers = sql.SQL("select exists (select from {} where {})").format(
            outbox.name, outbox.is_stranger()
        )
        if self._source.execute(strangers).fetchone() != (True,):
            return ""
        statement = sql.SQL("update {} set {} = {} where {}").format(
            outbox.name, outbox.column("xid"), sql.SQL(BORN), outbox.is_stranger()
        )
        try:
            self._source.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            return statement.as_string()
        return ""

    def _ledger(self) -> Ledger:
        row = psycopg.RawCursor(self._target).execute(LOCK, [self._plan.stream]).fetchone()
        if row is None:
            raise CannotPlace(
                f"the target has no ledger of stream {self._plan.stream}",
                hint="a new stream needs no adoption: start it",
            )
        return read_row([None if value is None else str(value).encode() for value in row])

    def _listed(self) -> list[tuple[list[int], Seqs]]:
        found = psycopg.RawCursor(self._target).execute(LISTED, [self._plan.stream, None])
        return [read_listed([str(value).encode() for value in row]) for row in found]

    def _check_not_pruned(self, ledger: Ledger) -> None:
        row = self._source.execute(
            "select xid::text, floor::text from outbox.pruned where xid is not null"
        ).fetchone()
        if row is None or (ledger.accepted_gap or 0) >= int(row[0]):
            return
        if may_miss(ledger.floor, Pruned(int(row[0]), parse_snapshot(row[1]))):
            raise CannotPlace(
                f"rows that stream {ledger.stream} has not seen may have been pruned (up to xid {row[0]})",
                hint="restore a newer backup of the target, or accept the gap: bridge recover --accept-gap",
            )

    # --- the four ways ------------------------------------------------------------------------

    def _restored(self, ledger: Ledger, here: str) -> Adoption:
        if ledger.system_identifier not in origins(self._source):
            raise CannotPlace(
                f"the rows of this outbox have xids of cluster {here}, and stream {ledger.stream} knows those of "
                f"{ledger.system_identifier}: they were replicated or written here, so what is applied of them is "
                "known at the old source only",
                hint="bridge recover --adopt-outbox --old-source DSN; with everything delivered before the switch: "
                "bridge recover --accept-source --since now, before producers write here",
            )
        since = indexed_by(self._source, self._plan.outbox)
        has, last = self._by_ledger(ledger), self._last_seq(ledger)
        restored = max(last, restored_seq(self._source, self._plan.outbox, since))

        def applied(row: Row) -> bool:
            if is_local(row, since, restored):
                return False
            if row.xid is None:
                adoption.by_seq += 1
                return row.seq <= last
            return has(row.xid, row.seq)

        adoption = Adoption(
            ledger.stream,
            f"this outbox was restored here (cluster {here}) from cluster {ledger.system_identifier}",
        )
        return self._judged(adoption, applied)

    def _beside_old(self, ledger: Ledger, old: psycopg.Connection[Any]) -> Adoption:
        outbox, has = self._plan.outbox, self._by_ledger(ledger)
        if system_of(old) != ledger.system_identifier:
            raise CannotPlace(
                f"--old-source is cluster {system_of(old)}, and stream {ledger.stream} knows "
                f"{ledger.system_identifier}",
                hint="give the DSN of the source that the stream read before",
            )
        known: dict[tuple[str, int], bool] = {}
        greatest = 0
        for row in outbox_rows(old, outbox, self._partition):
            known[row.name] = has(row.placed, row.seq)
            greatest = max(greatest, row.seq)
        pruned = old.execute("select deleted > 0 from outbox.pruned").fetchone() == (True,)
        unseen = {name for name, done in known.items() if not done}

        def applied(row: Row) -> bool:
            unseen.discard(row.name)
            if row.name not in known and pruned and row.seq <= greatest:
                adoption.by_seq += 1
                return True  # deleted there, because it was applied
            return known.get(row.name, False)

        adoption = Adoption(
            ledger.stream, f"compared with its old source, cluster {ledger.system_identifier}"
        )
        self._judged(adoption, applied)
        if unseen:
            raise CannotPlace(
                f"{len(unseen)} events of the old source are not applied, and this outbox does not have them yet "
                f"(one: {min(unseen)[0]})",
                hint="wait until the replication has brought them, or deliver them from the old source first",
            )
        return adoption

    def _altered(self, ledger: Ledger) -> Adoption:
        outbox = self._plan.outbox
        rows = list(
            outbox_rows(self._source, outbox, self._partition)
        )  # before the slot is looked into: whatever comes later is not listed
        last = self._last_seq(ledger)
        has = self._by_ledger(ledger)
        slot = self._slot()
        if ledger.mode is Mode.STREAM and slot is not None:
            waiting = self._waiting(ledger, slot, last)
            adoption = Adoption(ledger.stream, f"what slot {slot} does not bring is applied")
            # The slot's rows from before the table had its seq have none there.
            return self._judged(adoption, lambda row: not waiting & {row.name, (row.id, 0)}, rows)
        if ledger.mode is Mode.STREAM and ledger.floor.xmax <= 3:
            raise CannotPlace(
                f"stream {ledger.stream} is from before the outbox had its column xid, and its slot is lost",
                hint="continue without the events that only the lost slot had: bridge recover --accept-source",
            )

        def applied(row: Row) -> bool:
            if has(row.placed, row.seq):
                return True
            if not row.is_stranger:
                return False
            adoption.by_seq += 1
            return row.seq <= last

        adoption = Adoption(
            ledger.stream, "placed by its ledger: there is no slot to say what it would bring"
        )
        return self._judged(adoption, applied, rows)

    # --- what is known ------------------------------------------------------------------------

    def _judged(
        self, adoption: Adoption, applied: Callable[[Row], bool], rows: Iterable[Row] | None = None
    ) -> Adoption:
        for row in (
            rows if rows is not None else outbox_rows(self._source, self._plan.outbox, self._partition)
        ):
            adoption.rows += 1
            if applied(row):
                adoption.applied.append((row.placed, row.seq))
                continue
            adoption.missing += 1
            adoption.left.append((row.placed, row.seq))
            adoption.first_missing = adoption.first_missing or row.id
        return adoption

    def _by_ledger(self, ledger: Ledger) -> Callable[[int, int], bool]:
        """I6, as a question about (xid, seq)."""
        done, goal = Done(listed(self._listed()), ledger.floor), ledger.next

        def has(xid: int, seq: int) -> bool:
            return done.shows(xid, seq) or (goal is not None and goal.snapshot.shows(xid) and seq <= goal.seq)

        return has

    def _last_seq(self, ledger: Ledger) -> int:
        """Of the last applied event; -1: it is gone, or there was none."""
        outbox = self._plan.outbox
        if ledger.witness_id is None:
            return -1
        row = self._source.execute(
            sql.SQL("select {} from {} where {} = %s").format(
                outbox.column("seq"), outbox.name, outbox.column("id")
            ),
            [ledger.witness_id],
        ).fetchone()
        return -1 if row is None or row[0] is None else int(row[0])

    def _slot(self) -> str | None:
        """The stream's slot, if it can still say what it would bring."""
        row = self._source.execute(
            "select s.slot_name from outbox.stream r join pg_catalog.pg_replication_slots s on s.slot_name = r.slot"
            " where r.stream = %s and s.plugin = 'pgoutput' and s.database = current_database()"
            " and s.wal_status is distinct from 'lost' and s.confirmed_flush_lsn is not null",
            [self._plan.stream],
        ).fetchone()
        return None if row is None else str(row[0])

    def _waiting(self, ledger: Ledger, slot: str, last: int) -> set[tuple[str, int]]:
        """(id, seq) of the rows that the slot would bring."""
        plan = self._plan
        control = Source(plan.source_dsn, plan.stream, plan.outbox, plan.publication)
        try:
            layout = Layout(*control.layout())
        finally:
            control.close()
        decoder = Decoder(plan.outbox.schema, plan.outbox.table, plan.outbox.columns)
        decoder.expect(layout)
        done = Done(listed(self._listed()), ledger.floor)
        waiting: set[tuple[str, int]] = set()
        with self._source.transaction(), self._source.cursor("waiting", binary=True) as cursor:
            cursor.itersize = _FETCH
            for (data,) in cursor.execute(_PEEK, [slot, plan.publication]):
                decoder.feed([_BEFORE + bytes(data)])
                if not data.startswith(_COMMIT):
                    continue
                rows: list[Event] = []
                end = 0
                while (batch := decoder.take()) is not None:
                    rows += batch.events
                    moves = layout.partitioned and not batch.replicated
                    rows += [row for row in batch.strays if not (moves and _is_moved(row, done, last))]
                    end = batch.end_lsn
                if end > ledger.applied_lsn:
                    waiting.update((row.id.decode(), int(row.seq)) for row in rows)
        return waiting


def _position(ledger: Ledger) -> tuple[object, ...]:
    return ledger.mode, ledger.applied_lsn, ledger.floor, ledger.next, ledger.witness_id


def _is_moved(row: Event, done: Done, last: int) -> bool:
    """Has an update moved the row here from another partition, long after it was applied?"""
    if row.seq != NULL_SEQ and int(row.seq) <= last:
        return True
    return row.xid is not None and done.has(row)
