"""A destination's table that does not exist: the CREATE TABLE and the grants for its mapping, to be run as printed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing

import psycopg

from bridge.doctor.check import Check
from bridge.errors import BridgeError
from bridge.planning.lookup import LookupSpec
from bridge.planning.spec import PipelineSpec, TableSpec
from bridge.planning.suggested_table import contracts_of, statements, suggested_columns
from bridge.postgres.connect import connect
from bridge.postgres.profiles import DOCTOR_ENRICH
from bridge.problem import nearest
from bridge.stream.spec import StreamSpec

_KEYS = re.compile(r"%\(keys\)s")


def missing_table(
    target: psycopg.Connection, plan: StreamSpec, pipeline: PipelineSpec, spec: TableSpec
) -> Check:
    """The error, with SQL that the server's administrator can run."""
    [role] = target.execute("select quote_ident(current_user)").fetchone() or ("",)
    lookups = [step.lookup for step in pipeline.steps if step.lookup is not None]
    columns = suggested_columns(spec, contracts_of(pipeline, plan.contracts), _described(plan, lookups))
    doubts = [one.name for one in columns if one.doubt]
    near = _near(target, spec)
    said = f"destination {spec.name}: table {spec.schema}.{spec.table} does not exist"
    said += f" ({near})" if near else ""
    said += "; for its mapping it could be this"
    if doubts:
        said += f" (check the types of {', '.join(doubts)}, which nothing tells)"
    return Check(
        "error", plan.connection, "table_missing", said, "\n".join(statements(spec, columns, role)), "sql"
    )


def _near(target: psycopg.Connection, spec: TableSpec) -> str:
    """A table of the schema that may have been meant."""
    rows = target.execute(
        "select c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relkind in ('r', 'p', 'v')",
        [spec.schema],
    ).fetchall()
    return nearest(spec.table, [name for (name,) in rows])


def _described(plan: StreamSpec, lookups: Iterable[LookupSpec]) -> dict[str, dict[str, str]]:
    """Enrichment -> column -> its type, as the server that is asked describes the SQL. One that cannot be asked is left
    out: doctor says so where it looks at the enrichment."""
    found: dict[str, dict[str, str]] = {}
    for one in lookups:
        if one.kept is not None:
            continue
        try:
            with closing(connect(plan.dsns[one.source], DOCTOR_ENRICH, where=one.source)) as link:
                link.begin("read only")
                # by itself, not below another select: it may begin with WITH; no key is NULL, so no row is read
                cursor = link.execute(_KEYS.sub("null", one.sql).encode())
                kinds = [(column.name, column.type_code) for column in cursor.description or ()]
                names: dict[int, str] = dict(
                    link.execute(
                        "select oid, pg_catalog.format_type(oid, null) from pg_catalog.pg_type where oid = any(%s)",
                        [[kind for _, kind in kinds]],
                    ).fetchall()
                )
                link.rollback()
        except (psycopg.Error, BridgeError):
            continue
        found[one.as_name] = {name: names[kind] for name, kind in kinds if kind in names}
    return found
