"""A relay's frames in JetStream: one stream for each relay, a subject for each partition.

    <relay>                  the stream
    <relay>.frames.<i>       the frames of partition i, of every origin
    <relay>.again            (not stored) a worker asks the relay for frames once more

Nothing here is believed by those who use it (protocol/chain.py): a frame may be lost, come twice or out of order.
A payload that is larger than the server's max_payload comes in slices.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from bridge.bus.connection import Bus
from bridge.errors import BridgeError, Halt

SLICE = "Outbox-Slice"
"""Header of a slice: its number, from 1 on, and how many there are."""
_ROOM = 4096  # for the headers of a message
_PULLED = 64  # messages that a reader asks for at a time
_EXPIRES = 5.0
_HEARTBEAT = 1.0
"""Of a pull that has nothing to bring. After two and a half of them the consumer is taken for lost: its node may be."""
_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Stored:
    """A frame as the log has it. sequence: of its last message in the stream."""

    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class JournalSpec:
    """relay: the stream's name and the subjects' prefix. max_bytes: that the log may hold. origin: whose events they
    are; two sources must not share a stream."""

    relay: str
    origin: str
    max_bytes: int
    replicas: int


def frames_of(relay: str, partition: int) -> str:
    """The subject of a partition's frames."""
    return f"{relay}.frames.{partition}"


def again_of(relay: str) -> str:
    return f"{relay}.again"


class Journal:
    """What a relay does with the log. Methods wait, and raise BridgeError. done: called when something that was sent
    has an answer, from another thread."""

    def __init__(self, bus: Bus, relay: str, done: Callable[[], None]) -> None:
        self.bus = bus
        self.relay = relay
        self._done = done

    def prepare(self, spec: JournalSpec) -> None:
        """Make the stream, or take the one that is there. Raises Halt where it is another source's."""
        bus, name = self.bus, self.relay
        bus.connect()
        bus.check_jetstream()
        found = bus.call(lambda js: _info(js, name), doing=f"look at stream {name}")
        if found is None:
            bus.call(lambda js: js.add_stream(_config(spec)), doing=f"make stream {name}")
            return
        origin = (found.config.metadata or {}).get("outbox_bridge_source", spec.origin)
        if origin != spec.origin:
            raise Halt(
                f"stream {name} of the log has the events of another source ({origin}); this one is {spec.origin}. "
                "Nothing was changed",
                reason="log_taken",
                hint="give this source another source.slot, or this log an account of its own. If the other source is "
                f"gone for good: nats stream rm {name}",
            )

    def send(self, partition: int, data: bytes, name: str) -> Future[int]:
        """Put a frame into the log; the result is its sequence. name: two frames of one name are stored once."""
        subject = frames_of(self.relay, partition)
        sent = self.bus.submit(
            lambda js: _send(js, subject, data, name, self.bus.max_payload - _ROOM),
            doing=f"publish to {subject}",
            subject=subject,
        )
        sent.add_done_callback(lambda _: self._done())
        return sent

    def size(self) -> Future[tuple[int, int]]:
        """Bytes that the log holds, and that it may."""

        async def look(js: Any) -> tuple[int, int]:
            found = await js.stream_info(self.relay)
            return int(found.state.bytes), int(found.config.max_bytes or -1)

        return self.bus.submit(look, doing=f"look at stream {self.relay}")

    def tail(self, partition: int) -> Stored | None:
        """The last frame of a partition, unless it came in slices."""
        subject = frames_of(self.relay, partition)
        found: Stored | None = self.bus.call(
            lambda js: _last(js, self.relay, subject), doing=f"read the end of {subject}"
        )
        return found

    def drop(self, partition: int, before: int) -> Future[Any]:
        """Forget the frames of a partition before this sequence; they are applied."""
        subject = frames_of(self.relay, partition)
        return self.bus.submit(
            lambda js: js.purge_stream(self.relay, seq=before, subject=subject),
            doing=f"purge {subject}",
        )

    def listen(self, heard: Callable[[bytes], None]) -> None:
        """Call back with what workers ask for, in the bus's thread."""

        async def subscribe(_: Any) -> None:
            async def hear(message: Any) -> None:
                heard(message.data)

            await self.bus.client.subscribe(again_of(self.relay), cb=hear)

        self.bus.call(subscribe, doing=f"subscribe to {again_of(self.relay)}", subject=again_of(self.relay))

    def ask(self, data: bytes) -> None:
        """Ask the relay; it may not hear it."""
        subject = again_of(self.relay)
        self.bus.submit(
            lambda _: self.bus.client.publish(subject, data), doing=f"publish to {subject}", subject=subject
        )


def _config(spec: JournalSpec) -> Any:
    from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig  # noqa: PLC0415  an extra

    return StreamConfig(
        name=spec.relay,
        subjects=[f"{spec.relay}.frames.*"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,  # a full log makes the relay wait
        max_bytes=spec.max_bytes,
        num_replicas=spec.replicas,
        duplicate_window=120,
        allow_direct=True,
        metadata={"outbox_bridge_source": spec.origin},
    )


async def _info(js: Any, name: str) -> Any:
    from nats.js.errors import NotFoundError  # noqa: PLC0415  an extra

    with contextlib.suppress(NotFoundError):
        return await js.stream_info(name)
    return None


async def _send(js: Any, subject: str, data: bytes, name: str, most: int) -> int:
    if len(data) <= most:
        return int((await js.publish(subject, data, headers={"Nats-Msg-Id": name})).seq)
    parts = [data[at : at + most] for at in range(0, len(data), most)]
    sequence = 0
    for number, part in enumerate(parts, 1):
        headers = {"Nats-Msg-Id": f"{name}/{number}", SLICE: f"{number}/{len(parts)}"}
        sequence = int((await js.publish(subject, part, headers=headers)).seq)
    return sequence


async def _last(js: Any, stream: str, subject: str) -> Stored | None:
    from nats.js.errors import NotFoundError  # noqa: PLC0415  an extra

    with contextlib.suppress(NotFoundError):
        found = await js.get_last_msg(stream, subject, direct=True)
        return None if found.headers and SLICE in found.headers else Stored(int(found.seq), found.data)
    return None


class Reading:
    """Reads one partition's frames, in the bus's thread, into a queue of bounded size.

    behind: told of a frame's bytes, whether it lies before what the reader needs; reading begins behind the last of
    those. None: it begins with the newest frame. arrived: called, from that thread, when there is something to take.
    """

    def __init__(
        self,
        bus: Bus,
        relay: str,
        partition: int,
        *,
        behind: Callable[[bytes], bool] | None,
        arrived: Callable[[], None],
        max_bytes: int,
    ) -> None:
        self._bus = bus
        self._stream = relay
        self._subject = frames_of(relay, partition)
        self._behind = behind
        self._arrived = arrived
        self._max_bytes = max_bytes
        self._queue: deque[Stored] = deque()
        self._came = self._taken = 0  # bytes; each is written by one thread
        self._room = asyncio.Event()
        self._large = False  # the next message is larger than the room that was asked for
        self._slices: list[bytes] = []
        self._next = 0  # sequence; 0: not known yet
        self._ended = 0  # pulls that brought all, and whose end the server has not told yet
        self.failed: BridgeError | None = None
        self._task = bus.spawn(self._run())

    def take(self) -> Stored | None:
        """The next frame."""
        if not self._queue:
            return None
        found = self._queue.popleft()
        self._taken += len(found.data)
        if not self._room.is_set():
            self._bus.soon(self._room.set)
        return found

    @property
    def _held(self) -> int:
        return self._came - self._taken

    @property
    def _batch(self) -> int:
        return 1 if self._large else _PULLED

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self._read()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.failed = self._bus.explained(error, f"read {self._subject}", "", since=float("inf"))
            await asyncio.sleep(_PAUSE)

    async def _read(self) -> None:
        """Read until the consumer is lost."""
        client, js = self._bus.client, self._bus.jetstream
        if self._next > (await js.stream_info(self._stream)).state.last_seq + 1:
            self._next = 0  # it was made anew, or is an older copy: what comes next has smaller numbers
        if not self._next:
            self._next = await self._first(js)
        name = await self._consume(js)
        self._ended = 0
        inbox = client.new_inbox()
        queue: asyncio.Queue[Any] = asyncio.Queue()
        subscription = await client.subscribe(inbox, cb=queue.put)
        try:
            while True:
                await self._wait_for_room()
                await self._pull(client, js, name, inbox)
                if not await self._receive(queue):
                    return
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()
            self._forget(name)

    def _forget(self, consumer: str) -> None:
        """Ask for its end, and wait for no answer: it may have gone with its node. Without pulls it ends by itself."""
        js = self._bus.jetstream

        async def delete() -> None:
            with contextlib.suppress(Exception):
                await js.delete_consumer(self._stream, consumer)

        self._bus.spawn(delete())

    async def _wait_for_room(self) -> None:
        """Until half of it is free; for a message that is larger than that, until nothing is held."""
        while self._held > (0 if self._large else self._max_bytes // 2):
            self._room.clear()
            if self._held > (0 if self._large else self._max_bytes // 2):
                await self._room.wait()

    async def _pull(self, client: Any, js: Any, consumer: str, inbox: str) -> None:
        room = max(self._max_bytes, self._bus.max_payload) if self._large else self._max_bytes - self._held
        wanted = {
            "batch": self._batch,
            "expires": int(_EXPIRES * 1_000_000_000),
            "idle_heartbeat": int(_HEARTBEAT * 1_000_000_000),
            "max_bytes": room,
        }
        subject = f"{js._prefix}.CONSUMER.MSG.NEXT.{self._stream}.{consumer}"
        await client.publish(subject, json.dumps(wanted).encode(), reply=inbox)

    async def _receive(self, queue: asyncio.Queue[Any]) -> bool:
        """What one pull brings. False: the consumer is gone."""
        got = 0
        wanted = self._batch
        while got < wanted:
            try:
                message = await asyncio.wait_for(queue.get(), 2.5 * _HEARTBEAT)
            except TimeoutError:
                return False
            status = (message.headers or {}).get("Status")
            if status == "100":  # a heartbeat
                continue
            if status == "409" and "completed" in str(message.headers).lower():
                if self._ended:  # of a pull that brought all that it was for
                    self._ended -= 1
                    continue
                return True
            if status is not None:
                self._large = status == "409" and "maxbytes" in str(message.headers).lower()
                return self._large or status == "408"
            got += 1
            self._large = False
            self._put(message)
        self._ended += 1
        return True

    def _put(self, message: Any) -> None:
        self.failed = None
        sequence = int(message.metadata.sequence.stream)
        self._next = sequence + 1
        number, _, count = (message.headers or {}).get(SLICE, "").partition("/")
        data = message.data
        if number:
            if int(number) == 1:
                self._slices = []
            self._slices.append(data)
            if int(number) < int(count) or len(self._slices) != int(count):
                return
            data, self._slices = b"".join(self._slices), []
        self._came += len(data)
        self._queue.append(Stored(sequence, data))
        self._arrived()

    async def _consume(self, js: Any) -> str:
        """A consumer from the next sequence on: it lives as long as its reader."""
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy  # noqa: PLC0415  an extra

        info = await js.add_consumer(
            self._stream,
            ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._next,
                filter_subject=self._subject,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=30,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        return str(info.name)

    async def _first(self, js: Any) -> int:
        """The sequence to begin with: by halving, the first frame that is not behind."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415  an extra

        state = (await js.stream_info(self._stream)).state
        low, high = max(state.first_seq, 1), state.last_seq + 1
        if self._behind is None:
            return int(high)
        while low < high:
            middle = (low + high) // 2
            try:
                found = await js.get_msg(
                    self._stream, seq=middle, subject=self._subject, direct=True, next=True
                )
            except NotFoundError:
                high = middle
                continue
            if found.headers and SLICE in found.headers and not found.headers[SLICE].startswith("1/"):
                high = middle  # amid a frame: earlier is never wrong
                continue
            if self._behind(found.data):
                low = int(found.seq) + 1
            else:
                high = middle
        return int(low)
