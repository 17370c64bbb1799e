"""Each enrichment's SQL, run with a key of the right kind that no row has."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg

from bridge.apply.stream_plan import StreamPlan
from bridge.core.spec import EnrichSpec, PipelineSpec
from bridge.doctor.check import Check, ok

_KEY_COLUMN = re.compile(r"([\w\".]+)\s*=\s*any\s*\(\s*%\(keys\)s", re.IGNORECASE)
_TABLES = re.compile(r"\b(?:from|join)\s+([\w\".]+)", re.IGNORECASE)


def steps(plan: StreamPlan) -> list[tuple[PipelineSpec, EnrichSpec]]:
    """Every enrichment by the customer's sql, once where pipelines share it."""
    found = {
        step: (pipeline, step)
        for pipeline in plan.pipelines
        for step in pipeline.steps
        if isinstance(step, EnrichSpec) and step.kept is None
    }
    return list(found.values())


def enrichment(
    connection: psycopg.Connection, plan: StreamPlan, pipeline: PipelineSpec, spec: EnrichSpec
) -> Iterator[Check]:
    where = spec.source
    keys = _keys(plan, pipeline, spec)
    try:
        connection.execute("begin read only")
        cursor = connection.execute(spec.sql.encode(), {"keys": keys})
        columns = [column.name for column in cursor.description or ()]
    except psycopg.Error as error:
        if (error.sqlstate or "").startswith("22"):  # the sql casts the key, and ours is none
            yield ok(where, "enrichment", f"{spec.as_name}: its sql is valid")
            return
        yield _refused(connection, where, spec, error)
        return
    finally:
        connection.execute("rollback")
    named = _KEY_COLUMN.search(spec.sql)
    wanted = named.group(1).rpartition(".")[2].strip('"') if named else None
    if not columns or (wanted is not None and columns[0] != wanted and wanted in columns):
        yield Check(
            "error",
            where,
            "enrichment_key",
            f"{spec.as_name}: the first column of its sql is {columns[0] if columns else 'missing'}, and must be the "
            f"key ({wanted}): rows could not be told apart",
            f"select {wanted} first in the sql of enrich.entity {spec.as_name}",
            "config",
        )
    else:
        yield ok(where, "enrichment", f"{spec.as_name}: its sql is valid, its key is {columns[0]}")


def _keys(plan: StreamPlan, pipeline: PipelineSpec, spec: EnrichSpec) -> list[str] | list[int]:
    """One key of the kind that events bring, by their contract."""
    for name in pipeline.events:
        contract = plan.contracts.get(name)
        for field in contract.fields if contract is not None else ():
            if spec.key == f"$event.{field.name}" and field.type in ("number", "integer"):
                return [-1]
    return ["0"]


def _refused(connection: psycopg.Connection, where: str, spec: EnrichSpec, error: psycopg.Error) -> Check:
    state, message = error.sqlstate, error.diag.message_primary or type(error).__name__
    said = f"{spec.as_name}: its sql is refused: {message} ({state})"
    if state == "42501":
        if grant := _grant(connection, spec, message):
            return Check("error", where, "privilege_missing", said, grant, "sql")
        return Check("error", where, "privilege_missing", said, "grant select on what it reads", "advice")
    if state in ("42P01", "3F000"):
        fix = (
            "create that table, or correct the name (schema-qualified) in the sql of enrich.entity "
            + spec.as_name
        )
        return Check("error", where, "enrichment_table", said, fix, "config")
    if state == "42883":
        fix = "the key's type is another than the column's: cast it, as in any(%(keys)s::bigint[])"
        return Check("error", where, "enrichment_type", said, fix, "config")
    fix = f"correct the sql of enrich.entity {spec.as_name}; try it with psql"
    return Check("error", where, "enrichment_sql", said, fix, "config")


def _grant(connection: psycopg.Connection, spec: EnrichSpec, message: str) -> str:
    """The GRANT for `permission denied for table customer`; the schema stands in the sql."""
    named = re.search(r"for (\w+) (\S+)$", message)
    if named is None:
        return ""
    connection.execute("rollback")
    row = connection.execute("select quote_ident(current_user)").fetchone()
    role, kind, name = (row[0] if row else ""), named.group(1), named.group(2)
    if kind == "schema":
        return f"grant usage on schema {name} to {role};"
    for table in _TABLES.findall(spec.sql):
        if table.rpartition(".")[2].strip('"') == name.strip('"'):
            return f"grant select on {table} to {role};"
    return ""
