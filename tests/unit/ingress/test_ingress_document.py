"""docs/ingress.md says what there is: every problem, limit, scheme and route."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from bridge.config.model import Webhook
from bridge.ingress import body, problem, writer
from bridge.ingress.store import DELIVERY_MEMORY, IngressDown
from bridge.ingress.webhook import Endpoint
from bridge.observe import connection, server
from bridge.signatures import SCHEMES, TOLERANCE_SECONDS

TEXT = (Path(__file__).parents[3] / "docs" / "ingress.md").read_text()


def test_every_kind_of_problem_stands_in_the_table_of_refusals() -> None:
    table = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", TEXT, re.M)
    named = {kind for _, kinds in table for kind in re.findall(r"`([a-z-]+)`", kinds)}
    assert named == set(problem._TITLES)


def test_every_scheme_has_its_row() -> None:
    rows = re.findall(r"^\| (?:`(\w+)`|\[`(\w+)`\]\((.*?)\)) \|(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|$", TEXT, re.M)
    assert len(rows) == len(SCHEMES)
    assert {one or other: source for one, other, source, *_ in rows} == {
        name: scheme.source for name, scheme in SCHEMES.items()
    }
    for one, other, _, signature, time, identity, event_type, key in rows:
        scheme = SCHEMES[one or other]
        for place, cell in ((scheme.type, event_type), (scheme.id, identity), (scheme.idempotency_key, key)):
            for name in re.findall(r"^\$headers\.(\w+)$|^\$(body\.\w+)$", "\n".join(place), re.M):
                assert f"`{name[0].replace('_', '-')}`" in cell or f"`${name[1]}`" in cell, (
                    one or other,
                    name,
                )
        if scheme.recipe is not None:
            assert scheme.recipe.header in signature or "as `" in signature
            assert (scheme.recipe.timestamp or "").rstrip("=") in time


def test_the_limits_are_those_of_the_code() -> None:
    for stated in (
        f"{server.HEADER_BYTES // 1024} KiB, and {server.HEADER_SECONDS:.0f} s",
        f"`max_payload` (1 MiB), {body.READ_SECONDS:.0f} s",
        f"| idle between requests | {server.KEEP_ALIVE_SECONDS} s |",
        f"(200); {server.CONNECTIONS_OVER} more wait for a place, {connection.PATIENCE_SECONDS} s at most",
        f"a body for over {server.SLOW_SECONDS:.0f} s",
        f"at most {connection.LINGER_BYTES >> 20} MiB, {connection.LINGER_SECONDS:.0f} s, "
        f"or {connection.LINGER_IDLE_SECONDS:.0f} s without a byte",
        f"{writer.WAIT_SECONDS:.0f} s; {writer.QUEUE_ITEMS:,} events or {writer.QUEUE_BYTES >> 20} MiB",
        f"{writer.BATCH_ITEMS} events or {writer.BATCH_BYTES >> 20} MiB",
        f"at most {body.MOST_LINES:,} lines",
        f"{TOLERANCE_SECONDS} s away",
        f"remembered {DELIVERY_MEMORY}",
        IngressDown.reason,
    ):
        assert stated in TEXT, stated


def test_the_examples_of_webhooks_are_what_can_be_configured() -> None:
    found: dict[str, str] = {}
    for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.S):
        section = yaml.safe_load(block)
        webhooks = section.get("ingress", {}).get("webhooks", {}) if "ingress" in section else section
        for name, written in webhooks.items():
            secrets = ["dXNlcjpwYXNzd29yZA=="]  # fits every encoding that the examples have
            webhook = Webhook.model_validate({**written, "secrets": secrets})
            found[name] = Endpoint(name, webhook).scheme.__name__
    assert found == {
        **{"billing": "Stripe", "github": "GitHub", "shop": "Shopify", "sms": "Twilio", "other": "Hmac"},
    }
