"""Do the outbox's rows have xids of this cluster? What a start would halt for, before it does."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import sql

from bridge.doctor.check import Check
from bridge.postgres.origin import is_here, origins
from bridge.postgres.outbox import BORN, Outbox, foreign_rows
from bridge.postgres.progress import registered
from bridge.postgres.publication import REPLICATED
from bridge.protocol.events import NOTHING, parse_snapshot
from bridge.stream.spec import StreamSpec

_ADOPT = "bridge recover --adopt-outbox"


def xids(source: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
    """Each cause for rows that no position of the stream can place, with its fix."""
    outbox = plan.outbox.on(source)
    if not outbox.has_xid:
        return
    table = outbox.name.as_string()
    row = source.execute(sql.SQL("select {}").format(sql.SQL(REPLICATED)), {"table": table}).fetchone()
    if row and row[0]:
        yield Check(
            "error",
            "source",
            "foreign_xids",
            f"a subscription writes into {outbox.schema}.{outbox.table}: its rows keep the xids of their publisher",
            *(("bridge install", "command") if not outbox.is_foreign else (_trigger(source, outbox), "sql")),
        )
    streams = source.execute("select count(*) from outbox.stream").fetchone()
    if streams and streams[0] and not is_here(source):
        yield Check(
            "error",
            "source",
            "outbox_restored",
            f"the outbox was restored here from cluster {origins(source)[0]}: its xids, its streams' positions and "
            "the marks of pruning mean nothing here",
            _ADOPT,
            "command",
        )
    known = registered(source, plan.stream)
    floor = NOTHING if known is None else parse_snapshot(known["floor"])
    try:
        if floor == NOTHING and not _has_unknown(source, outbox):
            return  # whatever their number is, it is older than the next: it never becomes another transaction's
        foreign = foreign_rows(source, outbox, floor)
    except psycopg.errors.UndefinedColumn:
        return  # the check of the columns says so
    if foreign is None:
        return
    if floor == NOTHING:
        yield Check(
            "warn",
            "source",
            "foreign_xids",
            f"{foreign}: a stream that starts applies them once; a later change of such a row stops it",
            f"update {table} set {outbox.column('xid').as_string()} = {BORN}"
            f" where {outbox.is_stranger().as_string()};",
            "sql",
        )
    else:
        yield Check(
            "error", "source", "foreign_xids", f"{foreign}, and came after the checkpoint", _ADOPT, "command"
        )


def _has_unknown(source: psycopg.Connection, outbox: Outbox) -> bool:
    """By the index on (xid, seq): rows without an xid, or with one that is not given out yet."""
    query = sql.SQL(
        "select exists (select from {0} where {1} is null or {1} >= pg_snapshot_xmax(pg_current_snapshot()))"
    ).format(outbox.name, outbox.column("xid"))
    return source.execute(query).fetchone() == (True,)


def is_partitioned(source: psycopg.Connection, outbox: Outbox) -> bool:
    row = source.execute(
        "select relkind = 'p' from pg_catalog.pg_class where oid = to_regclass(%s)", [outbox.name.as_string()]
    ).fetchone()
    return bool(row and row[0])


def _trigger(source: psycopg.Connection, outbox: Outbox) -> str:
    """Gives replicated rows an xid of this cluster; see sql/source/005_origin.sql."""
    table = outbox.name.as_string()
    names = [outbox.columns["xid"], outbox.columns.get("seq", "")]
    sequence = None
    if names[1]:
        [sequence] = source.execute(
            "select pg_get_serial_sequence(%s, %s)", [table, names[1]]
        ).fetchone() or [None]
    arguments = ", ".join(sql.Literal(value).as_string() for value in (*names, sequence or ""))
    return (
        f"create or replace trigger outbox_local_xid before insert or update on {table}"
        f" for each row execute function outbox.local_xid({arguments});\n"
        f"alter table {table} enable replica trigger outbox_local_xid;"
    )
