"""Publishes many messages to JetStream and awaits each acknowledgement.

nats-py spends 38 to 41 us on a message and its acknowledgement. Here the protocol's lines of many messages are written
at once, and an answer is matched by a number in its subject, without an object or a task each.

What is sent together is in flight together, in the order of the list. If one of them fails, those behind it may have
been stored: whoever needs an order sends together only what needs none (stream/waves.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import nats.errors
import nats.js.errors

if TYPE_CHECKING:
    from bridge.bus.connection import Bus

AT_ONCE = 2000
"""Messages in flight. The server keeps at most 10,000 unprocessed ones of a stream (jetstream.max_buffered_msgs)."""
_WRITE_BYTES = 512 * 1024
ACK_SECONDS = 10.0
"""Without any answer for so long, those that are missing are given up."""


class Message(NamedTuple):
    """headers: lines that end with CRLF each, without the first (NATS/1.0) and the last."""

    subject: str
    headers: bytes
    payload: bytes

    @property
    def size(self) -> int:
        """As the server's max_payload counts it."""
        return len(_VERSION) + len(self.headers) + 2 + len(self.payload)


class NotPermitted(Exception):
    """The user may not publish to this subject."""


_VERSION = b"NATS/1.0\r\n"


@dataclass(slots=True)
class Answers:
    """Of one call: stored, by place (True: it was there already); failed, by place; those in neither got no answer."""

    stored: dict[int, bool]
    failed: dict[int, Exception]


class Publisher:
    """The publishing of one Bus. All methods run in its thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.sid = -1
        self._prefix = ""
        self._client: object | None = None
        self._first = 0  # the number of the first message that is in flight
        self._waiting: asyncio.Future[None] | None = None
        self._answers = Answers({}, {})
        self._messages: Sequence[Message] = ()
        self._left = 0
        self._lock = asyncio.Lock()
        self._last = 0.0

    async def publish(self, messages: Sequence[Message]) -> Answers:
        """Raises what prevents all of them: nats-py's errors, OSError. Those of single messages are in the answers."""
        async with self._lock:
            found = Answers({}, {})
            for start in range(0, len(messages), AT_ONCE):
                part = await self._together(messages[start : start + AT_ONCE])
                found.stored.update((start + place, known) for place, known in part.stored.items())
                found.failed.update((start + place, error) for place, error in part.failed.items())
                if len(part.stored) < len(messages[start : start + AT_ONCE]):
                    break
            return found

    async def _together(self, messages: Sequence[Message]) -> Answers:
        client = self._bus.client
        if not client.is_connected:
            raise nats.errors.ConnectionClosedError
        if self._client is not client:
            await self._listen(client)
        self._answers = answers = Answers({}, {})
        self._messages, self._left = messages, len(messages)
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        self._last = loop.time()
        first = self._first
        try:
            await self._write(client, messages, first)
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=1.0)
                if not waiting.done() and loop.time() - self._last > ACK_SECONDS:
                    break
            if waiting.done():
                waiting.result()
        finally:
            self._waiting, self._messages = None, ()
            self._first = first + len(messages)
        return answers

    async def _listen(self, client: object) -> None:
        """Subscribe to the answers, once a connection; nats-py subscribes again after a reconnect."""
        self._prefix = client.new_inbox() + "."  # type: ignore[attr-defined]

        async def unused(_: object) -> None:
            """The client hands answers over before nats-py sees them."""

        subscription = await client.subscribe(f"{self._prefix}*", cb=unused)  # type: ignore[attr-defined]
        self.sid = subscription._id
        client.acks = self  # type: ignore[attr-defined]
        self._client = client

    async def _write(self, client: object, messages: Sequence[Message], first: int) -> None:
        prefix = self._prefix
        lines: list[bytes] = []
        size = 0
        for number, message in enumerate(messages, first):
            header = len(_VERSION) + len(message.headers) + 2
            lines += (
                f"HPUB {message.subject} {prefix}{number} {header} {header + len(message.payload)}\r\n".encode(),
                _VERSION,
                message.headers,
                b"\r\n",
                message.payload,
                b"\r\n",
            )
            size += header + len(message.payload)
            if size >= _WRITE_BYTES:
                await client._send_command(b"".join(lines))  # type: ignore[attr-defined]
                await client._flush_pending(force_flush=True)  # type: ignore[attr-defined]
                lines, size = [], 0
        if lines:
            await client._send_command(b"".join(lines))  # type: ignore[attr-defined]
            await client._flush_pending()  # type: ignore[attr-defined]

    def lost(self) -> None:
        """The connection is gone: no answer will come."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(nats.errors.ConnectionClosedError())

    def refused(self, subject: str) -> None:
        """The user may not publish to it; such a message has no other answer."""
        for place, message in enumerate(self._messages if self._waiting is not None else ()):
            if message.subject == subject:
                self._answer(place, NotPermitted(subject))

    def answered(self, subject: bytes, data: bytes, headers: bytes | None) -> None:
        place = int(subject[len(self._prefix) :]) - self._first
        if headers:
            self._answer(place, nats.js.errors.NoStreamResponseError())
        elif b'"error"' in data:
            self._answer(place, _error(data))
        else:
            self._answer(place, b'"duplicate"' in data)

    def _answer(self, place: int, answer: bool | Exception) -> None:
        answers = self._answers
        if self._waiting is None or place < 0 or place in answers.stored or place in answers.failed:
            return  # of a call that was given up
        if isinstance(answer, bool):
            answers.stored[place] = answer
        else:
            answers.failed[place] = answer
        self._left -= 1
        self._last = asyncio.get_running_loop().time()
        if not self._left and not self._waiting.done():
            self._waiting.set_result(None)


def _error(data: bytes) -> Exception:
    try:
        nats.js.errors.APIError.from_error(json.loads(data)["error"])
    except nats.js.errors.APIError as error:
        return error
    except (ValueError, KeyError, TypeError):
        pass
    return nats.errors.Error("nats: an answer that cannot be read")


def has_no_stream(error: Exception) -> bool:
    """Nothing answered: no stream takes the subject, or JetStream is away."""
    return isinstance(error, nats.js.errors.NoStreamResponseError)


def exceeds_stream(error: Exception) -> bool:
    """It is larger than the stream's max_msg_size (error code 10054)."""
    return isinstance(error, nats.js.errors.APIError) and error.err_code == 10054
