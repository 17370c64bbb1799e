"""Why a message to a sink waits, and until when: what the ledger and the running bridge know, in one line.

`bridge sink list`, `explain` and `tail` say it. Values of the event are not in it; a recipient is shown as in status.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from bridge.section import SOURCE

if TYPE_CHECKING:
    import psycopg

    from bridge.config.model import Config
    from bridge.dispatch.schedule import LaneSpec
    from bridge.sinks.model import Delivery
    from bridge.stream.spec import StreamSpec

Unit = tuple[str, str]


class Waits:
    """Of one stream. Reads the ledger once. state: what the running bridge answers; None: none runs."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        stream: str,
        lanes: Mapping[Unit, LaneSpec],
        state: Mapping[str, Any] | None,
        source: str = SOURCE,
    ) -> None:
        from bridge.postgres.sink_pause import holds, paused  # noqa: PLC0415  (loads psycopg)

        self._connection, self._stream = connection, stream
        self._answers: dict[Unit, str] = {}
        self._lanes = lanes
        self._runs = state is not None
        self._paused = paused(connection, stream)
        self._holds = holds(connection, stream)
        self._alone = {
            (one["pipeline"], one["destination"], one["recipient"]): one
            for one in (state or {}).get("left_alone", ())
            if one["until"] is not None and one.get("source", source) == source
        }

    @classmethod
    def of(
        cls,
        config: Config,
        connection: psycopg.Connection[Any],
        plan: StreamSpec,
        status: Callable[[], Mapping[str, Any] | None],
    ) -> Waits:
        """status: asks the running bridge; may raise BridgeError."""
        from bridge.errors import BridgeError  # noqa: PLC0415
        from bridge.plans import dispatch_plans  # noqa: PLC0415

        lanes = {
            lane.name: lane
            for one in dispatch_plans(config)
            if one.stream == plan.stream
            for lane in one.lanes
        }
        try:
            state = status()
        except BridgeError:
            state = {}  # it runs, and tells us nothing
        return cls(connection, plan.stream, lanes, state, plan.source)

    def expires(self, row: Mapping[str, Any]) -> datetime | None:
        """When it becomes a dead letter if it is not sent; None: its destination is gone."""
        lane = self._lanes.get((row["pipeline"], row["destination"]))
        created: datetime = row["created_at"]
        return None if lane is None else created + timedelta(seconds=lane.max_age)

    def why(self, row: Mapping[str, Any]) -> str:
        """Of a pending message: a row of queued.search or progress.deliveries."""
        unit = (row["pipeline"], row["destination"])
        lane = self._lanes.get(unit)
        name = "/".join(unit)
        if lane is None:
            return f"{name} is not a sink of this configuration (bridge sink move {name} NEW)"
        if row["claimed"]:
            return "it is being sent"
        if unit in self._paused:
            return f"paused by {self._paused[unit]}: bridge sink resume {name}"
        message = self._message(row)
        recipient = self._recipient(lane, message)
        for hold in self._holds:
            if hold.unit == unit and hold.takes(row["last_error"], recipient):
                return f"{hold.kind} {hold.label} is paused by {hold.said}: bridge sink resume {name} {hold.option}"
        if row["behind"]:
            return "it is behind an earlier message of its key"
        return self._later(row, lane, message, recipient)

    def _later(self, row: Mapping[str, Any], lane: LaneSpec, message: Delivery, recipient: str | None) -> str:
        """It is left alone, or is not due; otherwise it is due now."""
        from bridge.dispatch.recipients import label  # noqa: PLC0415
        from bridge.sinks.model import QUIET_HOURS  # noqa: PLC0415

        for who, what in (
            ("", "the destination"),
            (label(recipient) if recipient else None, "its recipient"),
        ):
            alone = None if who is None else self._alone.get((*lane.name, who))
            if alone is not None and alone["until"] > time.time():
                until = clock(alone["until"])
                if alone["code"] == QUIET_HOURS:
                    return f"quiet hours until {until}"
                return f"{what} is left alone until {until}, after {alone['code']}"
        due: datetime = row["next_attempt_at"]
        if due <= row["now"]:
            said = self._last_answer(lane.name)
            after = f"it is due; others there were refused: {said}" if said else "it is due"
            return after if self._runs else f"{after}; no bridge answers that would send it: bridge run"
        until = clock(due.timestamp())
        if row["last_error"]:
            return f"it is tried again at {until}, after {row['last_error']}"
        if message.group is not None and lane.digest is not None:
            return f"its digest is sent at {until}"
        return f"{'throttled' if lane.throttle else 'put off'} until {until}"

    def _last_answer(self, unit: Unit) -> str:
        """To the message there that was tried last, if one waits for its next attempt."""
        if unit not in self._answers:
            row = self._connection.execute(
                "select last_error from bridge.delivery where destination = %s and state = 'pending'"
                " and pipeline = %s and stream = %s and attempts > 0 order by next_attempt_at desc limit 1",
                [unit[1], unit[0], self._stream],
            ).fetchone()
            self._answers[unit] = (row[0] if row else "") or ""
        return self._answers[unit]

    def _message(self, row: Mapping[str, Any]) -> Delivery:
        from bridge.postgres.claims import delivery_of  # noqa: PLC0415

        return delivery_of(row)

    def _recipient(self, lane: LaneSpec, message: Delivery) -> str | None:
        from bridge.sinks.model import SendError  # noqa: PLC0415

        try:
            return lane.sink.recipient(message)
        except SendError:
            return None


def clock(moment: float) -> str:
    """A time of today as 15:04:05, another with its date."""
    at = time.localtime(moment)
    same = at[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M:%S", at)
