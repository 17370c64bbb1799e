"""docs/sinks.md names every key of every sink with its default, and its examples are configurations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from bridge.config.destinations.sink import SinkDestination
from bridge.config.lint import lint
from bridge.config.load import load
from bridge.plans import dispatch_plans
from bridge.section import descriptions
from bridge.sinks.model import SINKS

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "sinks.md").read_text(encoding="utf-8")
ENVIRON = {
    "SLACK_WEBHOOK_URL": "https://hooks.slack.example/x",
    "SLACK_TOKEN": "xoxb-1",
    "DISCORD_WEBHOOK_URL": "https://discord.example/x",
    "TELEGRAM_TOKEN": "123:abcdefghijklm",
    "SMTP_PASSWORD": "secret",
    "CRM_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
    "NOTION_TOKEN": "ntn_1",
    "APPRISE_URL": "ntfys://ntfy.example.com/usage",
    "SOURCE_DSN": "dbname=s",
}
HEAD = """
version: 1
source: { dsn: "${SOURCE_DSN}" }
events:
  usage.limit_reached: { customer_id: string, metric: string, limit: number, used: number, plan: string }
pipelines:
  usage:
    event: usage.limit_reached
    steps:
      - enrich.entity:
          as: customer
          key: $event.customer_id
          sql: select customer_id, csm, csm_slack, csm_email from crm.customer where customer_id = any(%(keys)s)
"""


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def keys_of(model: type[BaseModel], given: dict[str, Any]) -> dict[str, str]:
    """Key -> default as the documentation writes it."""
    keys = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = "none" if default in (None, (), {}) else f"`{default}`"
        keys[field.alias or name] = "required" if field.is_required() else text
    return keys | {name: f"`{source}`" for name, source in given.items()}


@pytest.mark.parametrize("kind", SINKS)
def test_each_key_stands_in_its_table_with_its_default(kind: str) -> None:
    connection = SINKS[kind]
    for part, model, given in (
        ("connection", connection, {}),
        ("destination", connection.message, dict(connection.message.given)),
    ):
        rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.+?) \|$", section(f"{kind}: {part}"), re.MULTILINE)
        assert {key: default for key, default, _ in rows} == keys_of(model, given)
        words = descriptions(model)
        for name in model.model_fields:
            assert words.get(name), f"{kind} {part}: {name} has no docstring"


def test_no_vendors_key_is_one_of_every_destination() -> None:
    own = set(SinkDestination.model_fields)
    for connection in SINKS.values():
        assert own.isdisjoint(connection.message.model_fields)


def examples() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All connections of the document, and its destinations, one example each."""
    connections: dict[str, Any] = {}
    destinations = []
    for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL):
        found = yaml.safe_load(text)
        connections |= found.get("connections", {})
        destinations += [found["destinations"]] if "destinations" in found else []
    return connections, destinations


def test_every_example_is_a_configuration_that_lint_likes(tmp_path: Path) -> None:
    connections, destinations = examples()
    assert {connection["type"] for connection in connections.values()} == set(SINKS)
    assert len(destinations) >= len(SINKS)
    for number, example in enumerate(destinations):
        used = {one["connection"] for one in example.values()}
        tree = yaml.safe_load(HEAD)
        tree["connections"] = {name: connections[name] for name in used}
        tree["pipelines"]["usage"]["destinations"] = example
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(tree))
        assert [finding.text("") for finding in lint(path, ENVIRON)] == []
        (plan,) = dispatch_plans(load(path, ENVIRON))
        assert plan.stream == "outbox_bridge_source"
        assert [lane.destination for lane in plan.lanes] == list(example)


@pytest.mark.parametrize(
    ("keys", "from_event"),
    [
        ("channel: $event.csm, fallback: '#all'", True),
        ("channel: '#one', fallback: $event.csm", True),
        ("fallback: $event.csm", True),
        ("channel: '#one', fallback: '#all'", False),
    ],
)
def test_a_recipient_is_an_events_also_where_only_the_fallback_is(
    tmp_path: Path, keys: str, from_event: bool
) -> None:
    tree = yaml.safe_load(HEAD)
    tree["connections"] = {"workspace": examples()[0]["workspace"]}
    nudge = yaml.safe_load(f"{{ connection: workspace, text: hi, {keys} }}")
    tree["pipelines"]["usage"]["destinations"] = {"nudge": nudge}
    path = tmp_path / "bridge.yaml"
    path.write_text(yaml.safe_dump(tree))
    ((lane,),) = [plan.lanes for plan in dispatch_plans(load(path, ENVIRON))]
    assert lane.by_recipient is from_event


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        ("{ connection: bot }", "nudge: `text` is missing: a telegram message needs it"),
        (
            "{ connection: bot, text: hi, format: $event.plan }",
            "nudge.format: `$event.plan` must be a literal",
        ),
        ("{ connection: csm, txt: hi }", "nudge.txt: is not a key of a slack message; did you mean text?"),
        ("{ connection: mail, sbject: hi }", "nudge: `subject` is missing: an email message needs it"),
        ("{ connection: csm, text: '{{ event.', }", "template"),
        (
            "{ connection: csm }",
            "nudge: has neither text nor blocks: no message could be sent; add text or blocks",
        ),
        (
            "{ connection: csm, text: hi, channel: $event.csm }",
            "nudge.channel: has no effect: connection csm writes to its own place only",
        ),
        ("{ connection: workspace, text: hi }", "nudge: has neither channel nor fallback: no message could"),
        (
            "{ connection: bot, text: hi }",
            "nudge: has neither chat_id nor fallback: no message could be sent",
        ),
        (
            "{ connection: mail, subject: hi, text: hi }",
            "nudge: has neither to nor fallback: no message could",
        ),
        (
            "{ connection: mail, to: nobody, subject: a, text: b }",
            "nudge.to: must be an address such as ada@",
        ),
        ('{ connection: mail, to: a@b.example, subject: "a\\nb", text: b }', "nudge.subject: "),
        ("{ connection: hook }", "nudge: has neither url nor fallback: no message could be sent"),
        (
            "{ connection: bot, chat_id: 5, text: hi, format: markdwn }",
            "nudge.format: input should be 'text', 'mark",
        ),
        (
            "{ connection: notion, properties: { Custmer: $event.plan } }",
            "nudge.properties.Custmer: the connection does not define the type of Custmer; did you mean Customer?",
        ),
    ],
)
def test_lint_names_keys_that_a_vendor_does_not_know_or_misses(
    destination: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(
        HEAD
        + f"    destinations:\n      nudge: {destination}\n"
        + "connections:\n  bot: { type: telegram, token: '${TELEGRAM_TOKEN}' }\n"
        + "  csm: { type: slack, webhook_url: https://hooks.slack.example/x }\n"
        + "  workspace: { type: slack, token: xoxb-1 }\n"
        + "  hook: { type: webhook, secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw }\n"
        + f"  notion: {{ type: notion, token: t, database_id: {'0' * 32}, properties: {{ Customer: title }} }}\n"
        + "  mail: { type: email, host: smtp.example.com, from: bridge@example.com }\n"
    )
    assert any(message in finding.text("") for finding in lint(path, ENVIRON))
