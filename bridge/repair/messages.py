"""A message that a sink's receiver refused, again: rendered anew from its event, and what became of it.

The delivery keeps the message as it was rendered when the event was planned. A template that was wrong then is right
now, so the retry renders today's configuration; the event itself is read from the outbox, because a refused message
keeps none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg

from bridge.expressions.document import json_text, parse_exact
from bridge.postgres.connect import connect
from bridge.postgres.dead_letters import Letter
from bridge.postgres.profiles import SOURCE
from bridge.postgres.progress import deliveries, find, letters
from bridge.postgres.served import at_target
from bridge.postgres.stored import message_fields, storable
from bridge.protocol.events import Event
from bridge.sinks.joining import IDENTITY
from bridge.stream.spec import StreamSpec

if TYPE_CHECKING:
    from bridge.repair.dead import RetryOutcome

_LOOK_SECONDS = 0.2


class OldEvents:
    """Reads the events of messages from the outbox. Connects on first use."""

    def __init__(self, plan: StreamSpec) -> None:
        self._plan = plan
        self._connection: psycopg.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def event(self, letter: Letter) -> Event | None:
        """None: it was pruned, or the target could not hold its id as it is."""
        if self._connection is None:
            self._connection = connect(self._plan.source_dsn, SOURCE, f"bridge-dead/{self._plan.stream}")
        return find(self._connection, self._plan.outbox, letter.event_id, letter.event_seq)


def rendered(body: bytes, sent: str) -> tuple[str, str]:
    """The new body as the column's text, and what the operator should know of it.

    body: rendered anew. sent: as it was refused. Where a part of a mail's recipients has it already, `sent` has what
    the sink noted of them (keys with a leading underscore), and only those in its `to` get the new one.
    """
    old, new = message_fields(sent), parse_exact(body)
    if IDENTITY in old:  # it was moved: the receiver knows it by that id
        new = {**new, IDENTITY: old[IDENTITY]}
        body = json_text(new)
    noted = {name: value for name, value in old.items() if name.startswith("_")}
    why = ""
    if noted and old.get("to"):
        body, why = json_text({**new, **noted, "to": old["to"]}), "to those who did not take it before"
    return storable(body), why


def settled(
    target: psycopg.Connection, stream: str, outcomes: Sequence[RetryOutcome], seconds: float
) -> list[RetryOutcome]:
    """The outcomes, with what became of the messages that were queued: sent, failed again, or still waiting.

    Waits up to `seconds`; not at all where no bridge runs that would send them.
    """
    waiting = [one.id for one in outcomes if one.result == "queued"]
    deadline = time.monotonic() + seconds
    while True:
        found = deliveries(target, waiting)
        served = bool(at_target(target, stream))
        pending = any(row["state"] == "pending" for row in found.values())
        if not pending or not served or time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_SECONDS)
    dead = letters(target, [name for name, row in found.items() if row["state"] == "dead"])
    return [
        one if one.result != "queued" else _became(one, found.get(one.id), dead.get(one.id), served=served)
        for one in outcomes
    ]


def _became(
    outcome: RetryOutcome,
    delivery: Mapping[str, Any] | None,
    letter: Mapping[str, Any] | None,
    *,
    served: bool,
) -> RetryOutcome:
    if delivery is None or delivery["state"] == "sent":
        return replace(outcome, result="sent")
    if letter is not None:
        return replace(outcome, result="failed", code=letter["code"], why=letter["cause"])
    words = [outcome.why] if outcome.why else []
    if delivery["attempts"]:
        words.append(f"its next attempt waits, after {delivery['last_error']}")
    elif delivery["behind"]:
        words.append("behind an earlier message of its key")
    words.append("it waits to be sent" if served else "it waits for a bridge that runs: bridge run")
    return replace(outcome, why="; ".join(words))
