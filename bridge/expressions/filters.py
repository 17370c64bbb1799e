"""Filters of our own, for texts that people read: `date`, `number`, `truncate`. null stays null.

Python's formats can grow a text without limit (`%1000000d`), so only named conversions and small numbers of digits are
taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any
from zoneinfo import ZoneInfo

_PATTERN = re.compile(r"(?:[^%]|%-?[aAbBdeFHIjmMpSTuyYzZ%]){0,200}")
_MOST_DIGITS = 20
_LONGEST_NUMBER = 100  # digits before the point
_MILLISECONDS = 10**11  # a number of seconds this large is in the year 5138


def moment_text(text: str) -> str:
    """A moment as Postgres prints it, or in ISO 8601, to ISO 8601; with an offset it is said in UTC. What Python has no
    form of (infinity, years before 1) gets a T."""
    if len(text) == 10:
        return text
    try:
        made = datetime.fromisoformat(text)
        return (made if made.tzinfo is None else made.astimezone(UTC)).isoformat()
    except (ValueError, OverflowError):
        return text.replace(" ", "T", 1)


def date_filter(value: Any, pattern: str = "%Y-%m-%d", zone: str | None = None) -> Any:
    """`{{ meta.occurred_at | date("%d.%m.%Y %H:%M", "Europe/Berlin") }}`. value: as of moment_of(). zone:
    UTC if absent."""
    if value is None:
        return None
    if not _PATTERN.fullmatch(pattern):
        raise ValueError("not a date's format")
    found = moment_of(value)
    if isinstance(found, datetime):
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
        found = found.astimezone(UTC if zone is None else _zone(zone))
    return found.strftime(pattern)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError):  # no such name, or the name of a folder
        raise ValueError("no time zone of this name") from None


def moment_of(value: Any) -> date | time:
    """A moment of ISO 8601, as Postgres prints it, or of seconds or milliseconds since 1970. Raises ValueError."""
    if isinstance(value, date | time):
        return value
    text = str(value)
    if isinstance(value, int | float | Decimal) or (text.isdigit() and len(text) > 8):
        number = Decimal(text)  # True is no number in it
        return datetime.fromtimestamp(float(number / (1000 if abs(number) >= _MILLISECONDS else 1)), UTC)
    return date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text)


def number_filter(value: Any, digits: int | None = None, thousands: str = ",", point: str = ".") -> Any:
    """`{{ event.amount | number(2) }}`: 1,234.50; with `number(2, ".", ",")`: 1.234,50. digits: after the point, half
    rounded up; absent: as many as there are."""
    if value is None:
        return None
    if isinstance(value, bool) or len(thousands) > 1 or len(point) > 1:
        raise ValueError("not a number's format")
    number = Decimal(str(value))
    if not number.is_finite() or abs(number.adjusted()) > _LONGEST_NUMBER:
        raise ValueError("not a number that can be shown")
    if digits is not None:
        if not 0 <= digits <= _MOST_DIGITS:
            raise ValueError("not a number of digits")
        with localcontext(prec=_LONGEST_NUMBER + _MOST_DIGITS + 10):
            number = number.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    elif number == number.to_integral_value():
        number = number.to_integral_value()
    whole, _, rest = f"{number:,f}".partition(".")
    return whole.replace(",", thousands) + (point + rest if rest else "")


def truncate_filter(value: Any, length: int = 255, end: str = "\N{HORIZONTAL ELLIPSIS}") -> Any:
    """`{{ event.error | truncate(200) }}`: at most so many characters, `end` included."""
    if value is None:
        return None
    text = str(value)
    if len(text) <= length:
        return text
    if length < len(end):
        raise ValueError("too short")
    return text[: length - len(end)] + end


FILTERS: dict[str, Callable[..., Any]] = {
    "date": date_filter,
    "number": number_filter,
    "truncate": truncate_filter,
}
