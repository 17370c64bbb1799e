"""One destination's loop: claim due messages, send them, settle them. At most CAPACITY messages at a time, one per
key. A destination's errors stay in its lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

from bridge.dispatch.schedule import Breaker, DispatchWatcher, LaneSpec, Pacer, backoff
from bridge.failpoints import hit
from bridge.postgres import delivery as queue
from bridge.postgres.delivery import AsyncLink
from bridge.sinks.model import Delivery, Http, SendError, SendOutcome, Wire

CAPACITY = 16
_CAPACITY_PACED = 8  # where the vendor has a rate limit: more would only wait
_MARGIN_SECONDS = 5.0  # of a lease beyond the longest send
_LAST_SECONDS = 2.0  # before max_age: half of it is for the last attempt, with less than it none comes after
_CHANCE = secrets.SystemRandom()


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
        self._epoch = epoch
        self._pacer = pacer
        self._watcher = watcher
        self._stop = stop
        self._wire = Wire(http, plan.timeout)
        self._breaker = Breaker()
        self._capacity = _CAPACITY_PACED if plan.sink.slowest_pace else CAPACITY
        self._longest_wait = self._capacity * plan.sink.slowest_pace
        self.claim = queue.Claim(
            stream=stream,
            pipeline=plan.pipeline,
            destination=plan.destination,
            epoch=epoch,
            lease=plan.timeout + _MARGIN_SECONDS + self._longest_wait,
            max_age=plan.max_age,
        )
        self._changed = asyncio.Event()
        self._keyless = self._keyed = True  # whether a claim of such events may find something
        self._sent: set[str] = set()  # answered, to be settled together
        self._settled: set[str] = set()
        self._settling = asyncio.Lock()
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._keyless_first = False
        self._after: str | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def claimed(self) -> list[str]:
        """Ids of messages that are claimed and not settled."""
        return list(self._in_flight)

    async def run(self) -> None:
        """Raises psycopg.Error if the database cannot be reached; sends in flight are then cancelled."""
        try:
            async with asyncio.TaskGroup() as sends:
                while not self._stop.is_set():
                    await self._fill(sends)
                    await self._pause()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _fill(self, sends: asyncio.TaskGroup) -> None:
        """Claim messages while there is capacity and messages are due."""
        while room := self._breaker.room(self._loop.time(), len(self._in_flight), self._capacity):
            if 2 * room < self._capacity and not self._breaker.tripped:
                return  # several in one statement: a send that ends will ask again
            claimed = await self._claim(room)
            for one in claimed:
                hit("deliver.claimed")
                self._in_flight[one.id] = sends.create_task(self._deliver(one), name=f"deliver {one.id}")
            if len(claimed) < room or self._stop.is_set():
                return

    async def _claim(self, room: int) -> list[queue.Claimed]:
        """Take keys in turn, after the last one taken; alternate between events with and without a key."""
        self._keyless_first = not self._keyless_first
        claimed: list[queue.Claimed] = []
        for keyless in (self._keyless_first, not self._keyless_first):
            left = room - len(claimed)
            if not left:
                break
            if not keyless:
                claimed += await self._claim_keyed(left)
            elif self._keyless:
                found = await self.claim.keyless(self._connection, left)
                self._keyless = len(found) == left
                claimed += found
        return claimed

    async def _claim_keyed(self, room: int) -> list[queue.Claimed]:
        if not self._keyed:
            return []
        found, last = await self.claim.keyed(self._connection, room, self._after)
        if len(found) < room and self._after is not None:
            more, last = await self.claim.keyed(self._connection, room - len(found), None)
            found += more
        self._keyed = len(found) == room
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
        self._keyless = self._keyed = True
        self._changed.set()

    # -- one message ------------------------------------------------------------------------------------

    async def _deliver(self, claimed: queue.Claimed) -> None:
        try:
            delivery = _delivery(claimed)
            began = self._loop.time()
            if claimed.expires_in <= 0:
                cause = "it waited longer than the destination's max_age"
                outcome = SendOutcome("dead", "expired", cause, blame="message")
            else:
                if not await self._take_place(delivery):
                    return
                began = self._loop.time()
                outcome = await self._attempt(delivery)
                hit("deliver.sent")
            await self._settle(claimed, outcome, self._loop.time() - began)
        finally:
            self._in_flight.pop(claimed.id, None)
            self._keyed = self._keyed or claimed.event_key is not None  # the next of its key may go
            self._changed.set()

    async def _take_place(self, delivery: Delivery) -> bool:
        """Wait as the vendor's rate limit requires. False: the wait is too long, and the message was postponed."""
        try:
            pace = self.plan.sink.pace(delivery)
        except SendError:
            return True  # the send will say why
        if pace is None:
            return True
        now = self._loop.time()
        wait = self._pacer.reserve(
            f"{self.plan.connection} {pace.recipient}", pace.seconds, now, self._longest_wait
        )
        if wait < 0:
            self._breaker.pause(now + pace.seconds)
            await queue.settle_retry(self._connection, delivery.id, self._epoch, -wait, None, counts=False)
            return False
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

    async def _settle(self, claimed: queue.Claimed, outcome: SendOutcome, seconds: float) -> None:
        left = claimed.expires_in - seconds
        last = left <= _LAST_SECONDS
        verdict = "dead" if outcome.verdict == "retry" and last else outcome.verdict
        if verdict == "sent":
            ours = await self._settle_sent(claimed.id)
        elif verdict == "dead":
            late = "; stopped at the destination's max_age" if outcome.verdict == "retry" else ""
            ours = await queue.settle_dead(
                self._connection, claimed.id, self._epoch, outcome.code, outcome.cause + late
            )
        else:
            delay = max(outcome.retry_after or 0.0, backoff(claimed.attempts + 1, _CHANCE.random()))
            delay = min(delay, left - _LAST_SECONDS / 2)
            cause = f"{outcome.code}: {outcome.cause}"
            ours = await queue.settle_retry(self._connection, claimed.id, self._epoch, delay, cause)
        self._learn(outcome)
        self._watcher.delivered(self.plan.destination, verdict, seconds)
        if not ours:
            self._log("warning", "lease lost", claimed)
        elif verdict == "dead":
            self._log("warning", "dead letter", claimed, code=outcome.code, cause=outcome.cause)
        elif verdict == "retry":
            self._log("info", "retry", claimed, code=outcome.code, cause=outcome.cause)

    async def _settle_sent(self, identity: str) -> bool:
        """Answers that arrive while a statement runs are settled together by the next one."""
        self._sent.add(identity)
        async with self._settling:
            if identity in self._sent:
                together, self._sent = self._sent, set()
                self._settled |= await queue.settle_sent(self._connection, together, self._epoch)
        ours = identity in self._settled
        self._settled.discard(identity)
        return ours

    def _learn(self, outcome: SendOutcome) -> None:
        """Update the breaker from an outcome."""
        now = self._loop.time()
        if outcome.verdict == "sent" or outcome.blame == "message":
            if self._breaker.tripped:
                self._log("info", "destination works again")
            self._breaker.succeeded()
        elif outcome.blame == "pace":
            self._breaker.pause(now + min(outcome.retry_after or 1.0, 3600.0))
        else:
            if outcome.retry_after:
                self._breaker.pause(now + min(outcome.retry_after, 3600.0))
            if self._breaker.failed(now, _CHANCE.random()):
                self._log("warning", "destination paused", code=outcome.code)

    def _log(self, level: str, event: str, about: Any = None, **fields: object) -> None:
        known = {} if about is None else {"delivery": about.id, "event_id": about.event_id}
        self._watcher.log(
            level, event, pipeline=self.plan.pipeline, destination=self.plan.destination, **known, **fields
        )


def _delivery(claimed: queue.Claimed) -> Delivery:
    return Delivery(
        id=claimed.id,
        event_id=claimed.event_id,
        event_type=claimed.event_type,
        event_key=claimed.event_key,
        occurred_at=claimed.occurred_at,
        fields=claimed.fields,
        attempts=claimed.attempts,
        expires_in=claimed.expires_in,
    )
