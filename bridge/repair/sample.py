"""One event's messages, rendered now: to look at, or to send once without the queue.

What a sink asks HTTP for is recorded, so that an operator sees the vendor's own payload and the vendor's own answer.
Nothing is written to a database, and no delivery is changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

from bridge.expressions.document import parse_exact
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.planner import Planner, answered
from bridge.planning.spec import SinkSpec
from bridge.protocol.events import Event
from bridge.sinks.joining import take_group
from bridge.sinks.model import (
    Delivery,
    Http,
    Reply,
    SendError,
    SendOutcome,
    SinkConnection,
    Wire,
    no_answer,
)
from bridge.sinks.reachable import AddressGuard
from bridge.stream.spec import StreamSpec


@dataclass(frozen=True, slots=True)
class Request:
    """What a sink asked for. The address and the headers hold secrets, and are left out."""

    body: bytes
    reply: Reply | None = None  # None: there was no answer, or it was not sent


@dataclass(frozen=True, slots=True)
class Sample:
    """What becomes of an event at one destination. delivery: None, no message; then `why` tells."""

    pipeline: str
    destination: str
    connection: str
    delivery: Delivery | None
    why: str = ""


@dataclass(slots=True)
class Recorder:
    """An HTTP client that keeps what it is asked for. inner: None, nothing is sent and the answer is 200."""

    inner: Http | None = None
    requests: list[Request] = field(default_factory=list)

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes,
        timeout: float,
        guard: AddressGuard | None,
    ) -> Reply:
        if self.inner is None:
            self.requests.append(Request(content))
            return Reply(200)
        try:
            reply = await self.inner.post(url, headers=headers, content=content, timeout=timeout, guard=guard)
        except SendError:
            self.requests.append(Request(content))
            raise
        self.requests.append(Request(content, reply))
        return reply


def samples(
    plan: StreamSpec, event: Event, units: frozenset[tuple[str, str]], answer: Callable[[Lookup], Answer]
) -> list[Sample]:
    """What these sinks of a stream would get. `answer` finds the rows of lookups. Each message has a new id."""
    found = []
    for pipeline in plan.pipelines:
        for name, spec in pipeline.destinations.items():
            unit = (pipeline.name, name)
            if isinstance(spec, SinkSpec) and unit in units & plan.sinks:
                found.append(_sample(plan, event, unit, spec.connection, answer))
    return found


def _sample(
    plan: StreamSpec, event: Event, unit: tuple[str, str], connection: str, answer: Callable[[Lookup], Answer]
) -> Sample:
    planner = Planner(
        plan.pipelines,
        plan.contracts,
        {},
        sinks=plan.messages,
        entities=plan.entities,
        unmatched="dead",
        only={unit},
        nulls=plan.outbox.is_foreign,
    )
    planned = answered(planner.plan([event]), answer)
    if planned.dead_letters:
        first = planned.dead_letters[0]
        return Sample(*unit, connection, None, f"a dead letter: {first.code}: {first.cause}")
    if not planned.deliveries:
        return Sample(*unit, connection, None, "no message: it is filtered out, or goes another way")
    fields = parse_exact(planned.deliveries[0].body)
    group = take_group(fields)
    delivery = Delivery(
        id=str(uuid4()),
        event_id=event.id.decode(errors="replace"),
        event_type=event.type.decode(errors="replace"),
        event_key=None if event.key is None else event.key.decode(errors="replace"),
        occurred_at=_moment(event.occurred_at),
        fields=fields,
        group=group,
    )
    return Sample(*unit, connection, delivery)


def _moment(text: bytes | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text.decode())
    except ValueError:
        return None  # infinity, or before the year 1


def payloads(sink: SinkConnection, delivery: Delivery) -> tuple[list[bytes], str]:
    """What the vendor would get, and why it would get nothing. Nothing is sent. Of a sink that does not send by
    its wire there is no payload."""
    empty = [group for group in sink.needs() if not any(delivery.fields.get(name) for name in group)]
    if empty:
        return [], f"the message cannot be sent: {' and '.join(empty[0])} are empty"
    try:
        sink.message.of(delivery.fields)
        if not sink.by_wire:
            return [], ""
        recorder = Recorder()
        outcome = asyncio.run(sink.send(delivery, Wire(recorder)))
    except SendError as error:
        return [], error.outcome.cause
    return [one.body for one in recorder.requests], "" if recorder.requests else outcome.cause


async def send_once(
    sink: SinkConnection, delivery: Delivery, http: Http, timeout: float
) -> tuple[SendOutcome, list[Request]]:
    """One attempt, at once. timeout: in seconds."""
    recorder = Recorder(http)
    try:
        async with asyncio.timeout(2 * timeout):
            return await sink.send(delivery, Wire(recorder, timeout)), recorder.requests
    except SendError as error:
        return error.outcome, recorder.requests
    except TimeoutError:
        return no_answer(timeout), recorder.requests


def shown(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A message's fields, without those that are empty."""
    return {name: value for name, value in fields.items() if value is not None}
