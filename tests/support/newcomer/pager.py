"""A pager."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bridge.sinks.judge import judge
from bridge.sinks.model import Delivery, HttpUrl, MessageModel, SendOutcome, SinkConnection, SinkMessage, Wire


class PagerMessage(SinkMessage):
    """What the pager shows."""

    text: str
    """The text."""


class PagerConnection(SinkConnection):
    """A pager."""

    type: Literal["pager"]
    """pager."""
    url: HttpUrl = Field(repr=False)
    """Where it is."""

    message: ClassVar[MessageModel] = PagerMessage

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        message = PagerMessage.of(delivery.fields)
        return judge(await wire.post(self.url, delivery, {"page": message.text}))
