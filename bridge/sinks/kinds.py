"""Every sink there is. A new one is a module and its name here."""

from __future__ import annotations

from typing import get_args

from bridge.sinks.apprise import AppriseConnection
from bridge.sinks.discord import DiscordConnection
from bridge.sinks.email import EmailConnection
from bridge.sinks.model import SinkConnection
from bridge.sinks.notion import NotionConnection
from bridge.sinks.slack import SlackConnection
from bridge.sinks.telegram import TelegramConnection
from bridge.sinks.webhook import WebhookConnection

AnySink = (
    SlackConnection
    | DiscordConnection
    | TelegramConnection
    | EmailConnection
    | WebhookConnection
    | NotionConnection
    | AppriseConnection
)

SINKS: dict[str, type[SinkConnection]] = {
    get_args(sink.model_fields["type"].annotation)[0]: sink for sink in get_args(AnySink)
}
"""A connection's `type` to its model."""
