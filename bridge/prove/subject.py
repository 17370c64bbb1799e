"""What is compared: a target table with all units that fill it, or the deliveries of one sink.

Which events belong there, and with which values, is the planner's word, evaluated without lookups: a column that
depends on an enrichment is not compared, and where a filter or branch does, an absent event is undecided. Where no
contract says which columns the default mapping fills, the newest events are asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import psycopg
from psycopg import sql

from bridge.errors import BridgeError
from bridge.expressions.expression import Expression, compile_expression
from bridge.planning.plan import Column, TableShape, keyed_by_event
from bridge.planning.rows import classify, names_of
from bridge.planning.spec import DestinationSpec, PipelineSpec, TableSpec, Unit
from bridge.planning.steps.step import StepContext, StepSpec
from bridge.postgres.catalog import table_shape
from bridge.postgres.outbox import Outbox
from bridge.postgres.stranded import former
from bridge.stream.spec import StreamSpec

NEWEST = 10_000
"""Number of events read. A field that none of them has is not compared, and the report says so."""

_NAMED = sql.SQL(
    "with newest as materialized (select {payload} as payload from {table} where {type} ~ %(types)s"
    " order by {xid} desc, {seq} desc limit %(limit)s)"
    " select name from unnest(%(names)s::text[]) as name"
    " where exists (select from newest where jsonb_exists(payload, name))"
)


def named_by_events(
    source: psycopg.Connection, outbox: Outbox, patterns: Sequence[str], names: Sequence[str]
) -> set[str]:
    """The `names` that are fields of a new event of these types. None for a customer's own outbox, whose payload may
    have any type."""
    if outbox.is_foreign or not names:
        return set()
    query = _NAMED.format(
        table=outbox.name, **{name: outbox.column(name) for name in ("payload", "type", "xid", "seq")}
    )
    types = "|".join(map(_expression, patterns))
    rows = source.execute(query, {"types": f"^({types})$", "limit": NEWEST, "names": list(names)})
    return {row[0] for row in rows}


EMPTIED = b'{"outbox.pruned": true}'
"""The headers of an event whose payload was pruned."""

_LACKED = sql.SQL(
    "select {columns} from {table} where {type} ~ %(types)s and coalesce({headers}::text <> %(emptied)s, true)"
)


def lacked_by_events(
    source: psycopg.Connection, outbox: Outbox, patterns: Sequence[str], paths: Mapping[str, Sequence[str]]
) -> set[str]:
    """The columns whose field, (column -> path), some event of these types does not have: the table's default or an
    earlier event's value is there, and nothing says which. One look at the whole outbox."""
    if not paths:
        return set()
    columns = [
        sql.SQL("bool_or({payload}::jsonb #> {path} is null)").format(
            payload=outbox.column("payload"), path=sql.Literal(list(path))
        )
        for path in paths.values()
    ]
    query = _LACKED.format(
        columns=sql.SQL(", ").join(columns),
        table=outbox.name,
        type=outbox.column("type"),
        headers=outbox.column("headers"),
    )
    types = f"^({'|'.join(map(_expression, patterns))})$"
    try:
        row = source.execute(query, {"types": types, "emptied": EMPTIED.decode()}).fetchone()
    except psycopg.errors.DataError:  # a payload that is no JSON, in an outbox of the customer's own
        return set(paths)
    return {name for name, lacked in zip(paths, row or (), strict=True) if lacked}


def _expression(glob: str) -> str:
    """A glob as a regular expression of Postgres; `[...]` is the same in both, but for its `!`."""
    parts = re.split(r"(\[[^]]+\]|[*?])", glob)
    words = {"*": ".*", "?": "."}
    return "".join(
        part.replace("[!", "[^", 1) if part.startswith("[") else words.get(part) or re.escape(part)
        for part in parts
    )


_SPECIAL = ("event_id", "occurred_at", "idempotency_key")


@dataclass(frozen=True, slots=True)
class Subject:
    """by: `event`, a row an event, found by `identity`; `key`, the last event of a key stays; `rows`, rows
    without identity, a multiset."""

    name: str
    stream: str
    units: tuple[Unit, ...]
    by: Literal["event", "key", "rows"]
    schema: str
    table: str
    identity: str | None = None
    key: tuple[Column, ...] = ()
    version: str | None = None
    latest: bool = True  # by key: False, the first event stays (mode insert)
    unique: bool = False  # by event: two units that send one event here make one row
    columns: tuple[Column, ...] = ()  # compared
    left_out: tuple[str, ...] = ()  # columns that depend on an enrichment
    unnamed: tuple[
        str, ...
    ] = ()  # columns that the default mapping fills where an event brings them; none was seen
    lacking: tuple[str, ...] = ()  # columns whose field some event does not have
    certain: bool = True  # routing does not depend on an enrichment
    sink: bool = False
    former: tuple[Unit, ...] = ()  # of a sink: names that it may have had, whose messages are its own
    shared: bool = False  # other sources fill the table too
    source: tuple[str, str] | None = None  # the column that has $meta.source, and what it is here
    pipelines: tuple[PipelineSpec, ...] = ()  # to be planned without lookups
    shapes: Mapping[Unit, TableShape] | None = None

    @property
    def mixed(self) -> bool:
        """Rows of other sources are there, and nothing tells them from ours."""
        return self.shared and self.source is None

    def own(self) -> sql.Composed:
        """Which rows `t` of the target are this stream's, as far as they say."""
        if self.sink:
            return sql.SQL("t.stream = {}").format(sql.Literal(self.stream))
        if self.shared and self.source is not None:
            column, name = self.source
            return sql.SQL("t.{}::text = {}").format(sql.Identifier(column), sql.Literal(name))
        return sql.SQL("true") + sql.SQL("")


def subjects(
    plan: StreamSpec,
    source: psycopg.Connection[Any],
    target: psycopg.Connection[Any],
    pipeline: str | None,
) -> list[Subject]:
    """Every subject that this stream writes, or only those of `pipeline`. Raises BridgeError if a table does not fit
    the configuration."""
    tables: dict[str, list[Unit]] = {}
    sinks: list[Unit] = []
    specs: dict[Unit, DestinationSpec] = {}
    for spec in plan.pipelines:
        for name, destination in spec.destinations.items():
            unit = (spec.name, name)
            specs[unit] = destination
            if isinstance(destination, TableSpec):
                if destination.connection == plan.connection:
                    tables.setdefault(destination.table, []).append(unit)
            elif unit in plan.sinks:
                sinks.append(unit)
    offline = {spec.name: _offline(spec) for spec in plan.pipelines}
    found = [
        _table(plan, (source, target), units, specs, offline)
        for units in tables.values()
        if pipeline is None or any(unit[0] == pipeline for unit in units)
    ]
    for unit in sinks:
        if pipeline in (None, unit[0]):
            spec, certain, _ = offline[unit[0]]
            found.append(
                Subject(
                    "/".join(unit),
                    plan.stream,
                    (unit,),
                    "event",
                    "bridge",
                    "delivery",
                    identity="event_id",
                    certain=certain,
                    sink=True,
                    former=tuple(former(target, plan.stream, unit, plan.sinks)),
                    pipelines=(spec,),
                )
            )
    return found


def _offline(spec: PipelineSpec) -> tuple[PipelineSpec, bool, frozenset[str]]:
    """The pipeline without parts that depend on a lookup; whether its routing is certain; the roots that depend on a
    lookup."""
    tainted: set[str] = set()
    steps: list[StepSpec] = []
    certain = True
    for step in spec.steps:
        if step.effect == "drops" and _roots(step.compile(StepContext()).reads) & tainted:
            certain = False
            continue
        for name, reads in step.makes.items():
            if step.lookup is not None or _roots(reads) & tainted:
                tainted.add(name)
        steps.append(step.offline())
    branches = spec.branches
    if branches is not None and any(
        branch.when is not None and _roots(compile_expression(branch.when).names) & tainted
        for branch in branches
    ):
        branches, certain = None, False
    return replace(spec, steps=tuple(steps), branches=branches), certain, frozenset(tainted)


def _roots(names: frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _table(
    plan: StreamSpec,
    servers: tuple[psycopg.Connection[Any], psycopg.Connection[Any]],
    units: Sequence[Unit],
    specs: Mapping[Unit, DestinationSpec],
    offline: Mapping[str, tuple[PipelineSpec, bool, frozenset[str]]],
) -> Subject:
    source, target = servers
    shapes: dict[Unit, TableShape] = {}
    compared: list[str] | None = None
    left_out: set[str] = set()
    unnamed: set[str] = set()
    lacking: set[str] = set()
    identities: set[str | None] = set()
    tables = [(unit, spec) for unit in units if isinstance(spec := specs[unit], TableSpec)]
    for unit, spec in tables:
        shape, findings = table_shape(target, spec, {})
        if shape is None or any(finding.reason.startswith("column_missing") for finding in findings):
            raise BridgeError(findings[0].message, reason=findings[0].reason, hint=findings[0].fix)
        shapes[unit] = shape
        mine, skipped, identity = _mapping(plan, unit, spec, shape, offline[unit[0]][2])
        if spec.columns is None and not any(step.makes for step in _pipeline(plan, unit).steps):
            rest = [
                column.name
                for column in shape.columns.values()
                if column.writable and not column.has_default and column.name not in mine
            ]
            named = named_by_events(source, plan.outbox, _pipeline(plan, unit).events, rest)
            mine += [name for name in rest if name in named]
            unnamed |= set(rest) - named
        lacked = lacked_by_events(
            source, plan.outbox, _pipeline(plan, unit).events, _optional(spec, shape, mine)
        )
        mine = [name for name in mine if name not in lacked]
        lacking |= lacked
        compared = mine if compared is None else [name for name in compared if name in mine]
        left_out |= skipped
        identities.add(identity)
    shape, spec = shapes[tables[0][0]], tables[0][1]
    ways = {(each.mode if each.key else "", each.key, each.version_column) for _, each in tables}
    if len(ways) > 1:
        raise BridgeError(
            f"{spec.table_name} is filled in different ways (mode, key or version), which cannot be compared as one",
            reason="not_comparable",
            hint="give its destinations the same mode, key and version, or compare other pipelines: --pipeline",
        )
    identity = identities.pop() if len(identities) == 1 else None
    by: Literal["event", "key", "rows"] = "rows"
    if identity is not None and (not spec.key or identity in spec.key):
        by = "event"
    elif spec.key:
        by = "key"
    names = [name for name in compared or [] if by != "event" or name != identity]
    latest = spec.mode == "upsert"
    if by == "key":  # equal keys need not be the same text, and the first one stays
        some = latest and all(each.columns is not None for _, each in tables)
        names = [name for name in names if some and name not in spec.key]
    return Subject(
        f"{shape.schema}.{shape.table}",
        plan.stream,
        tuple(units),
        by,
        shape.schema,
        shape.table,
        identity=identity if by == "event" else None,
        key=tuple(shape.columns[name] for name in spec.key),
        version=spec.version_column,
        latest=latest,
        unique=bool(spec.key),
        columns=tuple(shape.columns[name] for name in names),
        left_out=tuple(sorted(left_out)),
        unnamed=tuple(sorted(unnamed)),
        lacking=tuple(sorted(lacking)),
        certain=all(offline[unit[0]][1] for unit in units),
        shared=plan.several,
        source=_of_source(plan, [each for _, each in tables]),
        pipelines=tuple(offline[name][0] for name in dict.fromkeys(unit[0] for unit in units)),
        shapes=shapes,
    )


def _of_source(plan: StreamSpec, tables: Sequence[TableSpec]) -> tuple[str, str] | None:
    columns = {
        next((name for name, value in (spec.columns or {}).items() if value == "$meta.source"), None)
        for spec in tables
    }
    [column, *others] = columns
    return None if column is None or others else (column, plan.source)


def _pipeline(plan: StreamSpec, unit: Unit) -> PipelineSpec:
    return next(each for each in plan.pipelines if each.name == unit[0])


def _mapping(
    plan: StreamSpec, unit: Unit, spec: TableSpec, shape: TableShape, tainted: frozenset[str]
) -> tuple[list[str], set[str], str | None]:
    """Columns to compare, columns left out, the column that holds the event's id."""
    if spec.columns is None:
        names = [name for name in _SPECIAL if name in shape.columns]
        if "payload" in shape.columns and shape.columns["payload"].kind == "json":
            names.append("payload")
        patterns = _pipeline(plan, unit).events
        if len(patterns) == 1 and patterns[0] in plan.contracts:
            fields = [field.name for field in plan.contracts[patterns[0]].fields]
            names += [n for n in fields if n in shape.columns and n not in names]
        names = [n for n in names if shape.columns[n].writable and not shape.columns[n].has_default]
        return names, set(), "event_id" if "event_id" in shape.columns else None
    skipped = {name for name, value in spec.columns.items() if _roots(names_of(classify(value))) & tainted}
    identity = next((name for name, value in spec.columns.items() if value == "$meta.id"), None)
    return [name for name in spec.columns if name not in skipped], skipped, identity


def _optional(spec: TableSpec, shape: TableShape, names: Sequence[str]) -> dict[str, Sequence[str]]:
    """Of these columns, those that an event without the field leaves as they are (planning/destination.py says when),
    each with the field's path."""
    paths: dict[str, Sequence[str]] = {}
    if spec.columns is None:
        return paths
    for name in names:
        value = classify(spec.columns.get(name))
        if not isinstance(value, Expression) or value.plain_path is None or value.plain_path[0] != "event":
            continue
        kept = (spec.mode == "upsert" and not keyed_by_event(spec)) or shape.columns[name].has_default
        if kept and name not in (*spec.key, spec.version_column) and len(value.plain_path) > 1:
            paths[name] = [str(part) for part in value.plain_path[1:]]
    return paths
