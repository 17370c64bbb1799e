"""The first configuration for an event of one's own: contract, pipeline, a config test, and the table as SQL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from bridge.config.connection import split_table
from bridge.config.contract import FIELD_TYPES
from bridge.config.document import parse
from bridge.config.load import build
from bridge.config.specs import contract_specs, pipeline_specs
from bridge.errors import ConfigError
from bridge.planning.spec import TableSpec
from bridge.planning.suggested_table import contracts_of, statements, suggested_columns
from bridge.problem import InvalidConfig, nearest

_SAMPLES: dict[str, Any] = {
    "string": "some text",
    "number": 1.5,
    "integer": 1,
    "boolean": True,
    "object": {},
    "array": [],
    "timestamp": "2027-01-01T00:00:00Z",
    "any": "anything",
}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.?-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
ROLE = "outbox_bridge"
_SYSTEM = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
"""Every table has these columns already (PostgreSQL manual, 5.6)."""
_LONGEST = 63
"""Bytes of a name in Postgres, which cuts longer ones (PostgreSQL manual, 4.1.1)."""


def field_of(text: str) -> tuple[str, str]:
    """`customer_id:string` or `plan:string?`. Raises ConfigError."""
    name, colon, kind = text.partition(":")
    known = kind.strip().removesuffix("?")
    if not colon or not re.fullmatch(r"[A-Za-z_]\w*", name.strip()) or known not in FIELD_TYPES:
        near = nearest(known, FIELD_TYPES) if colon else ""
        raise ConfigError(
            f"a field is name:type, with ? behind the type where it may be absent; {text!r} is not"
            + (f"; {near}" if near else ""),
            hint=f"such as customer_id:string or plan:string?; types: {', '.join(FIELD_TYPES)}",
        )
    return name.strip(), kind.strip()


def usual_table(event: str) -> str:
    """The table that is offered: events.usage_limit_reached."""
    words = re.sub(r"[^a-z0-9]+", "_", event.lower()).strip("_")[:57]
    return "events." + (words if words[:1].isalpha() else f"type_{words}")


def own_event(event: str, fields: Sequence[tuple[str, str]], table: str) -> tuple[str, str]:
    """bridge.yaml and target.sql. Raises ConfigError where the names would make a configuration that does not load."""
    if not event or "${" in event:
        raise ConfigError(f"{event!r} is no event type", hint="--event order.placed")
    if not fields:
        raise ConfigError("an event needs a field", hint="--field customer_id:string")
    twice = [name for name, _ in fields if [one for one, _ in fields].count(name) > 1]
    if twice:
        raise ConfigError(f"field {twice[0]} is there twice", hint="leave one of them out")
    split = split_table(table)
    if split is None:
        raise ConfigError(f"{table!r} is no table of a schema", hint="--table public.limits")
    if split[0].startswith("pg_") or split[0] == "information_schema":
        raise ConfigError(f"schema {split[0]} is PostgreSQL's own", hint="--table public.limits")
    if any(len(one.encode()) > _LONGEST for one in split):
        raise ConfigError(
            f"{table!r} is too long: PostgreSQL cuts names at 63 bytes", hint="--table public.limits"
        )
    text = _yaml(event, dict(fields), table)
    document = parse(text, {}, file="bridge.yaml", directory=Path())
    config = build(document, offline=True)
    if config is None or document.problems:
        raise InvalidConfig("the configuration for this event", document.problems)
    [pipeline] = pipeline_specs(config)
    [spec] = pipeline.destinations.values()
    if not isinstance(spec, TableSpec):
        raise TypeError("the one destination is a table")
    columns = suggested_columns(spec, contracts_of(pipeline, contract_specs(config)), {})
    made = list(statements(spec, columns, ROLE, lines=True))
    ddl = [one for one in made if not one.startswith("grant")]
    grants = [f"--   {one}" for one in made if one.startswith("grant")]
    return text, "\n".join([*ddl, "", f"-- With the bridge's role named {ROLE}:", *grants, ""])


def _word(text: str) -> str:
    """A text as YAML: in quotes where it could be read as something else."""
    return (
        text
        if _PLAIN.fullmatch(text) and text.lower() not in _WORDS
        else json.dumps(text, ensure_ascii=False)
    )


def _yaml(event: str, fields: Mapping[str, str], table: str) -> str:
    pipeline = (re.sub(r"[^A-Za-z0-9]+", "-", event).strip("-") or "events")[:63]
    identity = next(one for one in _identities() if one not in fields)
    mapping = _mapping(fields)
    columns = {identity: "$meta.id"} | mapping
    columns |= {name: value for name, value in _BESIDE.items() if name not in columns}
    sample = {name: _SAMPLES[kind.removesuffix("?")] for name, kind in fields.items()}
    first = {next(iter(mapping)): next(iter(sample.values()))}
    return "\n".join(
        [
            "# Your event into your table. bridge lint, bridge test; docs/configuration.md has every key.",
            "version: 1",
            "",
            "source:",
            "  dsn: ${SOURCE_DSN:?the database that holds the outbox}",
            "",
            "connections:",
            "  warehouse:",
            "    type: postgres",
            f"    dsn: ${{WAREHOUSE_DSN:?the database that holds {re.sub(r'[^A-Za-z0-9_.]', '_', table)}}}",
            "",
            "events:",
            f"  {_word(event)}:",
            *(f"    {_word(name)}: {kind}" for name, kind in fields.items()),
            "",
            "pipelines:",
            f"  {_word(pipeline)}:",
            f"    event: {_word(event)}",
            "    destinations:",
            "      rows:",
            "        connection: warehouse",
            f"        table: {_word(table)}",
            "        mode: upsert",
            f"        key: [{identity}]",
            "        columns:",
            *(f"          {_word(name)}: {value}" for name, value in columns.items()),
            "",
            "tests:",
            "  - name: an event lands in the table",
            f"    pipeline: {_word(pipeline)}",
            f"    event: {json.dumps(sample, ensure_ascii=False)}",
            f"    expect: {{ rows: {json.dumps(first, ensure_ascii=False)} }}",
            "",
        ]
    )


def _identities() -> Iterator[str]:
    """The names that the column of the event's id may have, the best first."""
    yield "event_id"
    yield "outbox_event_id"
    yield from (f"outbox_event_id_{number}" for number in count(2))


def _mapping(fields: Mapping[str, str]) -> dict[str, str]:
    """Column -> value. A column is called as its field where Postgres has a column of that name."""
    columns: dict[str, str] = {}
    for name in fields:
        wanted = f"{name}_" if name in _SYSTEM else name
        cut = wanted.encode()[:_LONGEST].decode(errors="ignore")
        others = (f"{cut[:40]}_{number}" for number in count(2))
        free = next(one for one in chain([cut], others) if one not in columns)
        columns[free] = f"$event.{name}" if name.isascii() else f"$event['{name}']"
    return columns


_BESIDE = {"occurred_at": "$meta.occurred_at", "payload": "$event"}
