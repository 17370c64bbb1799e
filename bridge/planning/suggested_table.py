"""A table for a mapping that has none yet, as SQL for the customer to run: columns, types, key, grants.

A type follows from what fills the column: the event's own fields, the contract, or a looked-up column as its server
describes it. What none of them tells is text, with a comment that says so. The bridge never runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bridge.planning.plan import keyed_by_event
from bridge.planning.spec import ContractSpec, FieldSpec, PipelineSpec, TableSpec

_META = {
    "id": "uuid",
    "type": "text",
    "key": "text",
    "seq": "bigint",
    "occurred_at": "timestamptz",
    "idempotency_key": "text",
    "headers": "jsonb",
    "source": "text",
}
_ALWAYS = ("$meta.source", "$meta.id", "$meta.type", "$meta.seq", "$event")
_FIELD = {
    "string": "text",
    "number": "numeric",
    "integer": "bigint",
    "boolean": "boolean",
    "object": "jsonb",
    "array": "jsonb",
    "timestamp": "timestamptz",
    "any": "jsonb",
}
_PLAIN = re.compile(r"""\$([A-Za-z_]\w*)(?:\.(\w+)|\[(['"])([^'"\\]+)\3\])?""")
_WORD = re.compile(r"[a-z_][a-z0-9_]*")
# Words that cannot be a column's or a table's name without quotes: `pg_get_keywords()`, categories R and T, of all
# supported versions (PostgreSQL manual, appendix C); quoting more does no harm.
_WORDS = (
    "all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation "
    "column concurrently constraint create cross current_catalog current_date current_role current_schema "
    "current_time current_timestamp current_user default deferrable desc distinct do else end except false fetch for "
    "foreign freeze from full grant group having ilike in initially inner intersect into is isnull join lateral "
    "leading left like limit localtime localtimestamp natural not notnull null offset on only or order outer overlaps "
    "placing primary references returning right select session_user similar some symmetric system_user table "
    "tablesample then to trailing true union unique user using variadic verbose when where window with"
)
_RESERVED = frozenset(_WORDS.split())

UNKNOWN = "nothing tells its type"


@dataclass(frozen=True, slots=True)
class SuggestedColumn:
    """type: as SQL. doubt: why the type may be another; empty: it is known."""

    name: str
    type: str
    not_null: bool = False
    doubt: str = ""


def quoted(name: str) -> str:
    """An identifier, in quotes where it needs them."""
    if _WORD.fullmatch(name) and name not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def contracts_of(pipeline: PipelineSpec, contracts: Mapping[str, ContractSpec]) -> list[ContractSpec]:
    """The contracts of the types that a pipeline takes."""
    return [
        one for name, one in contracts.items() if any(fnmatchcase(name, each) for each in pipeline.events)
    ]


def suggested_columns(
    spec: TableSpec, contracts: Sequence[ContractSpec], looked_up: Mapping[str, Mapping[str, str]]
) -> list[SuggestedColumn]:
    """contracts: of the types that the pipeline takes. looked_up: the name of an enrichment -> column -> type."""
    mapping: dict[str, Any] = dict(spec.columns or {})
    if spec.columns is None:
        mapping = {"event_id": "$meta.id"}
        mapping |= {field.name: f"$event.{field.name}" for one in contracts for field in one.fields}
        mapping |= {"occurred_at": "$meta.occurred_at", "payload": "$event"}
    if spec.version_column is not None:
        mapping.setdefault(spec.version_column, spec.version)
    return [_column(name, value, contracts, looked_up) for name, value in mapping.items()]


def _column(
    name: str,
    value: Any,
    contracts: Sequence[ContractSpec],
    looked_up: Mapping[str, Mapping[str, str]],
) -> SuggestedColumn:
    found = _PLAIN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return _of_literal(name, value)
    root, field = found[1], found[2] or found[4]
    if value == "$event":
        return SuggestedColumn(name, "jsonb", not_null=True)
    if root == "meta":
        return SuggestedColumn(name, _META.get(field or "", "text"), not_null=value in _ALWAYS)
    if root == "event" and field is not None:
        return _of_field(
            name, [one for each in contracts for one in each.fields if one.name == field], len(contracts)
        )
    kind = looked_up.get(root, {}).get(field or "")
    return SuggestedColumn(name, kind or "text", doubt="" if kind else UNKNOWN)


def _of_field(name: str, fields: Sequence[FieldSpec], contracts: int) -> SuggestedColumn:
    kinds = {_FIELD[one.type] for one in fields}
    if len(kinds) != 1:
        doubt = "its contracts say different types" if kinds else "no contract has it"
        return SuggestedColumn(name, "text", doubt=doubt)
    always = len(fields) == contracts and all(one.required and not one.nullable for one in fields)
    return SuggestedColumn(name, kinds.pop(), not_null=always)


def _of_literal(name: str, value: Any) -> SuggestedColumn:
    if isinstance(value, bool):
        return SuggestedColumn(name, "boolean")
    if isinstance(value, int):
        return SuggestedColumn(name, "bigint")
    if isinstance(value, dict | list):
        return SuggestedColumn(name, "jsonb")
    if value is None or isinstance(value, str):
        plain = isinstance(value, str) and not value.startswith("$")
        return SuggestedColumn(name, "text", doubt="" if plain else UNKNOWN)
    return SuggestedColumn(name, "numeric")


def statements(
    spec: TableSpec, columns: Sequence[SuggestedColumn], role: str, *, lines: bool = False
) -> Iterator[str]:
    """The schema, the table and the grants for `role` (as SQL), one statement each. lines: a column a line."""
    table = f"{quoted(spec.schema)}.{quoted(spec.table)}"
    key = tuple(spec.key) if spec.mode == "upsert" else ()
    if not key:
        mapping = spec.columns or {"event_id": "$meta.id"}
        key = tuple(one.name for one in columns if mapping.get(one.name) == "$meta.id")[:1]
    parts = []
    for one in columns:
        words = [quoted(one.name), one.type]
        if key == (one.name,):
            words.append("primary key")
        elif one.not_null or one.name in key:
            words.append("not null")
        parts.append(" ".join(words) + (f" /* {one.doubt}: correct it */" if one.doubt else ""))
    if len(key) > 1:
        parts.append(f"primary key ({', '.join(map(quoted, key))})")
    inside = ",\n    ".join(parts) if lines else ", ".join(parts)
    if spec.schema != "public":
        yield f"create schema if not exists {quoted(spec.schema)};"
    body = f"\n    {inside}\n" if lines else inside
    yield f"create table if not exists {table} ({body});"
    yield f"grant usage on schema {quoted(spec.schema)} to {role};"
    rights = "insert" if spec.mode == "insert" and not keyed_by_event(spec) else "select, insert, update"
    yield f"grant {rights} on {table} to {role};"
