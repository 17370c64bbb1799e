"""Values of a database that JSON does not have: the server's own text, with what expressions and messages need of it.

Python's dates end with the year 9999 and know no infinity, its timedelta no months. So the text is the value, and
Python's form of it is used only where there is one.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time
from decimal import Decimal
from math import inf
from typing import Any, ClassVar


class ServerText(str):
    """Equal by its characters, and without an order."""

    __slots__ = ()

    kind: ClassVar[str] = "a value of this type"

    def as_json(self) -> str:
        return str(self)

    def readable(self) -> Any:
        """What templates print."""
        return str(self)


class Money(ServerText):
    """As its server prints it. `number` is for columns: another server may print and read money in another way."""

    __slots__ = ("number",)

    kind = "money"
    number: Decimal

    @classmethod
    def of(cls, text: str, number: Decimal) -> Money:
        made = cls(text)
        made.number = number
        return made


class Moment(ServerText):
    """A date or a time, which have an order."""

    __slots__ = ()

    native: ClassVar[type[date] | type[time]]

    def as_json(self) -> str:
        """ISO 8601, as far as the moment can be said in it."""
        made = python_of(type(self), self)
        return str(self).replace(" ", "T", 1) if made is None else str(made.isoformat())

    def readable(self) -> Any:
        """Python's form where there is one, for methods such as strftime()."""
        made = python_of(type(self), self)
        return str(self) if made is None else made


class Date(Moment):
    """date"""

    __slots__ = ()
    kind = "a date"
    native = date


class Timestamp(Moment):
    """timestamp"""

    __slots__ = ()
    kind = "a timestamp"
    native = datetime


class Timestamptz(Timestamp):
    """timestamptz; its text has an offset."""

    __slots__ = ()


class Time(Moment):
    """time"""

    __slots__ = ()
    kind = "a time"
    native = time


class Timetz(Time):
    """timetz; its text has an offset."""

    __slots__ = ()


SERVER_TEXTS = (ServerText, Date, Timestamp, Timestamptz, Time, Timetz)


class ServerArray(list[Any]):
    """An array's elements, and its text, which also has the bounds and which of its lists are JSON. Also an array of a
    json column."""

    __slots__ = ("text", "type_sql")

    kind: ClassVar[str] = "an array"
    text: str
    type_sql: str

    @classmethod
    def of(cls, elements: list[Any], text: str, type_sql: str) -> ServerArray:
        made = cls(elements)
        made.text, made.type_sql = text, type_sql
        return made


class ServerObject(dict[str, Any]):
    """An object of a json column, and its text with the spaces and repeated names that jsonb does not have."""

    __slots__ = ("text", "type_sql")

    kind: ClassVar[str] = "an object"
    text: str
    type_sql: str

    @classmethod
    def of(cls, fields: dict[str, Any], text: str) -> ServerObject:
        made = cls(fields)
        made.text, made.type_sql = text, "json"
        return made


def python_of(kind: type[Moment], text: str) -> Any:
    """Python's form of a text that is a moment of this kind; None if it has none."""
    if " 24:" in f" {text}":  # newer Pythons read it as the next midnight
        return None
    try:
        return kind.native.fromisoformat(text)
    except ValueError:
        return None


_PARTS = re.compile(
    r"(?:(\d{4,})-(\d\d)-(\d\d))?[ T]?(?:(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
    r"(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?|Z)?( BC)?"
)
_DAY = 86_400_000_000
_ERA = 146_097  # days of 400 years, which repeat


def place_of(kind: type[Moment], text: str) -> int | float | None:
    """The place in time, in microseconds, also of moments that Python does not have. None: no moment of this kind."""
    timed, zoned = issubclass(kind, Time), issubclass(kind, Timestamptz | Timetz)
    if not timed and text in ("infinity", "-infinity"):
        return inf if text == "infinity" else -inf
    found = _PARTS.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, *offset, era = found.groups()
    wrong_parts = (year is None) != timed or (kind is Date and hour is not None) or (timed and hour is None)
    if wrong_parts or (hour is not None and zoned != (sign is not None or text.endswith("Z"))):
        return None
    place = _seconds(hour, minute, second) * 1_000_000 + int((fraction or "").ljust(6, "0"))
    place -= _seconds(*offset) * (-1_000_000 if sign == "-" else 1_000_000)
    if year is not None:
        try:
            place += _day(1 - int(year) if era else int(year), int(month), int(day)) * _DAY
        except ValueError:  # no day of the calendar
            return None
    return place


def _seconds(*parts: str | None) -> int:
    hours, minutes, seconds = (int(part or 0) for part in parts)
    return (hours * 60 + minutes) * 60 + seconds


def _day(year: int, month: int, day: int) -> int:
    """The number of a day of the Gregorian calendar, which Postgres uses for every year: years of 400 are alike."""
    eras, within = divmod(year - 2000, 400)
    return date(2000 + within, month, day).toordinal() + eras * _ERA


def ordered(left: Any, right: Any) -> tuple[Any, Any] | None:
    """Two moments in a form that Python can order; one may be its ISO 8601 text, or Python's own. None: no order."""
    kind = type(left) if isinstance(left, Moment) else type(right)
    texts = []
    for value in (left, right):
        if value.__class__ is kind.native:
            texts.append(value.isoformat())
        elif value.__class__ is str or value.__class__ is kind:
            texts.append(value)
        else:
            return None
    for form in (python_of, place_of):
        first, second = form(kind, texts[0]), form(kind, texts[1])
        if first is not None and second is not None:
            try:
                _ = first < second
            except TypeError:  # one has an offset
                return None
            return first, second
    return None
