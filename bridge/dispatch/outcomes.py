"""What an attempt's outcome means for its messages, for the breakers and for who reads the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bridge.dispatch.recipients import Recipients, label
from bridge.dispatch.schedule import RETRY, Breaker, DispatchWatcher, LaneSpec
from bridge.dispatch.settling import Settler
from bridge.postgres.delivery import EXPIRED, EXPIRED_CAUSE, Again, Dead
from bridge.sinks.joining import DIGEST, IDENTITY
from bridge.sinks.model import Delivery, SendOutcome

_LAST_SECONDS = 2.0  # before max_age: half of it is for the last attempt, with less than it none comes after
_LONGEST_PAUSE = 3600.0


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is sent at once: one claimed message, or those of a digest. message: as the sink gets it. at: the loop's
    time of the claim. recipient: None, the destination has only one."""

    message: Delivery
    parts: tuple[Delivery, ...]
    at: float
    recipient: str | None


class Outcomes:
    """Of one lane."""

    def __init__(
        self,
        plan: LaneSpec,
        settler: Settler,
        breaker: Breaker,
        recipients: Recipients,
        watcher: DispatchWatcher,
    ) -> None:
        self._plan = plan
        self._settler = settler
        self._breaker = breaker
        self._recipients = recipients
        self._watcher = watcher
        self._loop = asyncio.get_running_loop()
        self.code = ""
        """Of the failure for which the destination is left alone."""

    def left(self, parcel: Parcel) -> float:
        """Seconds until its youngest message exceeds max_age."""
        return max(self._left(one, parcel) for one in parcel.parts)

    def _left(self, one: Delivery, parcel: Parcel) -> float:
        return one.expires_in - (self._loop.time() - parcel.at)

    def put_off(self, parcel: Parcel, seconds: float) -> None:
        """Without an attempt, and not beyond its last one."""
        for one in parcel.parts:
            left = self._left(one, parcel)
            if left <= _LAST_SECONDS:
                self.expired(replace(parcel, parts=(one,)))
            else:
                self._settler.again(Again(one.id, min(seconds, left - _LAST_SECONDS / 2)))

    def expired(self, parcel: Parcel) -> None:
        """It waited too long."""
        alone = "" if parcel.recipient is None else "; its recipient was left alone"
        self._bury(parcel.parts, EXPIRED, EXPIRED_CAUSE + alone, None)

    def settle(self, parcel: Parcel, outcome: SendOutcome, seconds: float) -> None:
        """After an attempt that took `seconds`."""
        verdict = "sent"
        if outcome.verdict == "sent":
            for one in parcel.parts:
                self._settler.sent(one.id)
            if outcome.cause:  # it arrived, but not where it was sent to
                self.log("warning", "sent", parcel.message, code=outcome.code, cause=outcome.cause)
        else:
            verdict = self._failed(parcel, outcome)
        self._learn(parcel.recipient, outcome)
        self._watcher.delivered(self._plan, verdict, seconds)

    def _failed(self, parcel: Parcel, outcome: SendOutcome) -> str:
        """Each message of a digest has an age of its own: one that is too old takes no other with it."""
        cause = f"{outcome.code}: {outcome.cause}"
        delay = max(outcome.retry_after or 0.0, RETRY.after(parcel.message.attempts + 1))
        again, moved, dead = 0, 0, []
        for one in parcel.parts:
            left = self._left(one, parcel)
            if left > _LAST_SECONDS and self._is_again(outcome, left):
                delay_of_one = min(delay, left - _LAST_SECONDS / 2)
                self._settler.again(Again(one.id, delay_of_one, cause, _rest(one, outcome)))
                again += 1
            elif left > _LAST_SECONDS and outcome.gone and self._to_fallback(one, cause):
                moved += 1
            else:
                dead.append(one)
        if again:
            self.log("info", "retry", parcel.message, code=outcome.code, cause=outcome.cause)
        if moved:
            self.log("info", "to the fallback", parcel.message, code=outcome.code, cause=outcome.cause)
        late = "; stopped at the destination's max_age" if outcome.verdict == "retry" else ""
        self._bury(dead, outcome.code, outcome.cause + late, outcome)
        return "retry" if again or moved else "dead"

    def _is_again(self, outcome: SendOutcome, left: float) -> bool:
        """A refusal is not the end while the message is young enough."""
        return outcome.verdict == "retry" or outcome.patience > self._plan.max_age - left

    def _to_fallback(self, one: Delivery, cause: str) -> bool:
        """The recipient is gone. False: there is no other."""
        fields = self._plan.sink.to_fallback(one.fields)
        if fields is None:
            return False
        self._settler.again(Again(one.id, 0.0, cause, _stored(one, fields)))
        return True

    def _bury(self, parts: Sequence[Delivery], code: str, cause: str, outcome: SendOutcome | None) -> None:
        for one in parts:
            self._settler.dead(Dead(one.id, code, cause, None if outcome is None else _rest(one, outcome)))
            self.log("warning", "dead letter", one, code=code, cause=cause)

    def _learn(self, name: str | None, outcome: SendOutcome) -> None:
        """Update the breakers from an outcome."""
        now = self._loop.time()
        asked = min(outcome.retry_after or 0.0, _LONGEST_PAUSE)
        if outcome.verdict == "sent" or outcome.blame == "message":
            if self._breaker.tripped:
                self.log("info", "destination works again")
            self._breaker.succeeded()
            if name is not None and self._recipients.works(name):
                self.log("info", "recipient works again", recipient=label(name))
        elif name is not None and outcome.blame in ("recipient", "pace"):
            if self._recipients.failed(name, now, outcome.code, asked or float(outcome.blame == "pace")):
                seconds = round(self._recipients.wait(name, now), 1)
                self.log(
                    "warning",
                    "recipient left alone",
                    recipient=label(name),
                    code=outcome.code,
                    seconds=seconds,
                )
        elif outcome.blame == "pace":
            self.code = outcome.code
            self._breaker.pause(now + (asked or 1.0))
        else:
            self.code = outcome.code
            opened = self._breaker.failed(now)
            if asked:
                self._breaker.pause(now + asked)
            if opened:
                seconds = round(self._breaker.open_until - now, 1)
                self.log("warning", "destination left alone", code=outcome.code, seconds=seconds)

    def log(self, level: str, event: str, about: Delivery | None = None, **fields: object) -> None:
        """A line about this lane, or about one of its messages."""
        known: dict[str, Any] = {} if about is None else {"delivery": about.id, "event_id": about.event_id}
        self._watcher.log(
            level, event, pipeline=self._plan.pipeline, destination=self._plan.destination, **known, **fields
        )


def _rest(one: Delivery, outcome: SendOutcome) -> dict[str, Any] | None:
    """The stored fields of the next attempt; None: they stay as they are."""
    return None if outcome.left is None else _stored(one, {**one.fields, **outcome.left})


def _stored(one: Delivery, fields: Any) -> dict[str, Any]:
    ours = {DIGEST: one.group, IDENTITY: one.sent_as}
    return {**fields, **{name: value for name, value in ours.items() if value is not None}}
