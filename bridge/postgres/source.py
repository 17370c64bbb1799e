"""Queries about the source: identity, history, publication, slot, registry. One control connection per stream, short
statements only; events come through replication.py or outbox.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from bridge.errors import CannotConnect, Fenced, Halt, Retry, StandBy
from bridge.postgres.capture import refusals
from bridge.postgres.catalog import hidden_rows
from bridge.postgres.connect import connect
from bridge.postgres.origin import is_here, take_over
from bridge.postgres.outbox import COUNTED, Outbox
from bridge.postgres.partitions import MOVING
from bridge.postgres.profiles import SOURCE, STREAM
from bridge.postgres.publication import REPLICATED, publication_identity
from bridge.postgres.relay import INCARNATION, life_of, place, placed, read_relay
from bridge.postgres.replication import command, open_replication
from bridge.protocol.events import Lsn, Snapshot, format_lsn, parse_lsn, parse_snapshot
from bridge.protocol.facts import (
    MOVER,
    Pruned,
    Registration,
    RelayFacts,
    SlotFacts,
    SlotRefused,
    SourceFacts,
)
from bridge.protocol.requests import Observation

# Row-level security was switched on while we stream: halt now, not when a lost slot makes us read the table.
_HIDES: LiteralString = """
    (row_security_active(to_regclass(%(table)s)) or row_security_active(to_regclass('outbox.stream'))
        or row_security_active(to_regclass('outbox.pruned')))"""

# A bridge of this stream reads it as bridge-stream/<stream> (profiles.py).
_SLOT: LiteralString = """
    select slot_type, plugin, database is not distinct from current_database(), active, wal_status,
           confirmed_flush_lsn::text, to_jsonb(s) ->> 'invalidation_reason',
           (select concat_ws(' ', 'pid', a.pid, 'of', a.usename, '(' || nullif(a.application_name, '') || ')')
            from pg_catalog.pg_stat_activity a
            where a.pid = s.active_pid and a.application_name is distinct from %(reader)s)
    from pg_catalog.pg_replication_slots s where slot_name = %(slot)s"""

# A standby has no WAL of its own to tell of.
_PLACE: LiteralString = (
    "pg_is_in_recovery(), (select system_identifier::text from pg_control_system()), current_database()::text,"
    " (select oid::int8 from pg_catalog.pg_database where datname = current_database()),"
    " case when pg_is_in_recovery() then 0"
    " else ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int end,"
    " case when not pg_is_in_recovery() then pg_current_wal_flush_lsn()::text end,"
    " exists (select from pg_catalog.pg_class where oid = to_regclass(%(table)s) and relkind = 'p'),"
    + REPLICATED
    + ","
    + MOVING
)
_PLACES = 9

_MARKS: LiteralString = """
    current_setting('max_prepared_transactions')::int > 0,
    array(select slot_name::text from pg_catalog.pg_replication_slots
        where starts_with(slot_name::text, %(prefix)s)
            and (database, plugin) is distinct from (current_database(), 'pgoutput'::name)),
    has_table_privilege(to_regclass('outbox.origin'), 'select'),
    (select xid::text from outbox.pruned), (select floor::text from outbox.pruned)"""

_REGISTER_FIRST: LiteralString = """
    insert into outbox.stream (stream, target_system, target_database, slot, floor, witness_id, reached, session)
    values (%(stream)s, %(system)s, %(database)s, %(slot)s, %(floor)s::pg_snapshot, %(witness)s,
        %(reached)s::pg_lsn, %(session)s)
    on conflict do nothing"""

_REGISTER: LiteralString = """
    update outbox.stream set target_system = %(system)s, target_database = %(database)s, slot = %(slot)s,
        floor = %(floor)s::pg_snapshot, witness_id = %(witness)s, session = %(session)s,
        reached = greatest(reached, %(reached)s::pg_lsn), updated_at = now()
    where stream = %(stream)s and session = %(holder)s"""

IDLE_WRITE_SECONDS = 10.0
IDLE_WRITE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SlotHealth:
    """For metrics. retained: WAL bytes that the slot retains; safe: bytes until it is invalidated, None: no limit."""

    active: bool
    retained: int
    safe: int | None


class Source:
    """Everything that the protocol reads from the source, over one connection."""

    def __init__(
        self, dsn: str, stream: str, outbox: Outbox, publication: str, *, relay: str | None = None
    ) -> None:
        """relay: whose frames the stream applies, or who this is; None: there is no log."""
        self._dsn = dsn
        self._stream = stream
        self._relay = relay
        self._names = {"publication": publication, "table": outbox.name.as_string()}
        self.connection = connect(dsn, SOURCE, stream)
        self._outbox = outbox.on(self.connection)
        self._identity = publication_identity(self.connection.info.server_version)
        self.health: SlotHealth | None = None
        self._refused: list[SlotRefused] | None = None
        self._idle_written = (time.monotonic(), Lsn(0))

    def _row(self, query: LiteralString, parameters: Any = None) -> tuple[Any, ...]:
        row = self.connection.execute(query, parameters).fetchone()
        if row is None:
            raise Retry("the source returned no row")
        return row

    # --- preflight ------------------------------------------------------------------------------

    def facts(self, slot: str | None, witness_id: str | None, witness_xid: int | None) -> SourceFacts:
        """Asked three times before the first event, so all that needs no answer of before is one statement."""
        parameters = {**self._names, "prefix": f"{self._relay or self._stream}_"}
        where, (two_phase, taken, tells, *mark), publication = self._facts(parameters)
        (in_recovery, system, database, oid, timeline, flush, partitioned, replicated, moving) = where
        if in_recovery:
            return SourceFacts("", 0, Lsn(0), None, None, in_recovery=True)
        here = not tells or is_here(self.connection, tells=True)
        return SourceFacts(
            system_identifier=system,
            database=database,
            database_oid=oid,
            timeline=timeline,
            flush_lsn=parse_lsn(flush),
            publication=publication,
            slot=self._slot(slot) if slot else None,
            switch_points=self._switch_points(timeline) if timeline > 1 else {},
            witness_present=witness_id is None or self._present(witness_id, witness_xid),
            two_phase=two_phase,
            slot_refused=self._slot_refused(),
            pruned=_mark(mark) if here else None,
            partitioned=partitioned,
            restored=not here,
            replicated=replicated,
            moving=moving,
            taken=frozenset(taken),
            life=life_of(self.connection) if self._relay else "",
            relay=self.relay(),
        )

    def _facts(self, parameters: Any) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
        """The columns of _PLACE, those of _MARKS, and the publication's identity."""
        row = self._row(f"select {_PLACE}, {_MARKS}, {self._identity}", parameters)
        return row[:_PLACES], row[_PLACES:-1], row[-1]

    def relay(self) -> RelayFacts | None:
        """The relay's row."""
        return read_relay(self.connection, self._relay) if self._relay else None

    def layout(self) -> tuple[tuple[str, ...], bool, bool, int, int]:
        """The outbox's columns in the order in which they were added, whether it is partitioned, whether Postgres
        counts its seq, the next xid, and the outbox's oid."""
        columns, kind, counted, next_xid, oid = self._row(
            "select array(select attname::text from pg_catalog.pg_attribute where attrelid = c.oid and attnum > 0"
            " and not attisdropped order by attnum), relkind::text,"
            " exists (select from pg_catalog.pg_attribute a left join pg_catalog.pg_attrdef d"
            " on d.adrelid = a.attrelid and d.adnum = a.attnum where a.attrelid = c.oid and a.attname = %(seq)s"
            " and " + COUNTED + "),"
            " pg_snapshot_xmax(pg_current_snapshot())::text, c.oid"
            " from pg_catalog.pg_class c where c.oid = to_regclass(%(table)s)",
            {**self._names, "seq": self._outbox.columns.get("seq", "")},
        )
        return tuple(columns), kind == "p", counted, int(next_xid), int(oid)

    def _slot(self, name: str) -> SlotFacts | None:
        names = {"slot": name, "reader": STREAM.session_name(self._relay or self._stream)}
        row = self.connection.execute(_SLOT, names).fetchone()
        if row is None:
            return None
        kind, plugin, here, active, wal_status, confirmed, invalidated, reader = row
        problems = (
            ("it is not a logical slot", kind != "logical"),
            (f"its plugin is {plugin}", plugin != "pgoutput"),
            ("it belongs to another database", not here),
            (f"wal_status is {wal_status}", wal_status == "lost"),
            (f"invalidated: {invalidated}", invalidated is not None),
            ("its creation was not finished", confirmed is None),
        )
        problem = next((text for text, holds in problems if holds), "")
        ours = kind == "logical" and plugin == "pgoutput" and here
        position = parse_lsn(confirmed or "0/0")
        return SlotFacts(name, position, active, not problem, problem, ours, reader or "")

    def _present(self, witness_id: str, witness_xid: int | None) -> bool:
        outbox = self._outbox
        query = psycopg.sql.SQL("select exists (select from {} where {} = %s").format(
            outbox.name, outbox.column("id")
        )
        parameters: list[object] = [witness_id]
        if outbox.has_xid and witness_xid:  # 0: applied before the outbox had an xid column
            query += psycopg.sql.SQL(" and ({} = %s::xid8 or {})").format(
                outbox.column("xid"), outbox.is_stranger()
            )
            parameters.append(str(witness_xid))
        row = self.connection.execute(query + psycopg.sql.SQL(")"), parameters).fetchone()
        if row is not None and row[0]:
            return True
        if witness_xid is not None and witness_xid in self._now().xip:
            raise Retry("the last applied event's transaction is not visible yet: checking again")
        return False

    def _slot_refused(self) -> SlotRefused | None:
        """Asked once a session: the answer may need a connection of its own."""
        if self._refused is None:
            self._refused = refusals(self.connection, self._dsn)
        return next(iter(self._refused), None)

    def _switch_points(self, timeline: int) -> dict[int, Lsn]:
        """The switch point of each earlier timeline. Needs the replication protocol; without it, unknown."""
        try:
            connection = open_replication(self._dsn, self._stream)
        except (psycopg.Error, CannotConnect):
            return {}
        try:
            rows = command(connection, f"TIMELINE_HISTORY {timeline}", "reading the timeline history")
        finally:
            connection.finish()
        text = (rows[0][1] or b"").decode(errors="replace")
        found = re.findall(r"^\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)", text, re.MULTILINE)
        return {int(old): parse_lsn(lsn) for old, lsn in found}

    # --- the registry ---------------------------------------------------------------------------

    def registration(self) -> Registration | None:
        row = self.connection.execute(
            "select target_system, target_database, slot, floor::text, witness_id, reached::text, session"
            " from outbox.stream where stream = %s",
            [self._stream],
        ).fetchone()
        if row is None:
            return None
        system, database, slot, floor, witness, reached, session = row
        found = Registration(
            self._stream, system, database, slot, parse_snapshot(floor), witness, parse_lsn(reached), session
        )
        return found if self._relay is None else placed(self.connection, found)

    def register(self, registration: Registration, holder: str | None) -> None:
        """Write the registration that this session holds, or raise; see requests.Register."""
        with self.connection.transaction():
            self.connection.execute("set local synchronous_commit = local")  # flushed, whatever the role has
            written = self.connection.execute(
                _REGISTER_FIRST if holder is None else _REGISTER,
                {
                    "stream": registration.stream,
                    "system": registration.target_system,
                    "database": registration.target_database,
                    "slot": registration.slot,
                    "floor": str(registration.floor),
                    "witness": registration.witness_id,
                    "reached": format_lsn(registration.reached),
                    "session": registration.session,
                    "holder": holder,
                },
            ).rowcount
            if written and holder is None:
                take_over(self.connection, registration.stream)
            if written and self._relay:
                place(self.connection, registration)
        if written:
            return
        now = self.registration()
        if now is not None and now.session.startswith(MOVER):
            raise StandBy(f"stream {self._stream} is being divided anew: bridge scale repartition")
        if holder == registration.session:
            raise Fenced(
                f"stream {self._stream} was taken over by another bridge: its row in "
                "outbox.stream has another session, and this bridge writes nothing more"
            )
        raise Retry(
            f"another session of stream {self._stream} has registered since this one started",
            reason="registry_taken",
        )

    def pruned(self) -> Pruned | None:
        """Wait for a prune batch that started before our floor was registered."""
        row = self.connection.execute("select xid::text, floor::text from outbox.pruned for share").fetchone()
        # Of another cluster, its xids say nothing of this stream's floor.
        return _mark(row) if row is not None and is_here(self.connection) else None

    # --- while streaming ------------------------------------------------------------------------

    def observe(self, slot: str, position: Lsn) -> Observation:
        """One statement, whose snapshot is taken before it reads the insert position."""
        identity, snapshot, insert, active, retained, safe, flush, hides, incarnation = self._row(
            "select "
            + self._identity
            + ", pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, s.active,"
            " pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint, s.safe_wal_size,"
            " pg_current_wal_flush_lsn()::text, "
            + _HIDES
            + (INCARNATION if self._relay else ", null::int")
            + " from (values (1)) as one left join pg_catalog.pg_replication_slots s on s.slot_name = %(slot)s"
            " and s.database = current_database()",
            {**self._names, "slot": slot, "relay": self._relay},
        )
        if hides:
            require_every_row(self.connection, self._outbox)
        if active is None:
            raise Retry(f"slot {slot} no longer exists", reason="slot_missing")
        if parse_lsn(flush) < position:
            raise Retry(
                f"the source's WAL ends at {flush}, before {format_lsn(position)}", reason="source_behind"
            )
        self.health = SlotHealth(active, retained or 0, safe)
        when, where = self._idle_written
        due = time.monotonic() - when >= IDLE_WRITE_SECONDS and position - where >= IDLE_WRITE_BYTES
        if due:
            self._idle_written = (time.monotonic(), position)
        return Observation(identity, parse_snapshot(snapshot), parse_lsn(insert), due, incarnation)

    def take_snapshot(self) -> tuple[Snapshot, Lsn]:
        """A goal for polling. Raises Halt if rows could be hidden from what is read next."""
        snapshot, insert, hides = self._row(
            "select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, " + _HIDES, self._names
        )
        if hides:
            require_every_row(self.connection, self._outbox)
        return parse_snapshot(snapshot), parse_lsn(insert)

    def _now(self) -> Snapshot:
        return parse_snapshot(self._row("select pg_current_snapshot()::text")[0])

    def still_running(self, snapshot: Snapshot) -> bool:
        """Is any xid that is visible in `snapshot` still running?"""
        now = self._now()
        return any(snapshot.shows(xid) for xid in now.xip) or now.xmax < snapshot.xmax

    def visible(self, xids: list[int]) -> bool:
        """Are all of these transactions visible by now? The stream can run ahead of visibility."""
        now = self._now()
        return all(now.shows(xid) for xid in xids)

    def holding_up(self) -> str:
        """The transaction that slot creation waits for: the oldest one with an xid, in any database."""
        row = self.connection.execute(
            "select * from (select 'pid ' || pid || ' in database ' || datname, age(backend_xid)"
            " from pg_catalog.pg_stat_activity where backend_xid is not null union all"
            " select 'prepared transaction ' || gid || ' in database ' || database, age(transaction)"
            " from pg_catalog.pg_prepared_xacts) as t(what, age) order by age desc limit 1"
        ).fetchone()
        return "" if row is None else f"slot creation waits for {row[0]}"

    def close(self) -> None:
        self.connection.close()


def _mark(row: Sequence[str | None]) -> Pruned | None:
    """xid and floor; without them nothing was pruned. Tested here: a WHERE would pass by a first batch in flight."""
    xid, floor = row
    return None if xid is None or floor is None else Pruned(int(xid), parse_snapshot(floor))


def require_outbox(connection: psycopg.Connection, outbox: Outbox) -> None:
    """Raise Halt, with the command to run, if the outbox or its registry does not exist."""
    row = connection.execute(
        "select to_regclass(%s) is not null, to_regclass('outbox.stream') is not null",
        [outbox.name.as_string()],
    ).fetchone()
    if row is None or not all(row):
        raise Halt(
            f"the source has no table {outbox.schema}.{outbox.table} or no registry outbox.stream",
            reason="outbox_missing",
            hint="bridge install",
        )
    require_every_row(connection, outbox)


def require_every_row(connection: psycopg.Connection, outbox: Outbox) -> None:
    """Raise Halt if row-level security could hide rows of the outbox or its registry: a read would take what it is
    shown for everything."""
    tables = [(outbox.schema, outbox.table), ("outbox", "stream"), ("outbox", "pruned")]
    found = hidden_rows(connection, tables)
    if found:
        raise Halt(
            "; ".join(each.message for each in found),
            reason="row_security",
            hint="; ".join(dict.fromkeys(each.fix for each in found)),
        )
