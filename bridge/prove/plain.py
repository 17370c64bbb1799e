"""The expected sums straight from the source's SQL, where a mapping is plain: no planner, no rows over the wire.

Only a first look: whatever differs here is looked at again through the planner, so a cast in which SQL and the
planner disagree costs time, never a wrong finding.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from bridge.core.expressions.expression import Expression
from bridge.core.plan import Column
from bridge.core.source import classify
from bridge.core.spec import EnrichSpec, SetSpec, TableSpec, UpsertSpec
from bridge.prove.digest import Connection, Sums, bucket, whole
from bridge.prove.expected import EMPTIED
from bridge.prove.side import Sides

_MANY_DEAD = 1000


def plain_sums(sides: Sides) -> Sums | None:
    """By bucket, as Digest.target_sums; None where the mapping or the servers do not allow it."""
    values = _values(sides)
    if values is None or not _hash_alike(sides):
        return None
    outbox, subject = sides.outbox, sides.subject
    patterns = subject.pipelines[0].events
    identity = sql.SQL("{}::text").format(outbox.column("id"))
    dead = sorted({event for event, _ in sides.dead.states})
    inner = sql.SQL(
        "select {id} as id, {hash} as h from {table} where {applied} and {window} and {type} = any({types})"
        " and coalesce({headers}::text <> {emptied}, true) and {id} <> all({dead}::text[]) offset 0"
    ).format(
        id=identity,
        hash=whole([identity, *values]),
        table=outbox.name,
        applied=sides.applied.predicate(outbox),
        window=sides.window.predicate(identity),
        type=outbox.column("type"),
        types=sql.Literal(list(patterns)),
        headers=outbox.column("headers"),
        emptied=sql.Literal(EMPTIED.decode()),
        dead=sql.Literal(dead),
    )
    query = sql.SQL("select {}, count(*), sum(q.h) from ({}) as q group by 1").format(
        bucket(sql.SQL("q.id")), inner
    )
    sides.source.execute("savepoint plain")
    try:
        found = {name: (count, int(total)) for name, count, total in sides.source.execute(query)}
    except (psycopg.errors.DataError, psycopg.errors.ProgrammingError):
        sides.source.execute("rollback to savepoint plain")
        return None
    sides.source.execute("release savepoint plain")
    return found


def _values(sides: Sides) -> list[sql.Composable] | None:
    """The compared columns as expressions over a row of the outbox."""
    subject = sides.subject
    if subject.sink or len(subject.units) != 1 or len(sides.dead.states) > _MANY_DEAD:
        return None
    (pipeline,) = subject.pipelines
    spec = pipeline.destinations[subject.units[0][1]]
    if not isinstance(spec, TableSpec) or spec.columns is None or not subject.certain:
        return None
    if pipeline.branches is not None or any(c in p for p in pipeline.events for c in "*?["):
        return None
    if not all(isinstance(step, EnrichSpec | SetSpec | UpsertSpec) for step in pipeline.steps):
        return None
    values: list[sql.Composable] = []
    for column in subject.columns:
        value = _value(sides, spec.columns.get(column.name, spec.version), column)
        if value is None:
            return None
        values.append(value)
    return values


def _value(sides: Sides, written: object, column: Column) -> sql.Composed | None:
    source = classify(written)
    if not isinstance(source, Expression) or source.plain_path is None or column.kind in ("array", "bytea"):
        return None
    root, *rest = source.plain_path
    payload = sql.SQL("{}::jsonb").format(sides.outbox.column("payload"))
    declared = sql.SQL(column.declared or column.type_sql)
    names = [str(name) for name in rest]
    if root == "meta" and len(names) == 1 and column.kind != "json":
        return sql.SQL("{}::text::{}").format(sides.outbox.column(names[0]), declared)
    if root != "event":
        return None
    if not names:
        return sql.SQL("{}::text::{}").format(sides.outbox.column("payload"), declared)
    if column.kind == "json":
        return sql.SQL("nullif({} #> {}, 'null'::jsonb)::{}").format(payload, sql.Literal(names), declared)
    return sql.SQL("({} #>> {})::{}").format(payload, sql.Literal(names), declared)


def _hash_alike(sides: Sides) -> bool:
    return _probe(sides.source) == _probe(sides.target)


def _probe(connection: Connection) -> object:
    return connection.execute(
        "select hashtextextended('(probe,\u00e9)', 0), current_setting('server_encoding')"
    ).fetchone()
