"""Destinations: a target's ledger and tables, and whether anybody answers where sinks send to (`--network`).

No message is sent, and addresses of sinks, which hold secrets, are told as host and port alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import psycopg

from bridge.config.model import Config
from bridge.doctor import path
from bridge.doctor.check import Check, kind_of, ok
from bridge.doctor.missing_table import missing_table
from bridge.doctor.reach import place
from bridge.planning.spec import TableSpec
from bridge.postgres.catalog import LEDGER_TABLES, hidden_rows, later_findings, ledger_findings
from bridge.postgres.schema import migrations
from bridge.postgres.target_rules import Finding
from bridge.sinks.model import Server, SinkConnection
from bridge.stream.spec import StreamSpec
from bridge.stream.target_tables import table_of_destination


def libraries(config: Config) -> Iterator[Check]:
    """What the library of a sink recognizes. A connection that it cannot use is an error of bridge.yaml."""
    for name, connection in config.connections.items():
        found = connection.library() if isinstance(connection, SinkConnection) else None
        if found is not None:
            yield ok(name, connection.type, found)


def reach(config: Config) -> Iterator[Check]:
    """The network path to the server of each sink connection that has one."""
    for name, connection in config.connections.items():
        server = connection.server() if isinstance(connection, SinkConnection) else None
        if server is not None:
            yield from _way(name, server)


def _way(where: str, server: Server) -> Iterator[Check]:
    place = path.Place(server.host, server.port, server.guard)
    link = yield from path.walk(where, place)
    if link is None:
        return
    with link:
        local = path.local_address(link)
        if server.tls:
            yield path.tls(where, place, link, ca_file=server.ca_file)
        elif server.greeting:
            yield _greeted(where, place, link, server.greeting)
        yield path.egress(where, local)


def _greeted(where: str, place: path.Place, link: socket.socket, greeting: bytes) -> Check:
    """A mail server greets first (RFC 5321, 3.1)."""
    try:
        said = link.recv(100)
    except OSError:
        said = b""
    if said.startswith(greeting):
        return ok(where, "greeting", f"{place} greets as a mail server does")
    problem = (
        f"{place} accepts the connection but does not greet as a mail server within {path.SECONDS:.0f} s"
    )
    fix = (
        "correct host, port and security: with `tls` the server expects TLS first (465), "
        "otherwise it greets first (587, 25)"
    )
    return Check("error", where, "reach_greeting", problem, fix, "config", unreachable=True)


def _found(where: str, finding: Finding) -> Check:
    return Check(finding.level, where, finding.reason, finding.message, finding.fix, kind_of(finding.fix))


def settings(target: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
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
            "this server is a standby and accepts no writes",
            "name all hosts in the dsn and add target_session_attrs: read-write",
            "config",
        )
    elif read_only == "on":
        yield ok(plan.connection, "writes", "read-only by default; the bridge sets its own sessions to write")
    said = "on" if commit != "off" else "off here; the bridge sets it to on for its own sessions"
    yield ok(plan.connection, "synchronous_commit", said)


def ledger(target: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
    findings = ledger_findings(target) or hidden_rows(target, [("bridge", name) for name in LEDGER_TABLES])
    for finding in findings:
        if finding.reason == "ledger_schema_missing" and "as the owner" in finding.fix:
            fix = f'bridge schema target | psql "{place(plan.target_dsn)}"'
            where = f"{finding.message}; the owner of the database runs it, then the grants at its end"
            yield Check("error", plan.connection, finding.reason, where, fix, "command")
        else:
            yield _found(plan.connection, finding)
    if findings:
        return
    for finding in later_findings(target):
        yield _found(plan.connection, finding)
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


def tables(target: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
    """Each destination of this connection: the table, its columns, its key, its version, our privileges."""
    for pipeline in plan.pipelines:
        for name, spec in pipeline.destinations.items():
            if not isinstance(spec, TableSpec) or spec.connection != plan.connection:
                continue
            _, findings = table_of_destination(target, plan, pipeline.events, spec)
            for finding in findings:
                if finding.reason == "table_missing":
                    yield missing_table(target, plan, pipeline, spec)
                else:
                    yield _found(plan.connection, finding)
            if not findings:
                yield ok(
                    plan.connection,
                    "table",
                    f"{pipeline.name} -> {name}: {spec.table_name} has the columns and the key, and may be written",
                )


def table_names(plan: StreamSpec) -> list[tuple[str, str]]:
    """(schema, table) of the written tables and the ledger."""
    ledger = [("bridge", name) for name in LEDGER_TABLES]
    written = [
        (spec.schema, spec.table)
        for pipeline in plan.pipelines
        for spec in pipeline.destinations.values()
        if isinstance(spec, TableSpec) and spec.connection == plan.connection
    ]
    return list(dict.fromkeys(ledger + written))
