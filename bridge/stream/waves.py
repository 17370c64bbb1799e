"""Sends a batch's messages to NATS in waves, and judges the ones that are not stored. Runs in the bus's thread.

A wave is in flight together and never has a key twice: JetStream may store a later message and lose an earlier one
while its leader changes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import nats.errors

from bridge.bus.advice import REFUSED, not_permitted, problem
from bridge.bus.connection import Bus
from bridge.bus.publisher import Message, NotPermitted, Publisher, exceeds_stream, has_no_stream
from bridge.errors import BridgeError, Halt
from bridge.planning.plan import Owner
from bridge.planning.publication import Publication, header_value, literal_part
from bridge.planning.rows import Literal, classify
from bridge.planning.spec import SubjectSpec, Unit


@dataclass(slots=True)
class Item:
    """One message. ident: of its unit, the same in each attempt."""

    publication: Publication
    spec: SubjectSpec
    ident: bytes
    message: Message

    @classmethod
    def of(cls, owner: Owner, publication: Publication, spec: SubjectSpec, again: str = "") -> Item:
        name = publication.event.id.decode(errors="backslashreplace")
        ident = owner.unit_bytes(name, publication.pipeline, publication.destination, again)
        headers = own_headers(ident, publication, owner.ids)
        return cls(publication, spec, ident, Message(publication.subject, headers, publication.payload))

    @property
    def unit(self) -> Unit:
        return self.publication.pipeline, self.publication.destination

    @property
    def order(self) -> tuple[str, str, bytes] | None:
        """Those that are equal keep their order; None: it has none."""
        key = self.publication.event.key
        return None if key is None else (*self.unit, key)

    @property
    def varies(self) -> bool:
        """Does its subject depend on the event?"""
        return not isinstance(classify(self.spec.subject), Literal)


@dataclass(slots=True)
class Sent:
    """What became of a batch's messages at one connection. failure: of those that are not in the others."""

    stored: list[Item] = field(default_factory=list)
    known: int = 0  # of the stored, the server had them already
    unfit: list[tuple[Item, str, str]] = field(default_factory=list)  # (item, code, cause)
    failure: BridgeError | None = None


class Sender:
    """accepted: destinations of which a message was stored before."""

    def __init__(self, bus: Bus, items: Sequence[Item], accepted: set[Unit]) -> None:
        self.bus = bus
        self._items = items
        self._accepted = accepted
        self._sent = Sent()

    async def send(self, publisher: Publisher) -> Sent:
        """Until everything is stored or one thing prevents it; what is at fault alone does not."""
        limit = self.bus.max_payload
        fit = []
        for item in self._items:
            if item.message.size > limit:
                cause = f"{item.message.size} bytes with its headers; the server's max_payload is {limit}"
                self._sent.unfit.append((item, "too_large", cause))
            else:
                fit.append(item)
        for wave in waves(fit):
            await self._wave(publisher, wave)
            if self._sent.failure is not None:
                break
        return self._sent

    async def _wave(self, publisher: Publisher, wave: Sequence[Item]) -> None:
        began, sent = time.monotonic(), self._sent
        try:
            answers = await publisher.publish([item.message for item in wave])
        except (nats.errors.Error, OSError) as error:
            sent.failure = self.bus.explained(error, f"publish {len(wave)} messages", "", since=began)
            return
        sent.stored += [wave[place] for place in answers.stored]
        sent.known += sum(answers.stored.values())
        self._accepted |= {wave[place].unit for place in answers.stored}
        for place, failure in answers.failed.items():
            await self._judge(wave[place], failure)
        missing = len(wave) - len(answers.stored) - len(answers.failed)
        if missing and sent.failure is None:
            doing = f"publish {missing} of {len(wave)} messages"
            sent.failure = self.bus.explained(TimeoutError(), doing, "", since=began)

    async def _judge(self, item: Item, error: Exception) -> None:
        """One message that was not stored: its event alone is at fault, or the destination. A subject that is the same
        for every event is never an event's fault, nor is one of a destination that has stored nothing yet."""
        sent, settings = self._sent, self.bus.settings
        shown = literal_part(item.spec.subject)
        doing = f"pipeline {item.unit[0]}, destination {item.unit[1]}, subject {shown}"
        of_event = item.varies and item.unit in self._accepted
        failure: BridgeError | None = None
        why = ""
        if exceeds_stream(error):
            sent.unfit.append(
                (item, "too_large", "larger than the max_msg_size of the stream of its subject")
            )
            return
        if isinstance(error, NotPermitted):
            why = "the user may not publish to this event's subject"
            failure = not_permitted(settings, "publish", shown)
        elif has_no_stream(error) and await self._nobody_takes(item.publication.subject):
            why = "no JetStream stream takes this event's subject"
            failure = Halt(
                f"NATS (connections.{settings.connection}): {doing}: no JetStream stream takes it",
                reason=REFUSED,
                hint=stream_command(settings.replicas, shown),
            )
        if why and of_event:
            sent.unfit.append((item, "subject", why))
        else:
            sent.failure = sent.failure or failure or problem(settings, error, doing)

    async def _nobody_takes(self, subject: str) -> bool:
        """Does JetStream say that no stream takes it? False where it says nothing: then it is away."""
        domain = self.bus.settings.domain
        prefix = f"$JS.{domain}.API" if domain else "$JS.API"
        try:
            answer = await self.bus.client.request(
                f"{prefix}.STREAM.NAMES", json.dumps({"subject": subject}).encode(), timeout=5
            )
            found = json.loads(answer.data)
        except (nats.errors.Error, OSError, ValueError):
            return False
        return "error" not in found and not found.get("streams")


def waves(items: Sequence[Item]) -> list[list[Item]]:
    """What may be in flight together: in each the first that is left of every key, in the order of events."""
    found: list[list[Item]] = []
    depth: dict[tuple[str, str, bytes], int] = {}
    for item in items:
        order = item.order
        at = 0
        if order is not None:
            at = depth.get(order, 0)
            depth[order] = at + 1
        if at == len(found):
            found.append([])
        found[at].append(item)
    return found


_PLAIN = re.compile(rb"(?:[\x21-\x24\x26-\x7e]+(?: +[\x21-\x24\x26-\x7e]+)*\n)+")
"""Values that need no escape (header_value), a line each: asked once a message."""


def own_headers(ident: bytes, publication: Publication, source: str) -> bytes:
    """The lines of a message's headers: the unit's id, the event, and what the configuration adds."""
    event = publication.event
    name, kind, key, at = event.id, event.type, event.key, event.occurred_at
    if not _PLAIN.fullmatch(b"%b\n%b\n%b\n%b\n" % (name, kind, key or b"-", at or b"-")):
        name, kind = header_value(name), header_value(kind)
        key, at = (None if value is None else header_value(value) for value in (key, at))
    text = ident.hex()
    lines = (
        f"Nats-Msg-Id: {text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}\r\n".encode(),
        b"Bridge-Event-Id: %b\r\nBridge-Event-Type: %b\r\nBridge-Event-Seq: %b\r\n" % (name, kind, event.seq),
        b"" if key is None else b"Bridge-Event-Key: %b\r\n" % key,
        b"" if at is None else b"Bridge-Occurred-At: %b\r\n" % at,
        b"Bridge-Source: %b\r\n" % source.encode() if source else b"",
        publication.headers,
    )
    return b"".join(lines)


def stream_command(replicas: int, subject: str) -> str:
    """Makes a stream that takes a subject."""
    name = subject.partition(".")[0].upper().replace(">", "EVENTS")
    return f'nats stream add {name} --subjects "{subject}" --storage file --replicas {replicas} --defaults'
