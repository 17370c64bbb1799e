"""A target: its ledger and each table that is written."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from bridge.apply.planning import contract_kinds
from bridge.apply.stream_plan import StreamPlan
from bridge.config.table import table_names as split_names
from bridge.core.spec import TableSpec
from bridge.doctor.check import Check, kind_of, ok
from bridge.doctor.reach import place
from bridge.postgres.catalog import LEDGER_TABLES, Finding, ledger_findings, table_shape
from bridge.postgres.schema import migrations


def _found(where: str, finding: Finding) -> Check:
    return Check("error", where, finding.reason, finding.message, finding.fix, kind_of(finding.fix))


def settings(target: psycopg.Connection, plan: StreamPlan) -> Iterator[Check]:
    row = target.execute(
        "select pg_is_in_recovery(), current_setting('default_transaction_read_only'),"
        " current_setting('synchronous_commit')"
    ).fetchone()
    recovery, read_only, commit = row or (False, "off", "on")
    if recovery:
        yield Check(
            "error",
            plan.connection,
            "target_read_only",
            "this server is a standby and takes no writes",
            "name all hosts in the dsn and add target_session_attrs: read-write",
            "config",
        )
    elif read_only == "on":
        yield ok(plan.connection, "writes", "read-only by default; the bridge sets its own sessions to write")
    said = "on" if commit != "off" else "off here; the bridge sets it to on for its own sessions"
    yield ok(plan.connection, "synchronous_commit", said)


def ledger(target: psycopg.Connection, plan: StreamPlan) -> Iterator[Check]:
    findings = ledger_findings(target)
    for finding in findings:
        if finding.reason == "ledger_schema_missing" and "as the owner" in finding.fix:
            fix = f'bridge schema target | psql "{place(plan.target_dsn)}"'
            where = f"{finding.message}; to be run by the owner of the database, who then grants: see its end"
            yield Check("error", plan.connection, finding.reason, where, fix, "command")
        else:
            yield _found(plan.connection, finding)
    if findings:
        return
    newest = max(each.version for each in migrations("target"))
    row = target.execute(
        "select has_table_privilege('bridge.migration', 'select'), quote_ident(current_user)"
    ).fetchone()
    if row is not None and not row[0]:
        fix = f"grant select on bridge.migration to {row[1]};"
        message = f"role {row[1]} may not read bridge.migration"
        yield Check("error", plan.connection, "privilege_missing", message, fix, "sql")
        return
    version = (target.execute("select max(version) from bridge.migration").fetchone() or (0,))[0] or 0
    if version < newest:
        yield Check(
            "error",
            plan.connection,
            "ledger_version",
            f"the ledger is at version {version}, this bridge needs {newest}",
            f"bridge schema target --after {version} | psql <target>",
            "advice",
        )
    else:
        yield ok(plan.connection, "ledger", f"installed, version {version}")


def tables(target: psycopg.Connection, plan: StreamPlan) -> Iterator[Check]:
    """Each destination of this connection: the table, its columns, its key, our rights."""
    for pipeline in plan.pipelines:
        for name, spec in pipeline.destinations.items():
            if not isinstance(spec, TableSpec) or spec.connection != plan.connection:
                continue
            _, findings = table_shape(target, spec, contract_kinds(plan, pipeline.events, spec))
            for finding in findings:
                yield _found(plan.connection, finding)
            if not findings:
                yield ok(
                    plan.connection,
                    "table",
                    f"{pipeline.name} -> {name}: {spec.table} fits, and may be written",
                )


def table_names(plan: StreamPlan) -> list[tuple[str, str]]:
    """(schema, table) of what is written, and of the ledger."""
    ledger = [("bridge", name) for name in LEDGER_TABLES]
    written = [
        split_names(spec.table)
        for pipeline in plan.pipelines
        for spec in pipeline.destinations.values()
        if isinstance(spec, TableSpec) and spec.connection == plan.connection
    ]
    return list(dict.fromkeys(ledger + written))
