"""What a batch publishes to NATS: before its transaction is sent, so that the ledger never goes past an event that was
not published.

    prepare: begin(planned)                  sent while the target still commits the batch before
    apply:   settled(planned, ...)           every message is acknowledged, or is a dead letter; else Retry or Halt

A crash between the two publishes again, with the same `Nats-Msg-Id`; so does another bridge that takes over. A session
that begins anew in this process does not: what was acknowledged is remembered for a while.

Order within a key: a message is sent when the one before it of its key is acknowledged. What is in flight together
never has a key twice, because JetStream may store a later message and lose an earlier one while its leader changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError
from bridge.failpoints import hit
from bridge.planning.plan import DeadLetter, Owner, Planned
from bridge.planning.spec import PipelineSpec, SubjectSpec, Unit

if TYPE_CHECKING:
    from bridge.bus.connection import Bus
    from bridge.config.nats import NatsConnection
    from bridge.stream.waves import Sent

_REMEMBERED = 20_000
"""Acknowledged messages that a later session of this process does not send again: some batches of them."""

Told = Callable[[str, str, int], None]
"""(destination, outcome, messages): sent, duplicate or dead."""


class Publications:
    """The publishing of one stream, across its sessions. `close` it.

    connections: those of type nats, by name. told: counts what became of messages. done: called from another thread
    when something has ended.
    """

    def __init__(
        self,
        owner: Owner,
        pipelines: Sequence[PipelineSpec],
        connections: Mapping[str, NatsConnection],
        *,
        told: Told = lambda *_: None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self._owner = owner
        self._specs: dict[Unit, SubjectSpec] = {
            (pipeline.name, name): spec
            for pipeline in pipelines
            for name, spec in pipeline.destinations.items()
            if isinstance(spec, SubjectSpec)
        }
        self._connections = connections
        self._told = told
        self._done = done
        self._buses: dict[str, Bus] = {}
        self._flying: list[tuple[Planned, Future[Sent]]] = []
        self._acknowledged: dict[bytes, None] = {}
        self._accepted: set[Unit] = set()

    def close(self) -> None:
        for bus in self._buses.values():
            bus.close()
        self._buses.clear()

    def begin(self, planned: Planned, result_of: Callable[[Future[Any]], Any], *, again: str = "") -> None:
        """Send without waiting for it. again: the name of a replay, whose messages have other ids."""
        self._give_up(planned, result_of)
        hit("publish.before")
        from bridge.stream.waves import Item, Sender  # noqa: PLC0415  for connections of type nats only

        items: dict[str, list[Item]] = {}
        for publication in planned.publications:
            spec = self._specs[publication.pipeline, publication.destination]
            item = Item.of(self._owner, publication, spec, again)
            if item.ident not in self._acknowledged:
                items.setdefault(spec.connection, []).append(item)
        for name, some in items.items():
            sender = Sender(self._bus(name), some, self._accepted)
            future = sender.bus.publishing(sender.send)
            future.add_done_callback(lambda _: self._done())
            self._flying.append((planned, future))

    def settled(self, planned: Planned, result_of: Callable[[Future[Any]], Any]) -> list[DeadLetter]:
        """Wait until every message is stored. Returns those that can never be, which are among the plan's dead letters
        then, and no longer among its publications. Raises Retry or Halt; then nothing of the batch may be applied."""
        failure: BridgeError | None = None
        letters: list[DeadLetter] = []
        mine = [future for owner, future in self._flying if owner is planned]
        for future in mine:
            sent: Sent = result_of(future)
            self._remember(sent)
            failure = failure or sent.failure
            letters += [
                DeadLetter(*item.unit, item.publication.event, code, cause)
                for item, code, cause in sent.unfit
            ]
        self._flying = [one for one in self._flying if one[0] is not planned]
        if failure is not None:
            raise failure
        if letters:
            dead = {(one.pipeline, one.destination, one.event.id) for one in letters}
            planned.publications = [
                one
                for one in planned.publications
                if (one.pipeline, one.destination, one.event.id) not in dead
            ]
            bury_in(planned, letters)
            for letter in letters:
                self._told(letter.destination, "dead", 1)
        hit("publish.settled")
        return letters

    def publish(self, planned: Planned, *, again: str = "") -> list[DeadLetter]:
        """Both, for whoever has nothing else to do meanwhile."""
        if not planned.publications:
            return []
        self.begin(planned, Future.result, again=again)
        return self.settled(planned, Future.result)

    # -- before and after --------------------------------------------------------------------------------

    def _give_up(self, planned: Planned, result_of: Callable[[Future[Any]], Any]) -> None:
        """Messages of a session that has ended: none of them may come in between the ones that are sent now."""
        rest = [future for owner, future in self._flying if owner is not planned]
        self._flying = []
        for future in rest:
            try:
                self._remember(result_of(future))
            except BridgeError:
                continue

    def _remember(self, sent: Sent) -> None:
        counts: dict[str, int] = {}
        for item in sent.stored:
            self._acknowledged[item.ident] = None
            self._accepted.add(item.unit)
            counts[item.unit[1]] = counts.get(item.unit[1], 0) + 1
        for name, count in counts.items():
            self._told(name, "sent", count)
        while len(self._acknowledged) > _REMEMBERED:
            del self._acknowledged[next(iter(self._acknowledged))]

    def _bus(self, name: str) -> Bus:
        bus = self._buses.get(name)
        if bus is None:
            from bridge.bus.connection import Bus  # noqa: PLC0415  for connections of type nats only
            from bridge.bus.settings import bus_settings  # noqa: PLC0415

            bus = Bus(bus_settings(name, self._connections[name]), f"outbox_bridge {self._owner.stream}")
            self._buses[name] = bus
        return bus


def bury_in(planned: Planned, letters: Sequence[DeadLetter]) -> None:
    """Make these dead letters of the plan; an event is counted once a pipeline."""
    dead = {(one.pipeline, one.event.id) for one in planned.dead_letters}
    for letter in letters:
        if (letter.pipeline, letter.event.id) not in dead:
            dead.add((letter.pipeline, letter.event.id))
            planned.outcomes[letter.pipeline, "applied"] -= 1
            planned.outcomes[letter.pipeline, "dead"] += 1
    planned.dead_letters += letters
