"""`bridge sink preview` and `bridge sink test`: real lookups, a real receiver, a real mail server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.sinks.conftest import HEAD, TABLE, Start
from tests.support.bridge_process import BridgeProcess, run_command
from tests.support.mail import MailServer
from tests.support.producers import Producer
from tests.support.receiver import Receiver, Reply
from tests.support.servers import Database
from tests.support.world import until

SINKS = """
nudge: { connection: csm, text: "{{ customer.csm }}: {{ event.customer_id }}, {{ event.used }}",
  digest: { by: $event.customer_id, every: 1m } }
own: { connection: hook, url: $event.url, fallback: $event.other }
mail: { connection: post, to: $event.to, subject: "{{ event.customer_id }}", text: t }
"""
PAYLOAD = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 9, "plan": "pro"}


@pytest.fixture
def mails() -> Any:
    made = MailServer()
    yield made
    made.close()


@pytest.fixture
def bridge(bridge_with: Start, mails: MailServer, source: Database) -> BridgeProcess:
    post = (
        f"  post: {{{{ type: email, host: 127.0.0.1, port: {mails.port}, security: none,"
        ' from: "b@example.com" }}\n'
    )
    made = bridge_with(TABLE + SINKS, head=HEAD.replace("pipelines:\n", f"{post}pipelines:\n"))
    with made.config.open("a") as config:
        config.write(
            "\ntests:\n- { name: t, pipeline: usage, event: {customer_id: '<!channel>', used: 1},"
            " entities: {customer: {csm: Tess}}, expect: {} }\n"
        )
    source.execute(
        "insert into crm.customer (customer_id, mrr, csm, renewal) values ('cus_1', 1, 'Ada', '2027-01-01')"
        " on conflict (customer_id) do update set csm = 'Ada'"
    )
    return made


def sink(bridge: BridgeProcess, *given: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bridge", "sink", *given, "-c", str(bridge.config)]
    return run_command(command, bridge.environment, stdin)


def read(bridge: BridgeProcess, *given: str, code: int = 0, stdin: str | None = None) -> Any:
    done = sink(bridge, *given, "--json", stdin=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_preview_shows_what_each_sink_would_get_and_sends_nothing(
    bridge: BridgeProcess, receiver: Receiver, mails: MailServer, source: Database, tmp_path: Any
) -> None:
    nudge, own, mail = read(bridge, "preview", code=1)  # the configuration's own test, with its rows
    assert nudge["payload"] == [{"text": "Tess: &lt;!channel&gt;, 1"}]
    assert (own["message"]["data"]["used"], mail["message"]["subject"]) == (1, "<!channel>")
    assert mail["why"] == "the message cannot be sent: to and fallback are empty"
    mapping = PAYLOAD | {"to": "a@example.com", "url": f"{receiver.url}/own", "note": "Grüße ⚡"}
    file = tmp_path / "event.json"
    file.write_text(json.dumps(mapping))
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[mapping])
    [event_id] = source.execute("select id::text from outbox.event")[0]
    for given, stdin in (
        (json.dumps(mapping), None),
        (str(file), None),
        ("-", file.read_text()),
        (event_id, None),
    ):
        nudge, own, mail = read(bridge, "preview", "--event", given, stdin=stdin)
        assert nudge["payload"] == [{"text": "Ada: cus_1, 9"}], given
        assert own["payload"][0]["data"]["note"] == "Grüße ⚡"
        assert (mail["message"]["to"], mail["payload"], mail["why"]) == ("a@example.com", [], "")
    said = sink(bridge, "preview", "nudge", "--pipeline", "usage", "--event", '{"customer_id": "cus_1"}')
    assert said.returncode == 1
    assert "a dead letter: expression" in said.stdout
    assert (receiver.requests, mails.mails) == ([], [])


def test_test_sends_one_message_now_and_tells_the_vendors_answer(
    bridge: BridgeProcess, receiver: Receiver, mails: MailServer, target: Database
) -> None:
    receiver.replies = [Reply(200), Reply(400, b"invalid_blocks\x1b[31m"), Reply(404, b'{"n": 0.10}')]
    event = json.dumps(
        PAYLOAD | {"to": "a@example.com", "url": f"{receiver.url}/gone", "other": f"{receiver.url}/x"}
    )
    sent = sink(bridge, "test", "nudge", "--event", event)
    assert (sent.returncode, sent.stdout) == (
        0,
        "usage.nudge (slack, connection csm): sent\nanswer: HTTP 200\n    ok\n",
    )
    refused = sink(bridge, "test", "nudge", "--event", event)
    assert refused.returncode == 1
    assert "not sent: http_400: HTTP 400" in refused.stdout
    assert "    invalid_blocks\N{REPLACEMENT CHARACTER}[31m" in refused.stdout
    gone = read(bridge, "test", "own", "--event", event, code=1)
    assert (gone["sent"], gone["code"], gone["fallback"]) == (False, "http_404", True)
    assert gone["answers"] == [{"status": 404, "body": {"n": 0.10}}]
    assert read(bridge, "test", "mail", "--event", event)["answers"] == []
    until(lambda: len(mails.mails) == 1, "the mail")
    assert [one.path for one in receiver.requests] == ["/slack", "/slack", "/gone"]
    assert len({one.identity for one in receiver.requests}) == 3
    assert target.value("select count(*) from bridge.delivery") == 0


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (("test", "nudg"), 2, "there is no sink nudg"),
        (("test", "nudge", "--pipeline", "other"), 2, "there is no sink nudge in pipeline other"),
        (("test", "events"), 2, "there is no sink events"),
        (("preview", "--event", "[1]"), 2, "must be an object"),
        (("preview", "--event", '{"a": '), 2, "not valid JSON"),
        (("preview", "--event", "none.json"), 1, "there is no file none.json"),
        (("preview", "--event", "{}", "--type", "other"), 2, "no pipeline with this sink takes other"),
        (
            ("test", "nudge", "--event", '{"customer_id": "no"}'),
            1,
            "gets nothing of this event: a dead letter",
        ),
    ],
)
def test_what_cannot_be_shown_is_told(
    bridge: BridgeProcess, given: tuple[str, ...], code: int, said: str
) -> None:
    done = sink(bridge, *given)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in " ".join(done.stderr.replace("│", " ").split())
