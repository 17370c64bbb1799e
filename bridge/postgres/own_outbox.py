"""What an outbox of the customer's own must be, column by column: asked by doctor and at every start.

Errors are what would make an event mean something else, or stop the stream at the first row. Warnings are what costs
single rows: a NULL is a dead letter, and where seq or id is not unique the promise is weaker, but nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, LiteralString

import psycopg
from psycopg import sql

from bridge.errors import Halt
from bridge.postgres.outbox import COUNTED, Outbox

_COLUMNS: LiteralString = f"""
    with recursive base (oid, root) as (
        select oid, oid from pg_catalog.pg_type where typbasetype = 0
        union all
        select t.oid, b.root from pg_catalog.pg_type t join base b on t.typbasetype = b.oid
    )
    select a.attname, root.typname, a.attnotnull, a.attgenerated::text,
        {COUNTED} or exists (
            select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisunique and i.indisvalid
                and i.indpred is null and i.indexprs is null and i.indnkeyatts = 1 and i.indkey[0] = a.attnum),
        c.relkind = 'v'
    from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid
        join base on base.oid = a.atttypid join pg_catalog.pg_type root on root.oid = base.root
        left join pg_catalog.pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum and a.attgenerated = ''
    where c.oid = to_regclass(%s) and a.attnum > 0 and not a.attisdropped"""

_SENDS_GENERATED: LiteralString = (
    "select coalesce(to_jsonb(p) ->> 'pubgencols', 'n') = 's' from pg_catalog.pg_publication p"
    " where p.pubname = %s"
)

_TYPES = {
    "seq": {"int2", "int4", "int8"},
    "xid": {"xid8"},
    "occurred_at": {"timestamptz", "timestamp", "date"},
}
"""Postgres compares these; any other type makes the reading of the table fail."""
_WORDS = {"seq": "bigint", "xid": "xid8", "occurred_at": "timestamptz"}
_DOCUMENTS = {"json", "jsonb", "text", "varchar", "bpchar", "bytea"}


@dataclass(frozen=True, slots=True)
class OutboxFinding:
    """level: an error halts the stream (reason `outbox_columns`). fix: SQL where it ends with a semicolon."""

    level: Literal["error", "warn"]
    check: str
    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class _Column:
    field: str
    name: str
    type: str
    not_null: bool
    generated: str  # "", "s": stored, "v": virtual
    unique: bool  # by an index, or because Postgres counts it up


def outbox_findings(
    connection: psycopg.Connection, outbox: Outbox, publication: str | None
) -> list[OutboxFinding]:
    """None for the outbox that install makes. Columns that do not exist are left out. publication: None where a
    slot is not wanted."""
    if not outbox.is_foreign:
        return []
    rows = connection.execute(_COLUMNS, [outbox.name.as_string()]).fetchall()
    of_name = {row[0]: row for row in rows}
    view = any(row[5] for row in rows)
    columns = [
        _Column(field, *of_name[name][:5]) for field, name in outbox.columns.items() if name in of_name
    ]
    found = [*_types(outbox, columns)]
    if publication is not None:
        found += _generated(connection, outbox, columns, publication)
    if not view:  # it says nothing of NULL or of unique values
        found += [*_nulls(outbox, columns), *_repeated(outbox, columns)]
    return found


def require_columns(connection: psycopg.Connection, outbox: Outbox, publication: str | None) -> None:
    """Raise Halt for the errors."""
    errors = [one for one in outbox_findings(connection, outbox, publication) if one.level == "error"]
    if errors:
        raise Halt(
            "; ".join(one.message for one in errors),
            reason="outbox_columns",
            hint="\n".join(one.fix for one in errors),
        )


def _said(outbox: Outbox, column: _Column) -> str:
    return f"column {column.name} of {outbox.schema}.{outbox.table} (source.columns.{column.field})"


def _altered(outbox: Outbox, column: _Column, change: str) -> str:
    name = sql.Identifier(column.name).as_string()
    return f"alter table {outbox.name.as_string()} alter column {name} {change};"


def _types(outbox: Outbox, columns: list[_Column]) -> Iterator[OutboxFinding]:
    for column in columns:
        wanted = _TYPES.get(column.field)
        if wanted is not None and column.type not in wanted:
            yield OutboxFinding(
                "error",
                f"{column.field}_type",
                f"{_said(outbox, column)} is of type {column.type}, and must be {_WORDS[column.field]}",
                f"name a column of type {_WORDS[column.field]} in source.columns.{column.field}, or add one",
            )
        if column.field == "payload" and column.type not in _DOCUMENTS:
            yield OutboxFinding(
                "error",
                "payload_type",
                f"{_said(outbox, column)} is of type {column.type}, whose text is no JSON",
                _altered(
                    outbox, column, f"type jsonb using to_jsonb({sql.Identifier(column.name).as_string()})"
                ),
            )


def _generated(
    connection: psycopg.Connection, outbox: Outbox, columns: list[_Column], publication: str
) -> Iterator[OutboxFinding]:
    """A slot does not have them, the table does: one event would have two values."""
    row = connection.execute(_SENDS_GENERATED, [publication]).fetchone()
    sent = bool(row and row[0])
    for column in columns:
        if not column.generated or (column.generated == "s" and sent):
            continue
        stored = column.generated == "s" and connection.info.server_version >= 180000
        said = "does not publish it" if stored else "cannot publish it on this server"
        if stored:
            name = sql.Identifier(publication).as_string()
            fix = f"alter publication {name} set (publish_generated_columns = 'stored');"
        elif column.generated == "s":
            fix = (
                _altered(outbox, column, "drop expression")
                + "  -- and let the application or a trigger fill it"
            )
        else:
            fix = f"make {column.name} a column that is stored, or set source.capture to poll"
        yield OutboxFinding(
            "error",
            "column_generated",
            f"{_said(outbox, column)} is generated, and publication {publication} {said}: "
            "by the stream it would be NULL, by the table it would not",
            fix,
        )


def _nulls(outbox: Outbox, columns: list[_Column]) -> Iterator[OutboxFinding]:
    for column in columns:
        if column.field in ("id", "type", "payload", "seq") and not column.not_null:
            yield OutboxFinding(
                "warn",
                "outbox_null",
                f"{_said(outbox, column)} may be NULL: such a row becomes a dead letter",
                _altered(outbox, column, "set not null"),
            )


def _repeated(outbox: Outbox, columns: list[_Column]) -> Iterator[OutboxFinding]:
    means = {
        "seq": "catch-up applies all rows of one seq in one transaction, and a version: of $meta.seq knows no order",
        "id": "two rows with one id are two events, and neither $meta.id nor a sink's receiver can tell them apart",
    }
    for column in columns:
        if column.field in means and not column.unique:
            name = sql.Identifier(column.name).as_string()
            yield OutboxFinding(
                "warn",
                f"{column.field}_not_unique",
                f"{_said(outbox, column)} has no unique index: {means[column.field]}",
                f"create unique index concurrently on {outbox.name.as_string()} ({name});",
            )
