"""Ask every server everything, in an order in which the first finding is the one to mend first."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing

import psycopg

from bridge.apply.stream_plan import StreamPlan
from bridge.config.model import Config
from bridge.doctor import enrichment, listen, outbox, reach, role, sinks, slot, source, target
from bridge.doctor.check import Check
from bridge.errors import BridgeError
from bridge.plans import stream_plans

Links = dict[str, psycopg.Connection | None]
"""By "source" or the connection's name; None: it could not be reached."""


def examine(config: Config, *, network: bool = False) -> Iterator[Check]:
    """Every check, as it is made. Raises ConfigError where the configuration has nothing to run."""
    plans = stream_plans(config)
    with ExitStack() as stack:
        links: Links = {}
        instance = config.source.instance()
        yield from listen.listens("admin.listen", config.admin.listen, instance)
        if config.ingress is not None:
            yield from listen.listens("ingress.listen", config.ingress.listen, instance)
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
            yield from _asked("source", _slots(origin, plans, links))
        yield from _enrichments(plans[0], links)
    yield from sinks.libraries(config)
    if network:
        yield from sinks.reach(config)


def _asked(where: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks, and where one cannot be asked because the server refuses, that."""
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
            f"the server refused a question: {primary} ({error.sqlstate or 'connection lost'})",
            "grant what the message names, or try again",
            "advice",
            unreachable=error.sqlstate is None,
        )


def _open(
    stack: ExitStack, where: str, dsn: str, *, network: bool
) -> Generator[Check, None, psycopg.Connection | None]:
    """Connect, and tell how that went; its value is the connection."""
    if network and not (yield from reach.way(where, dsn)):
        return None
    try:
        connection = reach.connect(dsn)
    except psycopg.OperationalError as error:
        yield reach.unreachable(where, dsn, error)
        return None
    stack.enter_context(closing(connection))
    yield from reach.reached(where, connection)
    if network:
        yield from _asked(where, reach.network(where, dsn, connection))
    return connection


def _source(link: psycopg.Connection, plans: list[StreamPlan], config: Config) -> Iterator[Check]:
    plan = plans[0]
    yield from source.settings(link, plan)
    yield from role.power(
        "source", link, [(plan.outbox.schema, plan.outbox.table), ("outbox", "stream")], strict=config.strict
    )
    yield from outbox.outbox(link, plan, ingress=config.ingress is not None)
    yield from source.history(link)


def _target(link: psycopg.Connection, plan: StreamPlan, *, strict: bool) -> Iterator[Check]:
    yield from target.settings(link, plan)
    yield from role.power(plan.connection, link, target.table_names(plan), strict=strict)
    yield from target.ledger(link, plan)
    yield from target.tables(link, plan)


def _stream(origin: psycopg.Connection, link: psycopg.Connection, plan: StreamPlan) -> Iterator[Check]:
    if not outbox.installed(origin):
        return
    ledger = slot.ledger_of(link, plan.stream)
    yield from slot.registry(origin, link, plan, ledger)
    if plan.capture != "poll":
        yield from slot.slot(origin, plan, slot.current(plan, ledger))


def _slots(origin: psycopg.Connection, plans: list[StreamPlan], links: Links) -> Iterator[Check]:
    """What concerns all slots of the source together."""
    if plans[0].capture == "poll":
        return
    names = []
    for plan in plans:
        link = links[plan.connection]
        if link is None:
            return  # which slot is whose stands in its ledger
        names.append(slot.current(plan, slot.ledger_of(link, plan.stream)))
    yield from source.free_slots(origin, names)
    yield from slot.brakes(origin, plans[0])
    if outbox.installed(origin):
        yield from slot.left_over(origin, plans[0].publication, [plan.stream for plan in plans], names)


def _enrichments(plan: StreamPlan, links: Links) -> Iterator[Check]:
    for pipeline, spec in enrichment.steps(plan):
        if links.get(spec.source) is None:
            continue
        with closing(reach.connect(plan.dsns[spec.source], search_path=True)) as connection:
            yield from _asked(spec.source, enrichment.enrichment(connection, plan, pipeline, spec))
