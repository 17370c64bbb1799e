"""Notion: a page in a database.

developers.notion.com: "Create a page", "Property values", "Request limits", "Status codes".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from bridge.expressions.document import json_text
from bridge.sinks.judge import document, judge
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
TEXT_MAX = 2000  # characters of one rich text object
_TEXTS_MAX = 100  # rich text objects of one property
_SECONDS = 1 / 3  # three requests a second, on average
_OPTION_MAX = 100

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
    """Property to value. Null leaves it empty."""
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
                name: _property(name, self.properties[name], value)
                for name, value in message.properties.items()
                if value is not None
            },
        }
        if message.text:
            paragraph = {"rich_text": _rich_text(message.text)}
            body["children"] = [{"object": "block", "type": "paragraph", "paragraph": paragraph}]
        headers = {"authorization": f"Bearer {self.token}", "notion-version": VERSION}
        answer = await wire.post(f"{self.api_url.rstrip('/')}/v1/pages", delivery, body, headers)
        code = str(document(answer).get("code", ""))
        outcome = judge(answer, detail=f"Notion says {code}" if re.fullmatch(r"[a-z_]{1,60}", code) else "")
        if answer.status == 409:  # conflict_error: "a conflict while saving data; try again"
            return SendOutcome("retry", outcome.code, outcome.cause, blame="message")
        return outcome


def _rich_text(text: str) -> list[dict[str, Any]]:
    """Plain text in pieces that Notion accepts; it has no markup."""
    pieces = [text[at : at + TEXT_MAX] for at in range(0, len(text), TEXT_MAX)][:_TEXTS_MAX]
    return [{"type": "text", "text": {"content": piece}} for piece in pieces]


def _property(name: str, kind: str, value: Any) -> dict[str, Any]:
    """One property value; SendError naming the property, without the value."""
    try:
        return {kind: _MADE[kind](value) if kind in _MADE else _text(value)}
    except (TypeError, ValueError, ArithmeticError):
        raise SendError(unfit(f"properties.{name}: is not a {kind}")) from None


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
    name = _text(value).replace(",", " ")[:_OPTION_MAX]  # a comma is not allowed in an option's name
    if not name:
        raise ValueError
    return {"name": name}


def _options(value: Any) -> list[dict[str, str]]:
    return [_option(one) for one in (value if isinstance(value, list) else [value])]


def _date(value: Any) -> dict[str, str]:
    if not isinstance(value, str) or not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        raise ValueError
    return {"start": value}


_MADE: Mapping[str, Any] = {
    "title": lambda value: _rich_text(_text(value)),
    "rich_text": lambda value: _rich_text(_text(value)),
    "number": _number,
    "select": _option,
    "status": _option,
    "multi_select": _options,
    "date": _date,
    "checkbox": _checkbox,
}
