"""One destination's loop: claim due messages in sets, send them, settle them in sets. At most CAPACITY messages in
flight, one per key, and a part of that per recipient. A destination's errors stay in its lane, and a recipient's errors
with the recipient.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge.dispatch.recipients import Recipients, label
from bridge.dispatch.schedule import RETRY, Breaker, DispatchWatcher, LaneSpec, LeftAlone, Pacer
from bridge.dispatch.settling import Settler
from bridge.failpoints import hit
from bridge.postgres import delivery as queue
from bridge.postgres.delivery import Again, AsyncLink, Dead
from bridge.sinks.model import Delivery, Http, SendError, SendOutcome, Wire

CAPACITY = 64
_CAPACITY_PACED = 8  # where the vendor has a rate limit: more would only wait
_HELD = 16  # of one recipient, until there is a place for it
_MARGIN_SECONDS = 5.0  # of a lease beyond the longest send
_LAST_SECONDS = 2.0  # before max_age: half of it is for the last attempt, with less than it none comes after
_LONGEST_PAUSE = 3600.0


@dataclass(frozen=True, slots=True)
class _Message:
    """A claimed delivery. at: the loop's time of the claim. recipient: None, the destination has only one."""

    delivery: Delivery
    at: float
    recipient: str | None


class Lane:
    """Runs until `stop`. `wake()`: messages may be due."""

    def __init__(
        self,
        plan: LaneSpec,
        *,
        stream: str,
        epoch: int,
        connection: AsyncLink,
        http: Http,
        pacer: Pacer,
        watcher: DispatchWatcher,
        stop: asyncio.Event,
    ) -> None:
        self.plan = plan
        self._connection = connection
        self._pacer = pacer
        self._watcher = watcher
        self._stop = stop
        self._wire = Wire(http, plan.timeout)
        self._breaker = Breaker()
        self._code = ""  # of the failure that opened it
        most = _CAPACITY_PACED if plan.sink.slowest_pace else CAPACITY
        self._capacity = min(most, plan.sink.at_once() or most)
        self._longest_wait = self._capacity * plan.sink.slowest_pace
        self._recipients = Recipients(self._capacity)
        self._held: dict[str, deque[_Message]] = {}
        self.claim = queue.Claim(
            stream=stream,
            pipeline=plan.pipeline,
            destination=plan.destination,
            epoch=epoch,
            lease=2 * plan.timeout + _MARGIN_SECONDS + self._longest_wait,
            max_age=plan.max_age,
        )
        self._settler = Settler(connection, epoch, self._settled)
        self._changed = asyncio.Event()
        self._keyless = self._keyed = True  # whether a claim of such events may find something
        self._claimed: dict[str, _Message] = {}
        self._sending = 0
        self._woken = False
        self._keyless_first = False
        self._after: str | None = None
        self._loop = asyncio.get_running_loop()
        self._told: list[LeftAlone] = []

    @property
    def claimed(self) -> list[str]:
        """Ids of messages that are claimed and not settled."""
        return list(self._claimed)

    async def run(self) -> None:
        """Raises psycopg.Error if the database cannot be reached; sends in flight are then cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                settling = group.create_task(self._settler.run(), name=f"settle {self.plan.name}")
                async with asyncio.TaskGroup() as sends:
                    while not self._stop.is_set():
                        await self._fill(sends)
                        await self._pause()
                await self._settler.drained()
                settling.cancel()
        except ExceptionGroup as group:
            raise _first(group) from None

    # -- claims -----------------------------------------------------------------------------------------

    async def _fill(self, sends: asyncio.TaskGroup) -> None:
        """Claim messages while there is capacity and messages are due."""
        while room := self._breaker.room(self._loop.time(), self._sending, self._capacity):
            if 2 * room < self._capacity and not self._breaker.tripped and not self._woken:
                return  # several in one statement: a send that ends will ask again
            self._woken = False
            if len(self._claimed) >= 4 * self._capacity:
                return
            claimed = await self._claim(room)
            for one in claimed:
                hit("deliver.claimed")
                self._claimed[one.id] = message = _Message(one, self._loop.time(), self._recipient(one))
                self._admit(message, sends)
            if len(claimed) < room or self._stop.is_set():
                return

    async def _claim(self, room: int) -> list[Delivery]:
        """Take keys in turn, after the last one taken; alternate between events with and without a key."""
        self._keyless_first = not self._keyless_first
        claimed: list[Delivery] = []
        for keyless in (self._keyless_first, not self._keyless_first):
            left = room - len(claimed)
            if not left:
                break
            if not keyless:
                claimed += await self._claim_keyed(left)
            elif self._keyless:
                self._keyless = False  # wake() while the statement runs is about a later state
                found = await self.claim.keyless(self._connection, left)
                self._keyless = self._keyless or len(found) == left
                claimed += found
        return claimed

    async def _claim_keyed(self, room: int) -> list[Delivery]:
        if not self._keyed:
            return []
        self._keyed = False
        found, last = await self.claim.keyed(self._connection, room, self._after)
        if len(found) < room and self._after is not None:
            more, last = await self.claim.keyed(self._connection, room - len(found), None)
            found += more
        self._keyed = self._keyed or len(found) == room
        self._after = last
        return found

    async def _pause(self) -> None:
        """Wait until something may have changed: a nudge, a tick, a finished send, the end of a pause."""
        wait = self._breaker.open_until - self._loop.time()
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait)
            return
        await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """Messages may be due. Called in the loop."""
        self._keyless = self._keyed = self._woken = True
        self._changed.set()

    def tell(self) -> None:
        """Report who is left alone. Called in the loop, from time to time."""
        now = self._loop.time()
        found = list(self._recipients.left_alone(now))
        if self._breaker.open_until > now:
            found.append(LeftAlone("", self._breaker.open_until - now, self._code))
        if found or self._told:
            self._watcher.left_alone(self.plan.pipeline, self.plan.destination, found)
        self._told = found

    # -- one message ------------------------------------------------------------------------------------

    def _recipient(self, delivery: Delivery) -> str | None:
        if not self.plan.by_recipient:
            return None
        try:
            return self.plan.sink.recipient(delivery)
        except SendError:
            return None  # the send will say why

    def _admit(self, message: _Message, sends: asyncio.TaskGroup) -> None:
        """Send it now, hold it until its recipient has a place, or put it off."""
        now = self._loop.time()
        if self._left(message) <= 0:
            self._expire(message)
            return
        name = message.recipient
        if name is not None:
            wait = self._recipients.wait(name, now)
            if wait > 0:
                self._put_off(message, wait)
                return
            if not self._recipients.begin(name):
                held = self._held.setdefault(name, deque())
                if len(held) < _HELD:
                    held.append(message)
                else:
                    self._put_off(message, max(1.0, self.plan.timeout / 2))
                return
        self._sending += 1
        sends.create_task(self._deliver(message, sends), name=f"deliver {message.delivery.id}")

    async def _deliver(self, message: _Message, sends: asyncio.TaskGroup) -> None:
        try:
            if await self._take_place(message):
                began = self._loop.time()
                outcome = await self._attempt(message.delivery)
                hit("deliver.sent")
                self._settle(message, outcome, self._loop.time() - began)
        finally:
            self._sending -= 1
            if message.recipient is not None:
                self._recipients.end(message.recipient, self._loop.time())
                self._next_of(message.recipient, sends)
            self._changed.set()

    def _next_of(self, name: str, sends: asyncio.TaskGroup) -> None:
        """A place of this recipient is free: for one that was held, or for none of them."""
        held = self._held.pop(name, None)
        while held and not self._stop.is_set():
            waiting = len(self._held.get(name, ()))
            self._admit(held.popleft(), sends)
            if len(self._held.get(name, ())) > waiting:  # it came back: there is no place
                self._held[name].extend(held)
                return

    async def _take_place(self, message: _Message) -> bool:
        """Wait as the vendor's rate limit requires. False: the wait is too long, and the message was put off."""
        try:
            pace = self.plan.sink.pace(message.delivery)
        except SendError:
            return True  # the send will say why
        if pace is None:
            return True
        now = self._loop.time()
        wait = self._pacer.reserve(
            f"{self.plan.connection} {pace.recipient}", pace.seconds, now, self._longest_wait
        )
        if wait < 0:
            if message.recipient is None:
                self._breaker.pause(now + pace.seconds)
            self._put_off(message, -wait)
            return False
        if wait:
            await asyncio.sleep(wait)
        return True

    async def _attempt(self, delivery: Delivery) -> SendOutcome:
        try:
            async with asyncio.timeout(self.plan.timeout + _MARGIN_SECONDS / 2):
                return await self.plan.sink.send(delivery, self._wire)
        except SendError as error:
            return error.outcome
        except TimeoutError:
            cause = f"no answer within {self.plan.timeout:g} s"
            return SendOutcome("retry", "timeout", cause, blame="destination")
        except Exception as error:
            # A defect of a sink must not stop its neighbours; the text of an unknown error can hold values.
            self._log("error", "defect", delivery, error=type(error).__name__)
            return SendOutcome(
                "retry", "internal_error", f"a defect: {type(error).__name__}", blame="destination"
            )

    # -- outcomes ---------------------------------------------------------------------------------------

    def _left(self, message: _Message) -> float:
        """Seconds until it exceeds max_age."""
        return message.delivery.expires_in - (self._loop.time() - message.at)

    def _put_off(self, message: _Message, seconds: float) -> None:
        """Without an attempt, and not beyond its last one."""
        left = self._left(message)
        if left <= _LAST_SECONDS:
            self._expire(message)
        else:
            self._settler.again(Again(message.delivery.id, min(seconds, left - _LAST_SECONDS / 2)))

    def _expire(self, message: _Message) -> None:
        alone = "" if message.recipient is None else "; its recipient was left alone"
        self._bury(message, "expired", f"it waited longer than the destination's max_age{alone}")

    def _bury(self, message: _Message, code: str, cause: str, outcome: SendOutcome | None = None) -> None:
        left = None if outcome is None else outcome.left
        self._settler.dead(Dead(message.delivery.id, code, cause, left))
        self._log("warning", "dead letter", message.delivery, code=code, cause=cause)

    def _settle(self, message: _Message, outcome: SendOutcome, seconds: float) -> None:
        left = self._left(message)
        verdict = outcome.verdict
        if verdict == "dead" and outcome.patience > self.plan.max_age - left:
            verdict = "retry"
        elsewhere = None
        if verdict == "dead" and outcome.gone:
            elsewhere = self.plan.sink.to_fallback(message.delivery.fields)
        if verdict == "retry" and left <= _LAST_SECONDS:
            verdict = "dead"
        if elsewhere is not None and left > _LAST_SECONDS:
            verdict = "retry"
            self._settler.again(
                Again(message.delivery.id, 0.0, f"{outcome.code}: {outcome.cause}", elsewhere)
            )
            self._log("info", "to the fallback", message.delivery, code=outcome.code, cause=outcome.cause)
        elif verdict == "sent":
            self._settler.sent(message.delivery.id)
        elif verdict == "dead":
            late = "; stopped at the destination's max_age" if outcome.verdict == "retry" else ""
            self._bury(message, outcome.code, outcome.cause + late, outcome)
        else:
            delay = max(outcome.retry_after or 0.0, RETRY.after(message.delivery.attempts + 1))
            delay = min(delay, left - _LAST_SECONDS / 2)
            cause = f"{outcome.code}: {outcome.cause}"
            self._settler.again(Again(message.delivery.id, delay, cause, outcome.left))
            self._log("info", "retry", message.delivery, code=outcome.code, cause=outcome.cause)
        self._learn(message.recipient, outcome)
        self._watcher.delivered(self.plan.destination, verdict, seconds)

    def _settled(self, ids: Sequence[str], lost: set[str]) -> None:
        """The settler's report: these are durable, or belong to another dispatcher now."""
        for identity in ids:
            message = self._claimed.pop(identity, None)
            if message is None:
                continue
            self._keyed = self._keyed or message.delivery.event_key is not None  # the next of its key may go
            if identity in lost:
                self._log("warning", "lease lost", message.delivery)
        self._changed.set()

    def _learn(self, name: str | None, outcome: SendOutcome) -> None:
        """Update the breakers from an outcome."""
        now = self._loop.time()
        asked = min(outcome.retry_after or 0.0, _LONGEST_PAUSE)
        if outcome.verdict == "sent" or outcome.blame == "message":
            if self._breaker.tripped:
                self._log("info", "destination works again")
            self._breaker.succeeded()
            if name is not None and self._recipients.works(name):
                self._log("info", "recipient works again", recipient=label(name))
        elif name is not None and outcome.blame in ("recipient", "pace"):
            if self._recipients.failed(name, now, outcome.code, asked or float(outcome.blame == "pace")):
                seconds = round(self._recipients.wait(name, now), 1)
                self._log(
                    "warning",
                    "recipient left alone",
                    recipient=label(name),
                    code=outcome.code,
                    seconds=seconds,
                )
        elif outcome.blame == "pace":
            self._code = outcome.code
            self._breaker.pause(now + (asked or 1.0))
        else:
            self._code = outcome.code
            opened = self._breaker.failed(now)
            if asked:
                self._breaker.pause(now + asked)
            if opened:
                seconds = round(self._breaker.open_until - now, 1)
                self._log("warning", "destination left alone", code=outcome.code, seconds=seconds)

    def _log(self, level: str, event: str, about: Delivery | None = None, **fields: object) -> None:
        known: dict[str, Any] = {} if about is None else {"delivery": about.id, "event_id": about.event_id}
        self._watcher.log(
            level, event, pipeline=self.plan.pipeline, destination=self.plan.destination, **known, **fields
        )


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first error in nested groups."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
