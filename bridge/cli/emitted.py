"""What became of an event that `bridge emit` has just inserted: waits until every stream that takes it has applied it.

The event is safe in the outbox whatever is said here, so nothing here is an error.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg

from bridge.config.model import Config
from bridge.errors import BridgeError, ConfigError
from bridge.operate.connect import connect_ledger, target_errors
from bridge.planning.pipeline import Pipeline
from bridge.plans import outbox_of, stream_plans
from bridge.postgres.progress import Applied, deliveries, find, letters
from bridge.protocol.events import Event
from bridge.stream.spec import StreamSpec

LOOK = 0.05
"""Seconds between two looks at a ledger: shorter than a person notices."""


def outcome(config: Config, source: psycopg.Connection, event_id: str, seconds: float) -> Iterator[str]:
    """A line for each stream that takes the event, and one for each of its units that is a dead letter or a message.
    Waits at most `seconds` in all. source: in autocommit."""
    until = time.monotonic() + seconds
    try:
        event = find(source, outbox_of(config), event_id)
    except psycopg.Error:  # a producer's role may insert and not read
        return
    if event is None:  # an idempotency key of an event that was pruned
        return
    kind = event.type.decode()
    try:
        plans = stream_plans(config)
    except ConfigError:  # a file that has no pipeline yet
        return
    for plan in plans:
        if any(Pipeline(spec, {}, ()).takes(kind) for spec in plan.pipelines):
            yield from _of_stream(plan, event, until)


def _of_stream(plan: StreamSpec, event: Event, until: float) -> Iterator[str]:
    event_id = event.id.decode()
    units = {
        str(plan.owner.unit_id(event_id, spec.name, name)): f"{spec.name}, {name}"
        for spec in plan.pipelines
        for name in spec.destinations
    }
    try:
        with target_errors("emit"), connect_ledger(plan, "emit") as ledger:
            while not (applied := Applied(ledger, plan.rows).how(event)) and time.monotonic() < until:
                time.sleep(LOOK)
            dead, sent = letters(ledger, list(units)), deliveries(ledger, list(units))
    except BridgeError as error:
        yield f"inserted; whether {plan.stream} applies it cannot be seen from here: {error}"
        return
    if not applied:
        yield (
            f"inserted, not yet applied by {plan.stream}: bridge status says what it waits for,"
            f" bridge explain {event_id} what becomes of it"
        )
        return
    yield f"applied by {plan.stream}"
    for unit, name in units.items():
        if unit in dead:
            yield f"  {name}: dead letter ({dead[unit]['code']}); bridge dead show {unit}"
        elif unit in sent:
            yield f"  {name}: message {sent[unit]['state']}"
