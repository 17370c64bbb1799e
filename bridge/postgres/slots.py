"""Create a slot with its exported snapshot, or drop one. Creation waits for transactions, so it has its own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import LiteralString

import psycopg

from bridge.errors import Halt
from bridge.postgres.connect import connect
from bridge.postgres.outbox import Outbox
from bridge.postgres.profiles import SOURCE
from bridge.postgres.replication import command, open_replication, quoted
from bridge.protocol.events import Lsn, Snapshot, parse_lsn, parse_snapshot

_OURS: LiteralString = "database = current_database() and plugin = 'pgoutput'"

_USABLE: LiteralString = (
    f"select 1 from pg_catalog.pg_replication_slots where {_OURS} and wal_status <> 'lost' and"
)

_FAILOVER_SLOTS = 170000  # the first server version that knows them


class SlotMaker:
    """Creates one slot in the background. CREATE_REPLICATION_SLOT waits for every transaction of the
    cluster that has an xid, in any database, prepared ones too."""

    def __init__(
        self, dsn: str, stream: str, name: str, done: Callable[[], None], *, failover: bool = False
    ) -> None:
        """done: called from the thread. failover: standbys may synchronize the slot; not before PostgreSQL 17."""
        self._dsn = dsn
        self._stream = stream
        self._name = name
        self._done = done
        self._made: tuple[Lsn, Snapshot] | None = None
        self._error: BaseException | None = None
        self._connection = open_replication(dsn, stream)
        self._connection.nonblocking = 0
        self._failover = failover and self._connection.server_version >= _FAILOVER_SLOTS
        self._thread = threading.Thread(target=self._run, name=f"slot {name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._made = self._create()
        except BaseException as error:
            self._error = error
        finally:
            self._connection.finish()
            self._done()

    def _create(self) -> tuple[Lsn, Snapshot]:
        doing = f"creating slot {self._name}"
        options = "(SNAPSHOT 'export', FAILOVER true)" if self._failover else "EXPORT_SNAPSHOT"
        rows = command(
            self._connection,
            f"CREATE_REPLICATION_SLOT {quoted(self._name)} LOGICAL pgoutput {options}",
            doing,
        )
        point, exported = rows[0][1], rows[0][2]
        if point is None or exported is None:
            raise Halt(f"{doing}: the server returned no snapshot", reason="replication_command")
        # Any command on the replication connection would destroy the snapshot: read it in another one.
        return parse_lsn(point.decode()), read_exported(self._dsn, self._stream, exported.decode())

    def made(self) -> tuple[Lsn, Snapshot] | None:
        """The consistent point and the snapshot; None while it waits. Raises the error of the creation."""
        if self._thread.is_alive():
            return None
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._made

    def abandon(self) -> None:
        """Stop waiting; the server removes an unfinished slot."""
        if self._thread.is_alive():
            self._connection.get_cancel().cancel()
            self._thread.join(timeout=5)


def read_exported(dsn: str, stream: str, name: str) -> Snapshot:
    """pg_current_snapshot() inside an exported snapshot."""
    with connect(dsn, SOURCE, stream) as connection:
        connection.begin("isolation level repeatable read, read only")
        connection.execute(
            f"set transaction snapshot '{name}'"
        )  # utility: takes no parameter; the server named it
        row = connection.execute("select pg_current_snapshot()::text").fetchone()
    if row is None:
        raise Halt("no snapshot could be read", reason="replication_command")
    return parse_snapshot(row[0])


def give_up_slot(dsn: str, stream: str, limit: int) -> str | None:
    """Drop the stream's slot if it retains more than `limit` bytes of WAL and nobody reads it. Returns its name, or
    None."""
    return _give_up(
        dsn,
        stream,
        "not s.active and pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) > %(limit)s",
        {"limit": limit},
    )


def give_up_relays_slot(dsn: str, relay: str, limit: int) -> str | None:
    """The same for the slot of a relay."""
    with connect(dsn, SOURCE, relay) as source:
        row = source.execute(
            "select s.slot_name from pg_catalog.pg_replication_slots s join outbox.relay r"
            " on s.slot_name = r.relay || '_' || r.incarnation and r.relay = %(relay)s"
            " where s.database = current_database() and not pg_is_in_recovery() and not s.active"
            " and pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) > %(limit)s",
            {"relay": relay, "limit": limit},
        ).fetchone()
        if row is None:
            return None
        drop_slot(source, row[0])
        return str(row[0])


def give_up_renamed_slot(dsn: str, stream: str, outbox: Outbox) -> str | None:
    """Drop the stream's slot, whose WAL has another name for a column of the outbox, if the table has every column
    now. Returns its name, or None.

    Not if a column was dropped and added again (then the table has a dropped column before it): its old values are
    only in the WAL, and a person must decide whether they may be lost.
    """
    needed = list(outbox.columns.values())
    return _give_up(
        dsn,
        stream,
        "(select count(*) from pg_catalog.pg_attribute a"
        "  where a.attrelid = to_regclass(%(table)s) and not a.attisdropped and a.attname = any(%(needed)s)"
        "  and not exists (select from pg_catalog.pg_attribute d where d.attrelid = a.attrelid"
        "   and d.attisdropped and d.attnum < a.attnum)) = cardinality(%(needed)s)",
        {"table": outbox.name.as_string(), "needed": needed},
    )


def _give_up(dsn: str, stream: str, where: LiteralString, values: Mapping[str, object]) -> str | None:
    """Drop the slot that the stream is registered with, if the condition on it (`s`) is true and the server accepts
    writes. Returns its name, or None."""
    with connect(dsn, SOURCE, stream) as source:
        row = source.execute(
            "select s.slot_name from pg_catalog.pg_replication_slots s"
            " join outbox.stream r on r.slot = s.slot_name and r.stream = %(stream)s"
            " and s.database = current_database()"
            f" where not pg_is_in_recovery() and {where}",
            {"stream": stream, **values},
        ).fetchone()
        if row is None:
            return None
        drop_slot(source, row[0])
        return str(row[0])


def slots_of(connection: psycopg.Connection, stream: str) -> list[tuple[str, int, bool]]:
    """Slots of this database by the stream's name, <stream>_<n>: name, bytes of WAL that it retains, whether somebody
    reads it."""
    rows = connection.execute(
        "select slot_name::text, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, active"
        f" from pg_catalog.pg_replication_slots where {_OURS}"
        " and starts_with(slot_name::text, %(name)s) and substr(slot_name::text, length(%(name)s) + 1) ~ '^[0-9]+$'"
        " order by 1",
        {"name": f"{stream}_"},
    ).fetchall()
    return [(str(name), int(retained), bool(active)) for name, retained, active in rows]


def copy_slot(connection: psycopg.Connection, name: str, other: str) -> bool:
    """Make a slot `other` at the position of the slot `name`, which nobody reads. False: there is none to copy, or it
    lost its WAL, or the server has no room for another, or another database has one of that name. A slot `other` that
    is there already is taken for the copy of an attempt that was interrupted."""
    if connection.execute(f"{_USABLE} slot_name = %s", [other]).fetchone():
        return True
    if not connection.execute(f"{_USABLE} not active and slot_name = %s", [name]).fetchone():
        return False
    try:
        connection.execute("select pg_copy_logical_replication_slot(%s::name, %s::name)", [name, other])
    except (psycopg.errors.DuplicateObject, psycopg.errors.ConfigurationLimitExceeded):
        return False
    return True


def drop_slot(connection: psycopg.Connection, name: str) -> None:
    """Drop the slot if it exists. Waits for our own walsender, which may not have ended yet. A slot of another
    database or of another program is left alone, whatever its name: names are the cluster's."""
    connection.execute(
        "select pg_terminate_backend(active_pid) from pg_replication_slots"
        f" where {_OURS} and slot_name = %s and active and pg_has_role(current_user,"
        " (select usesysid from pg_stat_activity where pid = active_pid), 'usage')",
        [name],
    )
    for _ in range(50):
        try:
            connection.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                f" where {_OURS} and slot_name = %s",
                [name],
            )
        except psycopg.errors.ObjectInUse:
            connection.execute("select pg_sleep(0.1)")
        except psycopg.errors.UndefinedObject:
            return
        else:
            return
    raise Halt(
        f"slot {name} is in use and cannot be dropped",
        reason="slot_in_use",
        hint=f"end what reads it: select active_pid from pg_replication_slots where slot_name = '{name}'",
    )
