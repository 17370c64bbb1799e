"""An ingress in front of two sources: who chooses, and one of them down."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.ingress.serving import EVENT, Answer, request
from tests.support.bridge_process import DEFAULT_CONFIG, BridgeProcess
from tests.support.proxy import FaultProxy
from tests.support.servers import Database, create_database, drop_database, free_port, template_of
from tests.support.world import until

SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()


@pytest.fixture
def eu(source: Database) -> Iterator[Database]:
    made = create_database(source.server, f"{source.name}_eu", template_of("source"))
    made.execute("create publication outbox_bridge_eu for table outbox.event with (publish = 'insert')")
    yield made
    drop_database(made)


class TwoSources:
    """`bridge run` with an ingress that writes to `source` and `eu`."""

    def __init__(self, process: BridgeProcess, port: int) -> None:
        self.process, self.port = process, port

    def event(self, n: int = 1, source: str | None = None, **headers: str) -> Answer:
        sent = {"authorization": "Bearer key-of-the-tests", "content-type": "application/json", **headers}
        if source is not None:
            sent["x-outbox-source"] = source
        return request(
            self.port,
            "POST",
            "/v1/events/usage.limit_reached",
            json.dumps({**EVENT, "used": n}).encode(),
            sent,
        )

    def webhook(self, name: str) -> Answer:
        body, moment = json.dumps({"type": "usage.limit_reached", **EVENT}).encode(), str(int(time.time()))
        mac = hmac.digest(b"s" * 24, f"msg_{name}.{moment}.".encode() + body, "sha256")
        headers = {
            "content-type": "application/json",
            "webhook-id": f"msg_{name}",
            "webhook-timestamp": moment,
            "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
        }
        return request(self.port, "POST", f"/v1/webhooks/{name}", body, headers)


def document(port: int, **ingress: Any) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(DEFAULT_CONFIG.read_text())
    made["sources"] = {"source": made.pop("source"), "eu": {"dsn": "${EU_DSN}"}}
    made["ingress"] = {"listen": f"127.0.0.1:{port}", "api_keys": ["key-of-the-tests"], **ingress}
    return made


@pytest.fixture
def start(
    source: Database,
    target: Database,
    eu: Database,
    tmp_path: Path,
    bridge_process: Callable[..., BridgeProcess],
) -> Callable[..., TwoSources]:
    def starting(eu_dsn: str = eu.bridge_dsn, **ingress: Any) -> TwoSources:
        port = free_port()
        config = tmp_path / "bridge.yaml"
        config.write_text(yaml.safe_dump(document(port, **ingress), sort_keys=False))
        process = bridge_process(
            source=source.bridge_dsn, target=target.bridge_dsn, config=config, environment={"EU_DSN": eu_dsn}
        )
        process.start().wait_ready()
        return TwoSources(process, port)

    return starting


def counts(*databases: Database) -> list[Any]:
    return [one.value("select count(*) from outbox.event") for one in databases]


def test_a_request_and_a_webhook_choose_their_source(
    start: Callable[..., TwoSources], source: Database, eu: Database, target: Database
) -> None:
    hooks = {
        name: {"scheme": "standard", "secrets": [SECRET], "type": "$body.type", "source": name}
        for name in ("source", "eu")
    }
    bridge = start(webhooks=hooks)
    assert bridge.event(1, "eu").status == 202
    assert counts(source, eu) == [0, 1]
    assert bridge.event(2, "source").status == 202
    assert bridge.webhook("eu").status == 202
    assert counts(source, eu) == [1, 2]
    assert bridge.webhook("source").status == 202
    assert counts(source, eu) == [2, 2]
    refused = bridge.event(3)
    assert (refused.status, refused.json["field"]) == (400, "x-outbox-source")
    assert "x-outbox-source names one of source, eu" in refused.json["detail"]
    assert "did you mean source?" in bridge.event(3, "sourc").json["detail"]
    # one key is two events in two sources, and one in each
    key = {"idempotency-key": "k"}
    answers = [bridge.event(4, name, **key) for name in ("eu", "source", "eu")]
    assert [one.status for one in answers] == [202, 202, 200]
    lines = {"content-type": "application/x-ndjson", "authorization": "Bearer key-of-the-tests"}
    body = b"".join(json.dumps({"payload": {**EVENT, "used": n}}).encode() + b"\n" for n in (5, 6))
    sent = request(
        bridge.port, "POST", "/v1/events/usage.limit_reached", body, {**lines, "x-outbox-source": "eu"}
    )
    assert [one["status"] for one in sent.lines] == [202, 202]
    assert counts(source, eu) == [3, 5]
    until(lambda: target.value("select count(*) from events.usage_limits") == 8, "all of them are applied")
    described = request(
        bridge.port, "GET", "/openapi.json", b"", {"authorization": "Bearer key-of-the-tests"}
    ).json
    [named] = [
        one
        for one in described["paths"]["/v1/events/usage.limit_reached"]["post"]["parameters"]
        if one["name"] == "x-outbox-source"
    ]
    assert named["required"]
    assert named["schema"]["enum"] == ["source", "eu"]


def test_with_ingress_source_all_events_are_that_sources(
    start: Callable[..., TwoSources], source: Database, eu: Database
) -> None:
    bridge = start(source="eu")
    assert bridge.event().status == 202
    assert bridge.event(2, "eu").status == 202
    refused = bridge.event(3, "source")
    assert (refused.status, refused.json["field"]) == (400, "x-outbox-source")
    assert counts(source, eu) == [0, 2]


def test_a_source_that_is_down_is_answered_503_and_the_other_goes_on(
    start: Callable[..., TwoSources],
    proxy_to: Callable[[str], FaultProxy],
    source: Database,
    eu: Database,
    target: Database,
) -> None:
    link = proxy_to(eu.bridge_dsn)
    hooks = {"eu": {"scheme": "standard", "secrets": [SECRET], "type": "$body.type", "source": "eu"}}
    bridge = start(eu_dsn=link.dsn, webhooks=hooks)
    assert [bridge.event(1, name).status for name in ("eu", "source")] == [202, 202]
    applied = "select count(*) from events.usage_limits"
    until(lambda: target.value(applied) == 2, "one of each")
    link.refuse()
    link.reset_all()
    until(lambda: bridge.event(2, "eu").status == 503, "eu is down")
    down = bridge.event(2, "eu")
    assert down.json["detail"] == "source eu is not writable at present"
    assert float(down.headers["retry-after"]) >= 1
    assert bridge.webhook("eu").status == 503
    assert [bridge.event(n, "source").status for n in (2, 3, 4)] == [202] * 3
    until(lambda: target.value(applied) == 5, "source's go on")
    status, body = bridge.process.get("/readyz")
    parts = {one["where"] for one in json.loads(body)["reasons"]}
    assert (status, "ingress to eu" in parts, "ingress to source" in parts) == (503, True, False)
    link.clear()
    until(lambda: bridge.event(5, "eu").status == 202, "eu is back")
    until(lambda: bridge.process.get("/readyz")[0] == 200, "ready again")
