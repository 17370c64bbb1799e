"""Ask every server everything, in an order in which the first finding is the one to fix first.

Each enrichment's SQL is run with a key of the right kind that no row has.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import psycopg

from bridge.config.model import Config
from bridge.config.nats import NatsConnection
from bridge.config.several import each_source, instance_of
from bridge.doctor import destinations, grants, listen, outbox, over_log, reach, slot, source, unmatched
from bridge.doctor.check import Check, ok
from bridge.errors import BridgeError, CannotConnect
from bridge.planning.lookup import LookupSpec
from bridge.planning.spec import PipelineSpec
from bridge.plans import relay_plans, stream_plans, types_taken
from bridge.postgres.connect import connect
from bridge.postgres.partitions import ledger_rows
from bridge.postgres.profiled import ProfiledConnection
from bridge.postgres.profiles import DOCTOR, DOCTOR_ENRICH
from bridge.postgres.whose import another
from bridge.section import SOURCE
from bridge.stream.spec import StreamSpec

_KEY_COLUMN = re.compile(r"([\w\".]+)\s*=\s*any\s*\(\s*%\(keys\)s", re.IGNORECASE)
_TABLES = re.compile(r"\b(?:from|join)\s+([\w\".]+)", re.IGNORECASE)


def steps(plan: StreamSpec) -> list[tuple[PipelineSpec, LookupSpec]]:
    """Every enrichment with the customer's sql, once if pipelines share it."""
    found = {
        step.lookup: (pipeline, step.lookup)
        for pipeline in plan.pipelines
        for step in pipeline.steps
        if step.lookup is not None and step.lookup.kept is None
    }
    return list(found.values())


def enrichment(
    connection: ProfiledConnection, plan: StreamSpec, pipeline: PipelineSpec, spec: LookupSpec
) -> Iterator[Check]:
    where = spec.source
    keys = _keys(plan, pipeline, spec)
    try:
        connection.begin("read only")
        cursor = connection.execute(spec.sql.encode(), {"keys": keys})
        columns = [column.name for column in cursor.description or ()]
    except psycopg.Error as error:
        if (error.sqlstate or "").startswith("22"):  # the sql casts the key, and ours is none
            yield ok(where, "enrichment", f"{spec.as_name}: its sql is valid")
            return
        yield _refused(connection, where, spec, error)
        return
    finally:
        connection.rollback()
    named = _KEY_COLUMN.search(spec.sql)
    wanted = named.group(1).rpartition(".")[2].strip('"') if named else None
    if not columns or (wanted is not None and columns[0] != wanted and wanted in columns):
        yield Check(
            "error",
            where,
            "enrichment_key",
            f"{spec.as_name}: the first column of its sql is "
            f"{columns[0] if columns else 'missing'}, but it must be the key ({wanted}), which "
            "identifies the rows",
            f"select {wanted} first in the sql of enrich.entity {spec.as_name}",
            "config",
        )
    else:
        yield ok(where, "enrichment", f"{spec.as_name}: its sql is valid, its key is {columns[0]}")


def _keys(plan: StreamSpec, pipeline: PipelineSpec, spec: LookupSpec) -> list[str] | list[int]:
    """A key of the type that the events' contract has."""
    for name in pipeline.events:
        contract = plan.contracts.get(name)
        for field in contract.fields if contract is not None else ():
            if spec.key == f"$event.{field.name}" and field.type in ("number", "integer"):
                return [-1]
    return ["0"]


def _refused(connection: psycopg.Connection, where: str, spec: LookupSpec, error: psycopg.Error) -> Check:
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
        fix = "the key's type differs from the column's: cast it, as in any(%(keys)s::bigint[])"
        return Check("error", where, "enrichment_type", said, fix, "config")
    fix = f"correct the sql of enrich.entity {spec.as_name}; try it with psql"
    return Check("error", where, "enrichment_sql", said, fix, "config")


def _grant(connection: psycopg.Connection, spec: LookupSpec, message: str) -> str:
    """The GRANT for `permission denied for table customer`; the schema is in the sql."""
    named = re.search(r"for (\w+) (\S+)$", message)
    if named is None:
        return ""
    connection.rollback()
    row = connection.execute("select quote_ident(current_user)").fetchone()
    role, kind, name = (row[0] if row else ""), named.group(1), named.group(2)
    if kind == "schema":
        return f"grant usage on schema {name} to {role};"
    for table in _TABLES.findall(spec.sql):
        if table.rpartition(".")[2].strip('"') == name.strip('"'):
            return f"grant select on {table} to {role};"
    return ""


Links = dict[str, ProfiledConnection | None]
""""source" or the connection's name -> connection; None: it could not be reached."""


def examine(config: Config, *, network: bool = False) -> Iterator[Check]:
    """Every check, as it runs. Raises ConfigError if the configuration has nothing to run."""
    plans = stream_plans(config)
    instance = instance_of(config)
    yield from listen.listens("admin.listen", config.admin.listen, instance)
    if config.ingress is not None:
        yield from listen.listens("ingress.listen", config.ingress.listen, instance)
    for one in each_source(config):
        some = [plan for plan in plans if plan.source == one.source_name]
        for check in _source_and_its_streams(one, some, network=network) if some else ():
            named = config.sources and check.where == SOURCE
            yield replace(check, where=f"source {one.source_name}") if named else check
    yield from destinations.libraries(config)
    if any(isinstance(connection, NatsConnection) for connection in config.connections.values()):
        from bridge.doctor.nats import logs  # noqa: PLC0415  nats-py is an extra

        yield from logs(config)
    if network:
        yield from destinations.reach(config)


def _source_and_its_streams(config: Config, plans: list[StreamSpec], *, network: bool) -> Iterator[Check]:
    """config: of one source."""
    with ExitStack() as stack:
        links: Links = {}
        for where, dsn in plans[0].dsns.items():
            links[where] = yield from _open(stack, where, dsn, network=network)
        origin = links["source"]
        if origin is not None:
            yield from _asked("source", _source(origin, plans, config))
        for plan in plans:
            ledger = links[plan.connection]
            if ledger is not None:
                yield from _asked(plan.connection, _target(ledger, plan, strict=config.strict))
            if origin is not None and ledger is not None:
                yield from _asked("source", _stream(origin, ledger, plan))
        if origin is not None:
            yield from _asked("source", _relays(origin, config, plans))
            yield from _asked("source", _slots(origin, plans, links))
            yield from _asked("source", _left_behind(origin, plans[0]))
        yield from _enrichments(plans[0], links)


def _asked(where: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks; if the server refuses a query, an error instead."""
    try:
        yield from checks
    except BridgeError as error:
        yield Check("error", where, error.reason, str(error.args[0]), error.hint, "advice")
    except psycopg.Error as error:
        primary = error.diag.message_primary or type(error).__name__
        yield Check(
            "error",
            where,
            "refused",
            f"the server refused a query: {primary} ({error.sqlstate or 'connection lost'})",
            "grant the privilege in the message, or try again",
            "advice",
            unreachable=error.sqlstate is None,
        )


def _open(
    stack: ExitStack, where: str, dsn: str, *, network: bool
) -> Generator[Check, None, ProfiledConnection | None]:
    """Connect, and yield the checks of the connection; returns the connection."""
    if network and not (yield from reach.way(where, dsn)):
        return None
    try:
        connection = connect(dsn, DOCTOR, where=where)
    except CannotConnect as error:
        yield reach.unreachable(where, dsn, error)
        return None
    stack.enter_context(closing(connection))
    yield from reach.reached(where, connection)
    if network:
        yield from _asked(where, reach.network(where, dsn, connection))
    return connection


def _source(link: ProfiledConnection, plans: list[StreamSpec], config: Config) -> Iterator[Check]:
    plan = plans[0]
    yield from reach.source_pooler(link, plan)
    yield from source.settings(link, plan)
    yield from grants.power(
        "source", link, [(plan.outbox.schema, plan.outbox.table), ("outbox", "stream")], strict=config.strict
    )
    yield from outbox.outbox(link, plan, ingress=config.ingress is not None)
    yield from source.history(link)
    if outbox.installed(link):
        yield from unmatched.unmatched(link, plan.outbox, types_taken(config))


def _target(link: ProfiledConnection, plan: StreamSpec, *, strict: bool) -> Iterator[Check]:
    yield from reach.target_pooler(link, plan)
    yield from destinations.settings(link, plan)
    yield from grants.power(plan.connection, link, destinations.table_names(plan), strict=strict)
    yield from destinations.ledger(link, plan)
    yield from destinations.tables(link, plan)


def _left_behind(origin: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
    if outbox.installed(origin):
        yield from slot.left_behind(origin, plan)


def _stream(origin: psycopg.Connection, link: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
    if not outbox.installed(origin):
        return
    rows = ledger_rows(link, plan.stream) if plan.partitions else []
    ledger = slot.ledger_of(link, rows[0] if rows else plan.stream)
    if ledger is not None:
        if (halt := another(origin, link, plan.stream)) is not None:
            yield Check("error", "source", halt.reason, str(halt.args[0]), halt.hint or "", "advice")
            return
        yield from slot.units_left_behind(link, plan)
    if plan.partitions:
        yield from over_log.partitions(origin, link, plan, rows)
        return
    yield from slot.registry(origin, link, plan, ledger)
    if plan.capture != "poll":
        yield from slot.slot(origin, plan, slot.current(plan, ledger))


def _relays(origin: psycopg.Connection, config: Config, plans: list[StreamSpec]) -> Iterator[Check]:
    """config: of one source."""
    if outbox.installed(origin):
        for relay in relay_plans(config):
            yield from over_log.relay(origin, relay, plans[0])


def _slots(origin: psycopg.Connection, plans: list[StreamSpec], links: Links) -> Iterator[Check]:
    """Checks of all slots of the source together."""
    if plans[0].capture == "poll":
        return
    names = []
    if plans[0].partitions:
        yield from slot.brakes(origin, plans[0])
        return
    for plan in plans:
        link = links[plan.connection]
        if link is None:
            return  # which slot is whose stands in its ledger
        names.append(slot.current(plan, slot.ledger_of(link, plan.stream)))
    yield from source.free_slots(origin, names)
    yield from slot.brakes(origin, plans[0])


def _enrichments(plan: StreamSpec, links: Links) -> Iterator[Check]:
    for pipeline, spec in steps(plan):
        if links.get(spec.source) is None:
            continue
        with closing(connect(plan.dsns[spec.source], DOCTOR_ENRICH, where=spec.source)) as connection:
            yield from _asked(spec.source, enrichment(connection, plan, pipeline, spec))
