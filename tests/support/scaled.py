"""A world whose events go over a log: its relays and workers, what is done to the log, and the order of its partitions.

    scaled = Scaled(world, node.url, partitions=3)
    relay, worker = scaled.relay(), scaled.worker()     # started
    scaled.law()                                        # conservation, and each partition in order

The log is read and written with nats-py, past the product.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings
from bridge.errors import BridgeError
from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database
from tests.support.truth import Verdict
from tests.support.world import World, drop_slot, until

LOG = "outbox_bridge_bus"
"""The relay's name, and its stream's: <source.slot>_<connection of the log>."""

_TRUTH = "select event_id::text, key, n from rig.truth where key is not null"
_PARTITION = (
    "select ('x' || left(encode(sha256(convert_to(%s, 'UTF8')), 'hex'), 8))::bit(32)::bigint %% %s + 1"
)
_COMMITTED = "select count(*) from rig.truth where type = 'usage.limit_reached'"
_APPLIED = "select count(distinct row ->> 'event_id') from rig.effects"
_EFFECTS = "select row ->> 'event_id' from rig.effects where table_name = %s order by n"


@dataclass(frozen=True, slots=True)
class Message:
    """Of the log."""

    sequence: int
    subject: str
    data: bytes
    headers: dict[str, str]


class Log:
    """The stream of a relay, as somebody who may do anything to it has it. Close it."""

    def __init__(self, servers: Sequence[str], name: str = LOG) -> None:
        self.name = name
        self.bus = Bus(BusSettings("log", tuple(servers)), "a test")

    def _do(self, make: Any, doing: str) -> Any:
        self.bus.connect(60)
        return self.bus.call(make, doing=doing, timeout=30)

    def state(self) -> Any:
        """first_seq, last_seq, messages ..."""
        return self._do(lambda js: js.stream_info(self.name), "look").state

    def exists(self) -> bool:
        with contextlib.suppress(BridgeError):
            return bool(self.state())
        return False

    def purge(self) -> None:
        self._do(lambda js: js.purge_stream(self.name), "purge")

    def delete(self) -> None:
        self._do(lambda js: js.delete_stream(self.name), "delete")

    def forget(self, sequence: int) -> None:
        """One message."""
        self._do(lambda js: js.delete_msg(self.name, sequence), "delete a message")

    def messages(self) -> list[Message]:
        """Everything that is there now, the oldest first."""

        async def read(js: Any) -> list[Message]:
            state = (await js.stream_info(self.name)).state
            found, sequence = [], state.first_seq
            while sequence <= state.last_seq:
                try:
                    one = await js.get_msg(self.name, seq=sequence, next=True, direct=True, subject=">")
                except Exception:  # the last ones were removed meanwhile
                    break
                found.append(Message(int(one.seq), one.subject, one.data or b"", dict(one.headers or {})))
                sequence = int(one.seq) + 1
            return found

        messages: list[Message] = self._do(read, "read everything")
        return messages

    def put(self, messages: Sequence[Message]) -> None:
        """Put these at the end, without the name by which a log knows one that was sent twice."""

        async def publish(js: Any) -> None:
            for one in messages:
                headers = {name: text for name, text in one.headers.items() if name == "Outbox-Slice"}
                await js.publish(one.subject, one.data, headers=headers or None)

        self._do(publish, "put messages")

    def close(self) -> None:
        self.bus.close()


class Scaled:
    """Relays and workers of a world."""

    def __init__(
        self,
        world: World,
        *servers: str,
        partitions: int = 3,
        replicas: int = 1,
        log_size: str = "256MiB",
    ) -> None:
        self.world = world
        self.partitions = partitions
        self.servers = servers

        def over_log(document: dict[str, Any]) -> None:
            document["scale"] = {"log": "bus", "partitions": partitions, "log_size": log_size}
            document["connections"]["bus"] = {
                "type": "nats",
                "servers": list(servers),
                **({"replicas": replicas} if replicas > 1 else {}),
            }

        world.configure(over_log)
        self.log = Log(servers)

    def relay(self, **options: Any) -> BridgeProcess:
        return self._part("relay", options)

    def worker(self, **options: Any) -> BridgeProcess:
        return self._part("worker", options)

    def _part(self, verb: str, options: dict[str, Any]) -> BridgeProcess:
        made = self.world.bridge(**options)
        made.verb = verb
        return made.start()

    def streaming(self, deadline: float = 60.0) -> None:
        """Until each partition has applied frames of the relay as it is now: its place in the chain is registered."""
        wanted = (
            "select count(*) from outbox.stream s join outbox.relay r using (relay, incarnation)"
            " where s.confirmed is not null"
        )
        until(lambda: self.world.source.value(wanted) >= self.partitions, "all partitions stream", deadline)

    @property
    def slot(self) -> str:
        """The relay's."""
        return str(
            self.world.source.value(
                "select relay || '_' || incarnation from outbox.relay where relay = %s", [LOG]
            )
        )

    def drop_slot(self) -> None:
        """As somebody else would."""
        with self.world.source.connect() as connection:
            drop_slot(connection, self.slot)

    def law(self, deadline: float = 120.0) -> Verdict:
        """Conservation, and each partition's effects in the order of the commits of each producer."""
        self.settled(deadline)
        verdict = self.world.law(deadline=deadline)
        wrong = prefixes(self.world.source, self.world.target, self.partitions)
        assert not wrong, f"{wrong[:3]}\n{self.world.log_tails()}"
        return verdict

    def settled(self, deadline: float = 120.0) -> None:
        """Until as many events have an effect as were committed: a marker shows one partition's end only. The law says
        what is missing, if that is never reached."""
        with contextlib.suppress(AssertionError):
            until(lambda: self._effects() >= self.world.source.value(_COMMITTED), "all is applied", deadline)

    def _effects(self) -> int:
        dead = self.world.target.value("select count(*) from bridge.dead_letter where state = 'open'")
        return int(self.world.target.value(_APPLIED) + dead)

    def close(self) -> None:
        self.log.close()


def prefixes(
    source: Database, target: Database, partitions: int, table: str = "events.usage_limits"
) -> list[str]:
    """What was applied after a later event of its partition and producer, and what is missing before one that was
    applied: also amid a run. A producer's truth is in the order of its commits; its keys begin with its name."""
    effects = target.execute(
        _EFFECTS, [table]
    )  # read first: whatever came before these is in the truth by now
    truth = {event: (key, n) for event, key, n in source.execute(_TRUTH)}
    with psycopg.connect(source.dsn) as connection:
        places = {
            key: connection.execute(_PARTITION, [key, partitions]).fetchall()[0][0]
            for key in {key for key, _ in truth.values()}
        }
    newest: dict[tuple[str, int], int] = {}
    wrong = []
    applied = set()
    for (event,) in effects:
        if event not in truth:
            continue
        applied.add(event)
        key, n = truth[event]
        place = key.rpartition("-")[0], places[key]
        if newest.get(place, 0) > n:
            wrong.append(f"{event}: {n} after {newest[place]} of {place}")
        newest[place] = max(n, newest.get(place, 0))
    for event, (key, n) in truth.items():
        place = key.rpartition("-")[0], places[key]
        if event not in applied and n < newest.get(place, 0):
            wrong.append(f"{event}: {n} is missing before {newest[place]} of {place}")
    return wrong


def shuffled(messages: Sequence[Message], chance: random.Random) -> list[Message]:
    """All of them twice, in any order."""
    every = [*messages, *messages]
    chance.shuffle(every)
    return every
