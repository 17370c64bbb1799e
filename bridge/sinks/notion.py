"""Notion: a page in a database.

developers.notion.com: "Create a page", "Property values", "Request limits", "Status codes".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from bridge.expressions.document import json_text
from bridge.expressions.filters import moment_of, moment_text
from bridge.sinks.judge import document, judge, not_theirs, says
from bridge.sinks.model import (
    Delivery,
    HttpUrl,
    MessageModel,
    OneLine,
    Pace,
    SendError,
    SendOutcome,
    SinkConnection,
    SinkMessage,
    Wire,
    is_reference,
    unfit,
)

VERSION = "2022-06-28"
TEXT_MAX = 2000  # UTF-16 units of one rich text object, as everywhere here
_TEXTS_MAX = 100  # rich text objects of one property
_SECONDS = 1 / 3  # three requests a second, on average
_OPTION_MAX = 100
_OPTIONS_MAX = 100
_LENGTHS = {"url": 2000, "email": 200, "phone_number": 200}
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_PATH = re.compile(r"\bbody((?:\.[A-Za-z_]{1,40}|\[\d{1,3}\]){1,10})")
_RULE = re.compile(r"\b(should be (?:\u2264|<=) `?\d+`?|should be defined|should be a[n]? [a-z ]{1,30})")

PropertyType = Literal[
    "title",
    "rich_text",
    "number",
    "select",
    "multi_select",
    "status",
    "date",
    "checkbox",
    "url",
    "email",
    "phone_number",
]


def _identity(text: str) -> str:
    if not is_reference(text) and not re.fullmatch(r"[0-9a-fA-F]{32}", text.replace("-", "")):
        raise ValueError("must be the database's id: the 32 hexadecimal digits in its address")
    return text


class NotionMessage(SinkMessage):
    """A page."""

    properties: dict[str, Any] = Field(min_length=1)
    """Property to value. Null leaves it empty, and so does an empty text."""
    text: str | None = None
    """The page's own text: a paragraph."""


class NotionConnection(SinkConnection):
    """A database."""

    type: Literal["notion"]
    """notion."""
    token: OneLine = Field(repr=False)
    """The token of an integration that the database is shared with."""
    database_id: Annotated[str, AfterValidator(_identity)]
    """The database's id."""
    properties: dict[str, PropertyType] = Field(min_length=1)
    """The properties to write, and their types; one is the title."""
    api_url: HttpUrl = "https://api.notion.com"
    """The address of Notion's API."""

    message: ClassVar[MessageModel] = NotionMessage
    by_wire: ClassVar[bool] = True
    slowest_pace: ClassVar[float] = _SECONDS

    def names(self) -> Mapping[str, Iterable[str]]:
        return {"properties": self.properties}

    def pace(self, delivery: Delivery) -> Pace:
        """Three per second and integration."""
        return Pace("", _SECONDS)

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        message = NotionMessage.of(delivery.fields)
        unknown = sorted(name for name in message.properties if name not in self.properties)
        if unknown:
            return unfit(
                f"the connection does not say which type these properties have: {', '.join(unknown)}"
            )
        body: dict[str, Any] = {
            "parent": {"database_id": self.database_id},
            "properties": {
                name: made
                for name, value in message.properties.items()
                if (made := _property(name, self.properties[name], value)) is not None
            },
        }
        if message.text:
            paragraph = {"rich_text": _rich_text(message.text)}
            body["children"] = [{"object": "block", "type": "paragraph", "paragraph": paragraph}]
        headers = {"authorization": f"Bearer {self.token}", "notion-version": VERSION}
        answer = await wire.post(f"{self.api_url.rstrip('/')}/v1/pages", delivery, body, headers)
        found = document(answer)
        code = str(found.get("code", ""))
        detail = f"Notion says {code}" if re.fullmatch(r"[a-z_]{1,60}", code) else ""
        outcome = judge(answer, detail=detail and detail + self._problem(str(found.get("message", ""))))
        if answer.status == 409:  # conflict_error: "a conflict while saving data; try again"
            return SendOutcome("retry", outcome.code, outcome.cause, blame="message")
        if outcome.verdict == "sent" and not says(answer, "object", '"page"'):
            return not_theirs("Notion")
        return outcome

    def _problem(self, message: str) -> str:
        """The property that is wrong, and the rule: Notion's message names it, and may quote its value."""
        expected = re.search(
            r"(?:^|\. )(.{1,100}?) is (?:expected to be [a-z_]+|not a property that exists)", message
        )
        if expected and expected[1] in self.properties:
            return f": {expected[0].removeprefix('. ')}"
        named = next((name for name in self.properties if f"body.properties.{name}." in message), None)
        path, rule = _PATH.search(message), _RULE.search(message)
        place = f"properties.{named}" if named else path[1].lstrip(".") if path else ""
        return f": {' '.join(part for part in (place, rule and rule[1]) if part)}" if place else ""


def _units(text: str) -> int:
    """The length as Notion counts it, in UTF-16 units: a character beyond U+FFFF counts twice."""
    return len(text) + sum(character > "\uffff" for character in text)


def _cut(text: str, limit: int) -> str:
    return text if _units(text) <= limit else next(_pieces(text, limit - 1)) + _ELLIPSIS


def _pieces(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` units, none of which ends amid a character."""
    start = units = 0
    for at, character in enumerate(text):
        size = 2 if character > "\uffff" else 1
        if units + size > limit:
            yield text[start:at]
            start, units = at, 0
        units += size
    yield text[start:]


def _rich_text(text: str) -> list[dict[str, Any]]:
    """Plain text in pieces that Notion accepts; it has no markup. Truncated after 100 pieces."""
    pieces = list(islice(_pieces(text, TEXT_MAX), _TEXTS_MAX + 1)) if text else []
    if len(pieces) > _TEXTS_MAX:
        pieces = [*pieces[: _TEXTS_MAX - 1], _cut(pieces[_TEXTS_MAX - 1] + pieces[_TEXTS_MAX], TEXT_MAX)]
    return [{"type": "text", "text": {"content": piece}} for piece in pieces]


def _property(name: str, kind: str, value: Any) -> dict[str, Any] | None:
    """One property value; None: it stays empty. SendError naming the property, without the value."""
    if value is None or (value == "" and kind not in ("title", "rich_text", "checkbox")):
        return None
    try:
        made = _MADE[kind](value)
    except (TypeError, ValueError, ArithmeticError):
        raise SendError(unfit(f"properties.{name}: is not a {kind}")) from None
    return None if made is None else {kind: made}


def _within(limit: int, value: Any) -> str | None:
    """An address, or nothing if it is too long: half of it would lead elsewhere."""
    text = _text(value).strip()
    return text if 0 < _units(text) <= limit else None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json_text(value).decode()


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise TypeError
    number = Decimal(str(value)) if isinstance(value, str) else value
    if not isinstance(number, int | float | Decimal) or not Decimal(number).is_finite():
        raise TypeError
    return number


def _checkbox(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError


def _option(value: Any) -> dict[str, str]:
    name = _cut(_text(value).replace(",", " ").strip(), _OPTION_MAX)  # an option's name has no comma
    if not name:
        raise ValueError
    return {"name": name}


def _options(value: Any) -> list[dict[str, str]]:
    """Each once: Notion refuses a name that is there twice."""
    given = value if isinstance(value, list) else [value]
    names = dict.fromkeys(_option(one)["name"] for one in given if one is not None and one != "")
    return [{"name": name} for name in islice(names, _OPTIONS_MAX)]


def _date(value: Any) -> dict[str, str]:
    """ISO 8601; also as Postgres prints it."""
    text = _text(value)
    if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError
    moment_of(text)
    return {"start": text if len(text) == 10 else moment_text(text)}


_MADE: Mapping[str, Callable[[Any], Any]] = {
    "title": lambda value: _rich_text(_text(value)),
    "rich_text": lambda value: _rich_text(_text(value)),
    "number": _number,
    "select": _option,
    "status": _option,
    "multi_select": _options,
    "date": _date,
    "checkbox": _checkbox,
    **{kind: partial(_within, limit) for kind, limit in _LENGTHS.items()},
}
