"""`quiet`, `throttle` and `digest` of a sink's destination: fewer messages for people, without losing one."""

from __future__ import annotations

import re
from datetime import time, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from bridge.quantity import Duration
from bridge.section import Section

_RATE = re.compile(r"([1-9][0-9]{0,5})/([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _rate(value: Any) -> tuple[int, int]:
    if isinstance(value, tuple):
        return value
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a number of messages and a time: 5/h, 1/s, 20/m or 100/d")
    return int(found[1]), _UNITS[found[2]]


def _as_rate(value: tuple[int, int]) -> str:
    unit = next(name for name, seconds in _UNITS.items() if seconds == value[1])
    return f"{value[0]}/{unit}"


Rate = Annotated[
    tuple[int, int],
    BeforeValidator(_rate),
    PlainSerializer(_as_rate, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_RATE.pattern}$", "examples": ["5/h"]}),
]
"""Messages, and the seconds in which there are at most so many: `5/h` is (5, 3600)."""


def _clock(value: Any) -> time:
    if isinstance(value, time):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value):
        raise ValueError('must be a time of day in quotes: "22:00"')
    return time.fromisoformat(value)


Clock = Annotated[
    time,
    BeforeValidator(_clock),
    PlainSerializer(lambda value: value.strftime("%H:%M"), return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$", "examples": ["22:00"]}),
]


def _zone(value: Any) -> ZoneInfo:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ValueError("must be a time zone's name, such as Europe/Berlin or UTC") from None


Zone = Annotated[
    ZoneInfo,
    BeforeValidator(_zone),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["Europe/Berlin"]}),
]


class SinkQuiet(Section):
    """Hours in which nothing is sent; messages wait until they are over."""

    begin: Clock = Field(alias="from")
    """When they begin, in quotes: "22:00"."""
    to: Clock
    """When they end. Earlier than `from`: on the next day."""
    time_zone: Zone = ZoneInfo("UTC")
    """Where the clock hangs: Europe/Berlin. It knows summer time."""

    @model_validator(mode="after")
    def _some_of_the_day(self) -> SinkQuiet:
        if self.begin == self.to:
            raise ValueError("begins and ends at the same time: nothing would ever be sent")
        return self

    @property
    def longest(self) -> timedelta:
        """How long a message may have to wait: the quiet hours on the longest day of a clock change."""
        minutes = (self.to.hour - self.begin.hour) * 60 + self.to.minute - self.begin.minute
        return timedelta(minutes=minutes % 1440, hours=1)


class SinkDigest(Section):
    """Several messages as one."""

    by: str
    """Which messages go together, a value: $event.customer_id."""
    every: Duration
    """How long the first of them waits for others."""
    max: int = Field(default=50, ge=2, le=500)
    """How many go together; when there are so many, they go at once."""
