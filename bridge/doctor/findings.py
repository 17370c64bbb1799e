"""The findings of lint as checks, with what the servers say of the columns that the file names.

Lint judges the file by itself, or by a snapshot. Here the servers are asked: a lookup's query is described, not run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import psycopg

from bridge.config import snapshot
from bridge.config.lint import LintFinding, examined
from bridge.config.load import document_of
from bridge.config.model import Config
from bridge.config.original import Original
from bridge.config.several import one_a_source
from bridge.config.snapshot import UNKNOWN, Columns, Facts, digest_of
from bridge.doctor.check import Check, ok
from bridge.errors import BridgeError
from bridge.planning.spec import TableSpec
from bridge.plans import stream_plans
from bridge.postgres import columns
from bridge.postgres.connect import connect
from bridge.postgres.profiles import CATALOG, DOCTOR_ENRICH
from bridge.problem import Problem, format_path
from bridge.stream.spec import StreamSpec

_TOLD = {"unknown-column"}
"""What the checks of a table tell themselves."""
_LATER = {"unused-allow"}
"""What only the servers' answers decide."""
_SHOWN = 3  # of what a snapshot does not say; one write corrects all


class FileLint:
    """The findings of the file that a configuration was made of: first() before the servers are asked, joined() with
    their answers."""

    def __init__(self, made_of: Original, environ: Mapping[str, str], allow: Collection[str]) -> None:
        self._path = Path(made_of.file)
        self._made_of = made_of
        self._environ = {**environ, **made_of.variables}
        self._allow = allow
        self._first = self._found(UNKNOWN)

    def _found(self, facts: Facts) -> list[LintFinding]:
        document = document_of(self._made_of, self._environ, self._made_of.files)
        return examined(document, self._allow, facts)[1]

    def first(self) -> Iterator[Check]:
        """What is wrong with the file by itself, which `bridge run` refuses as well."""
        yield from (of(self._path, one) for one in self._first if one.name not in _LATER)

    def joined(self, facts: Facts, told: Sequence[Check]) -> Iterator[Check]:
        """What is wrong with it as the servers are. told: the checks so far."""
        findings = self._found(facts)
        known = {finding for finding in self._first if finding.name not in _LATER}
        misfits = [check.message for check in told if check.check == "column_type"]
        new = [
            finding
            for finding in findings
            if finding not in known
            and finding.name not in _TOLD
            and not (
                finding.name == "column-type"
                and any(f"column {finding.path[-1]!r}" in message for message in misfits)
            )
        ]
        yield from (of(self._path, finding) for finding in new)
        if not known and not new:
            yield ok("bridge", "lint", f"{self._path}: no findings, together with what the servers say")
        yield from self._snapshot(facts)

    def _snapshot(self, facts: Facts) -> Iterator[Check]:
        """Does the snapshot beside the file say what the servers say?"""
        path = snapshot.snapshot_of(self._path)
        written = snapshot.read(path)
        if written.written and (said := snapshot.differences(written, facts)):
            more = f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
            message = f"{path} is not what the servers say now: {'; '.join(said[:_SHOWN])}{more}"
            yield Check("warn", "bridge", "snapshot", message, "bridge doctor --snapshot", "command")


def of(file: Path, finding: LintFinding) -> Check:
    """One finding, at its place in the file."""
    path = f"{format_path(finding.path)}: " if finding.path else ""
    at = finding.position
    message = f"{file}:{at.line}:{at.column}: {path}{finding.message}"
    fix = finding.fix or "correct it there"
    level = "error" if finding.level == "error" else "warn"
    return Check(level, "bridge", finding.name, message, fix, "config")  # type: ignore[arg-type]  # one of the two


def of_problem(file: Path, problem: Problem) -> Check:
    """What keeps the file from being a configuration."""
    return of(file, LintFinding("error", problem.position, problem.path, problem.message, problem.hint))


def ask(config: Config, checks: Sequence[Check]) -> tuple[Facts, bool]:
    """What the servers say of the columns, and whether every one of them answered. What is refused, the checks of
    that lookup or table tell. checks: those so far; a server that they could not reach is not asked again."""
    away = {check.where for check in checks if check.unreachable}
    plans = stream_plans(config)
    lookups: dict[tuple[str, str], Columns] = {}
    tables: dict[tuple[str, str, str], Columns] = {}
    complete = not away
    for plan, source, queries in ((p, *asked) for p in one_a_source(plans) for asked in _queries(p).items()):
        if source in away:
            continue
        try:
            with closing(connect(plan.dsns[source], DOCTOR_ENRICH, where=source)) as connection:
                for query in queries:
                    complete &= _described(connection, source, query, lookups)
        except (BridgeError, psycopg.Error):
            complete = False
    for plan in plans:
        if plan.connection in away:
            continue
        try:
            with closing(connect(plan.target_dsn, CATALOG, "bridge doctor", where=plan.connection)) as target:
                for schema, table in _tables(plan):
                    found = columns.of_table(target, schema, table)
                    complete &= bool(found)
                    if found:
                        tables[plan.connection, schema, table] = found
        except (BridgeError, psycopg.Error):
            complete = False
    return Facts(lookups, tables), complete


def _described(
    connection: psycopg.Connection, source: str, query: str, into: dict[tuple[str, str], Columns]
) -> bool:
    try:
        into[source, digest_of(query)] = columns.of_query(connection, query)
    except psycopg.Error:
        return False
    return True


def _queries(plan: StreamSpec) -> dict[str, list[str]]:
    """The lookups' own queries, by the connection that they ask."""
    found: dict[str, list[str]] = {}
    for pipeline in plan.pipelines:
        for step in pipeline.steps:
            if step.lookup is not None and step.lookup.kept is None:
                queries = found.setdefault(step.lookup.source, [])
                if step.lookup.sql not in queries:
                    queries.append(step.lookup.sql)
    return found


def _tables(plan: StreamSpec) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys(
            (spec.schema, spec.table)
            for pipeline in plan.pipelines
            for spec in pipeline.destinations.values()
            if isinstance(spec, TableSpec) and spec.connection == plan.connection
        )
    )
