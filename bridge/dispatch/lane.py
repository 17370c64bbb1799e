"""One destination's loop: claim due messages in sets, send them, settle them in sets. At most CAPACITY messages in
flight, one per key, and a part of that per recipient. A destination's errors stay in its lane, and a recipient's errors
with the recipient.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bridge.dispatch.noise import Throttle
from bridge.dispatch.outcomes import Outcomes, Parcel
from bridge.dispatch.parcels import Parcels
from bridge.dispatch.recipients import Recipients
from bridge.dispatch.schedule import Breaker, DispatchWatcher, LaneSpec, LeftAlone, Pacer
from bridge.dispatch.settling import Settler
from bridge.dispatch.turns import Turns
from bridge.failpoints import hit
from bridge.postgres.claims import Claim
from bridge.postgres.delivery import AsyncLink
from bridge.postgres.sink_pause import Hold
from bridge.sinks.model import QUIET_HOURS, Delivery, Http, SendError, SendOutcome, Wire, no_answer

CAPACITY = 64
_CAPACITY_PACED = 8  # where the vendor has a rate limit: more would only wait
_HELD = 16  # of one recipient, until there is a place for it
_PAUSED_SECONDS = 600.0  # a resume makes what it held due at once
_MARGIN_SECONDS = 5.0  # of a lease beyond the longest send


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
        keeps: bool = True,
    ) -> None:
        """keeps: the ledger has a history of each message."""
        self.plan = plan
        self._connection = connection
        self._pacer = pacer
        self._watcher = watcher
        self._stop = stop
        self._wire = Wire(http, plan.timeout)
        self._breaker = Breaker()
        most = _CAPACITY_PACED if plan.sink.slowest_pace else CAPACITY
        self._capacity = min(most, plan.sink.at_once() or most)
        self._longest_wait = self._capacity * plan.sink.slowest_pace
        self._longest_send = plan.timeout + _MARGIN_SECONDS / 2 + self._longest_wait
        self._recipients = Recipients(self._capacity)
        self._held: dict[str, deque[Parcel]] = {}
        self._throttle = None if plan.throttle is None else Throttle(*plan.throttle)
        self.claim = Claim(
            stream=stream,
            pipeline=plan.pipeline,
            destination=plan.destination,
            epoch=epoch,
            lease=2 * plan.timeout + _MARGIN_SECONDS + self._longest_wait,
            max_age=plan.max_age,
        )
        self._settler = Settler(connection, epoch, self._settled, keeps=keeps)
        self._outcomes = Outcomes(plan, self._settler, self._breaker, self._recipients, watcher)
        self._parcels = Parcels(plan, self.claim, connection, self._outcomes)
        self._turns = Turns(self.claim, connection, digests=plan.digest is not None)
        self._changed = asyncio.Event()
        self._claimed: dict[str, Delivery] = {}
        self._sending = 0
        self._woken = False
        self._loop = asyncio.get_running_loop()
        self._told: list[LeftAlone] = []
        self._paused: str | None = None
        self._holds: Sequence[Hold] = ()
        self._told_until = 0.0  # the breaker's, when it was told last
        self._hurried_at = 0.0  # when a person said `bridge sink retry` last, by the ledger's clock

    @property
    def claimed(self) -> list[str]:
        """Ids of messages that are claimed and not settled."""
        return list(self._claimed)

    async def run(self) -> None:
        """Raises psycopg.Error if the database cannot be reached; sends in flight are then cancelled."""
        self.tell()
        if self._throttle is not None:
            await self._parcels.remember(self._throttle, self._loop.time())
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
        finally:
            self._watcher.left_alone(self.plan, ())

    # -- claims -----------------------------------------------------------------------------------------

    async def _fill(self, sends: asyncio.TaskGroup) -> None:
        """Claim messages while there is capacity and messages are due."""
        while room := self._room():
            if 2 * room < self._capacity and not self._breaker.tripped and not self._woken:
                return  # several in one statement: a send that ends will ask again
            self._woken = False
            claimed = await self._turns.take(room)
            for _ in claimed:
                hit("deliver.claimed")
            self._claimed.update((one.id, one) for one in claimed)
            for parcel in await self._parcels.of(claimed, self._loop.time()):
                self._claimed.update((one.id, one) for one in parcel.parts)
                self._admit(parcel, sends)
            if len(claimed) < room or self._stop.is_set():
                return

    def _room(self) -> int:
        """How many messages may be claimed now."""
        return 0 if len(self._claimed) >= 4 * self._capacity else self._places()

    def _places(self) -> int:
        """How many messages may be sent now, beside those that are."""
        quiet = self.plan.quiet is not None and self.plan.quiet.seconds(datetime.now(UTC)) > 0
        if quiet or self._paused is not None:
            return 0
        return self._breaker.room(self._loop.time(), self._sending, self._capacity)

    async def _pause(self) -> None:
        """Wait until something may have changed: a nudge, a tick, a finished send, the end of a pause."""
        wait = self._breaker.open_until - self._loop.time()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), wait if wait > 0 else None)
        self._changed.clear()

    def wake(self) -> None:
        """Messages may be due. Called in the loop."""
        self._woken = True
        self._turns.again()
        self._changed.set()

    def pause(self, said: str | None) -> None:
        """A person has paused the destination: who, and why. None: nobody has. Called in the loop."""
        if said != self._paused:
            self._paused = said
            self._outcomes.log("info", "resumed" if said is None else "paused", by=said or "")
            self.tell()

    def hold(self, holds: Sequence[Hold]) -> None:
        """What a person has paused of its messages. Called in the loop."""
        if list(holds) == list(self._holds):
            return
        for one in holds:
            if one not in self._holds:
                self._outcomes.log("info", "paused", only=f"{one.kind} {one.label}", by=one.said)
        for one in self._holds:
            if one not in holds:
                self._outcomes.log("info", "resumed", only=f"{one.kind} {one.label}", by="")
        self._holds = holds
        self.tell()

    @property
    def alone(self) -> bool:
        """Is nothing sent for a while to the destination, or to a recipient?"""
        now = self._loop.time()
        return self._breaker.open_until > now or self._recipients.any_alone(now)

    def hurry(self, at: float | None) -> None:
        """A person said, at this time, that messages are to go now: who is left alone is tried, once for each time that
        it is said. Called in the loop."""
        if at is None or at <= self._hurried_at:
            return
        self._hurried_at = at
        now = self._loop.time()
        if self._breaker.try_now(now) | self._recipients.try_now(now):
            self._turns.hurry()
            self._outcomes.log("info", "tried now, as a person asked")
            self.tell()
            self.wake()

    def _is_paused(self, parcel: Parcel) -> bool:
        """Has a person paused its recipient, or what it was refused for?"""
        try:
            recipient = self.plan.sink.recipient(parcel.message)
        except SendError:
            recipient = None
        return any(hold.takes(one.last_code, recipient) for hold in self._holds for one in parcel.parts)

    def tell(self) -> None:
        """Report who is left alone. Called in the loop, from time to time."""
        now = self._loop.time()
        found = list(self._recipients.left_alone(now))
        if self._breaker.open_until > now:
            found.append(LeftAlone("", self._breaker.open_until - now, self._outcomes.code))
        if self.plan.quiet is not None and (seconds := self.plan.quiet.seconds(datetime.now(UTC))):
            found.append(LeftAlone("", seconds, QUIET_HOURS))
        if self._paused is not None:
            found.append(LeftAlone("", None, self._paused))
        for hold in self._holds:
            who = hold.label if hold.kind == "recipient" else f"cause {hold.label}"
            found.append(LeftAlone(who, None, hold.said))
        if found or self._told:
            self._watcher.left_alone(self.plan, found)
        self._told = found

    # -- one message ------------------------------------------------------------------------------------

    def _admit(self, parcel: Parcel, sends: asyncio.TaskGroup) -> None:
        """Send it now, hold it until its recipient has a place, or put it off."""
        now = self._loop.time()
        name = parcel.recipient
        if self._outcomes.left(parcel) <= 0:
            self._outcomes.expired(parcel)
            return
        if not self._places() or now + self._longest_send > parcel.at + self.claim.lease:
            # Of a digest there are more than places; or it was held while that changed, or until its lease might end
            # amid a send, and then it would be sent twice.
            self._outcomes.put_off(parcel, max(0.0, self._breaker.open_until - now))
            return
        if self._holds and self._is_paused(parcel):
            self._outcomes.put_off(parcel, _PAUSED_SECONDS)
            return
        wait = 0.0 if name is None else self._recipients.wait(name, now)
        if self._throttle is not None:
            wait = max(wait, self._throttle.wait(name or "", now))
        if wait > 0:
            self._outcomes.put_off(parcel, wait)
        elif name is not None and not self._recipients.begin(name):
            held = self._held.setdefault(name, deque())
            if len(held) < _HELD:
                held.append(parcel)
            else:
                self._outcomes.put_off(parcel, max(1.0, self.plan.timeout / 2))
        else:
            if self._throttle is not None:
                self._throttle.took(name or "", now)
            self._sending += 1
            sends.create_task(self._deliver(parcel, now, sends), name=f"deliver {parcel.message.id}")

    async def _deliver(self, parcel: Parcel, taken: float, sends: asyncio.TaskGroup) -> None:
        """taken: the time that its throttle has."""
        sent = False
        try:
            if await self._take_place(parcel):
                began = self._loop.time()
                outcome = await self._attempt(parcel.message)
                hit("deliver.sent")
                self._outcomes.settle(parcel, outcome, self._loop.time() - began)
                sent = outcome.verdict == "sent"
        except asyncio.CancelledError:
            self._held.clear()  # they are not ours any more
            raise
        finally:
            if self._throttle is not None and not sent:
                self._throttle.back(parcel.recipient or "", taken)
            self._sending -= 1
            if self._breaker.open_until != self._told_until:
                self._told_until = self._breaker.open_until
                self.tell()
            if parcel.recipient is not None:
                self._recipients.end(parcel.recipient, self._loop.time())
                self._next_of(parcel.recipient, sends)
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

    async def _take_place(self, parcel: Parcel) -> bool:
        """Wait as the vendor's rate limit requires. False: the wait is too long, and the message was put off."""
        try:
            pace = self.plan.sink.pace(parcel.message)
        except SendError:
            return True  # the send will say why
        if pace is None:
            return True
        now = self._loop.time()
        wait = self._pacer.reserve(
            f"{self.plan.connection} {pace.recipient}", pace.seconds, now, self._longest_wait
        )
        if wait < 0:
            if parcel.recipient is None:
                self._breaker.pause(now + pace.seconds)
            self._outcomes.put_off(parcel, -wait)
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
            return no_answer(self.plan.timeout)
        except Exception as error:
            # A defect of a sink must not stop its neighbours; the text of an unknown error can hold values.
            self._outcomes.log("error", "defect", delivery, error=type(error).__name__)
            return SendOutcome(
                "retry", "internal_error", f"a defect: {type(error).__name__}", blame="destination"
            )

    def _settled(self, ids: Sequence[str], lost: set[str]) -> None:
        """The settler's report: these are durable, or belong to another dispatcher now."""
        for identity in ids:
            delivery = self._claimed.pop(identity, None)
            if delivery is None:
                continue
            if delivery.event_key is not None:
                self._turns.next_of_a_key()
            if identity in lost:
                self._outcomes.log("warning", "lease lost", delivery)
        self._changed.set()


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first error in nested groups."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
