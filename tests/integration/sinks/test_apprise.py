"""What is particular to the sink of the apprise library: addresses, threads, secrets, and that it may be missing."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.config.lint import lint
from bridge.config.load import load
from bridge.doctor.destinations import libraries, reach
from bridge.errors import ConfigError
from bridge.sinks import apprise_thread
from bridge.sinks.apprise import ELSEWHERE, AppriseConnection
from bridge.sinks.http import HttpClient
from bridge.sinks.model import SendOutcome, Wire
from tests.integration.sinks.test_contract import IDENTITY, delivery, send
from tests.support.bridge_process import BridgeProcess
from tests.support.mail import MailServer
from tests.support.receiver import Receiver, Reply
from tests.support.servers import Database

LOCAL = ("127.0.0.0/8",)


def connection(url: str, *allow: str) -> AppriseConnection:
    return AppriseConnection(type="apprise", url=url, allow=allow)


def to(receiver: Receiver, host: str = "127.0.0.1", schema: str = "json") -> str:
    return f"{schema}://user:SECRET-1@{host}:{receiver.port}/SECRET-2?+X-Token=SECRET-3"


def test_a_message_has_its_title_its_level_and_the_deliverys_id(receiver: Receiver) -> None:
    fields = {"text": "a <b> & *c* :smile: \\n", "title": "News", "level": "warning"}
    assert send(connection(to(receiver), *LOCAL), fields).verdict == "sent"
    [request] = receiver.requests
    assert {key: request.json[key] for key in ("title", "message", "type")} == {
        "title": "News",
        "message": "a <b> & *c* :smile: \\n",
        "type": "warning",
    }
    assert request.headers["idempotency-key"] == IDENTITY
    assert request.headers["x-token"] == "SECRET-3"


@pytest.mark.parametrize("schema", ["xml", "form"])
def test_other_endpoints_of_ones_own_get_the_id_too(schema: str, receiver: Receiver) -> None:
    assert send(connection(to(receiver, schema=schema), *LOCAL), {"text": "t"}).verdict == "sent"
    assert receiver.requests[0].headers["idempotency-key"] == IDENTITY


@pytest.mark.security(14)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001"])
def test_a_private_address_is_refused_unless_allowed(host: str, receiver: Receiver) -> None:
    outcome = send(connection(to(receiver, host)), {"text": "t"})
    assert (outcome.verdict, outcome.code, outcome.blame) == ("dead", "address_refused", "destination")
    assert receiver.requests == []


def test_what_one_connection_allows_another_does_not(receiver: Receiver) -> None:
    assert send(connection(to(receiver), *LOCAL), {"text": "t"}).verdict == "sent"
    assert send(connection(to(receiver), "10.0.0.0/8"), {"text": "t"}).code == "address_refused"
    assert len(receiver.requests) == 1


def test_the_guard_sees_more_than_http() -> None:
    server = MailServer()
    try:
        url = f"mailto://127.0.0.1:{server.port}/?from=a@example.com&to=b@example.com&mode=insecure"
        assert send(connection(url), {"text": "t"}).code == "address_refused"
        assert server.mails == []
        assert send(connection(url, *LOCAL), {"text": "t"}).verdict == "sent"
        assert len(server.mails) == 1
    finally:
        server.close()


def test_other_threads_connect_where_they_like_while_it_sends(receiver: Receiver) -> None:
    """The guard is the sending thread's: the bridge itself lives on private addresses."""
    other = Receiver()

    answers: list[int] = []

    def elsewhere(_: object) -> None:
        thread = threading.Thread(target=lambda: answers.append(asyncio.run(_post(other.url))))
        thread.start()
        thread.join(30)

    receiver.decide = elsewhere
    try:
        assert send(connection(to(receiver), *LOCAL), {"text": "t"}).verdict == "sent"
        assert answers == [200]
    finally:
        other.close()


async def _post(url: str) -> int:
    client = HttpClient()
    try:
        return (await client.post(url, headers={}, content=b"{}", timeout=5.0, guard=None)).status
    finally:
        await client.close()


def test_a_service_that_hangs_holds_neither_the_loop_nor_its_neighbours(receiver: Receiver) -> None:
    silent = Receiver()
    silent.always = Reply(hang=True)

    async def both() -> tuple[SendOutcome, SendOutcome]:
        wire = Wire(HttpClient(), timeout=60.0)
        slow = asyncio.create_task(connection(to(silent), *LOCAL).send(delivery({"text": "t"}), wire))
        await asyncio.to_thread(silent.wait, 1)
        quick = await connection(to(receiver), *LOCAL).send(delivery({"text": "t"}), wire)
        assert not slow.done()
        await asyncio.to_thread(silent.close)
        return await slow, quick

    slow, quick = asyncio.run(both())
    assert (slow.code, quick.verdict) == ("apprise_failed", "sent")


def test_sends_that_hang_are_bounded(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    places = threading.BoundedSemaphore(1)
    monkeypatch.setattr(apprise_thread, "_places", places)
    with places:  # as a send does that does not come back
        outcome = send(connection(to(receiver), *LOCAL), {"text": "t"})
    assert (outcome.verdict, outcome.code, outcome.blame) == ("retry", "apprise_busy", "destination")
    assert receiver.requests == []
    for _ in range(3):  # each gives its place back
        assert send(connection(to(receiver), *LOCAL), {"text": "t"}).verdict == "sent"


def test_a_blank_text_and_a_level_that_is_none_are_the_messages_fault(receiver: Receiver) -> None:
    for wrong in ({"text": "  "}, {"text": "t", "level": "CANARY"}, {"text": "t", "title": "a\r\nb"}):
        outcome = send(connection(to(receiver), *LOCAL), wrong)
        assert (outcome.verdict, outcome.code) == ("dead", "message")
        assert "CANARY" not in outcome.cause
    assert receiver.requests == []


def test_nothing_that_the_library_logs_is_passed_on(
    receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    level, written = root.level, io.StringIO()
    handler = logging.StreamHandler(
        written
    )  # as the bridge's own: pytest's would ask the library's logger itself
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        logging.getLogger("bridge").debug("heard")
        for reply in (Reply(200), Reply(404, b"CANARY"), Reply(cut=True)):
            receiver.always = reply
            send(connection(to(receiver), *LOCAL), {"text": "CANARY"})
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    said = capfd.readouterr()
    everything = written.getvalue() + said.out + said.err
    assert "heard" in everything
    assert "SECRET" not in everything
    assert "CANARY" not in everything


# -- configuration ------------------------------------------------------------------------------------

CONFIG = """
version: 1
source: {{ dsn: dbname=s }}
connections:
  phones: {{ type: apprise, url: "{url}", allow: [127.0.0.0/8] }}
pipelines:
  usage:
    event: usage.limit_reached
    destinations:
      nudge: {{ connection: phones, text: "{{{{ event.customer_id }}}}" }}
"""


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], Path]:
    def write(url: str) -> Path:
        path = tmp_path / "bridge.yaml"
        path.write_text(CONFIG.format(url=url))
        return path

    return write


def problem(path: Path) -> str:
    """What lint and every command that reads the file say."""
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    [found] = [one for one in lint(path, {}) if one.level == "error"]
    assert found.message in str(caught.value)
    return f"{found.message} {found.fix}"


@pytest.mark.parametrize("url", ["nosuch://SECRET-1", "SECRET-1", "https://", "json://"])
def test_a_url_the_library_cannot_read_is_an_error_that_does_not_quote_it(
    url: str, configured: Callable[[str], Path]
) -> None:
    said = problem(configured(url))
    assert "url is not an Apprise URL" in said
    assert "SECRET" not in said


@pytest.mark.parametrize("schema", sorted(ELSEWHERE))
def test_services_whose_connections_cannot_be_judged_are_refused(
    schema: str, configured: Callable[[str], Path]
) -> None:
    assert f"{schema} is not supported" in problem(configured(f"{schema.upper()}://SECRET-1/x"))


def test_without_the_library_every_command_says_how_to_get_it(
    configured: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "bridge.sinks.apprise_thread")
    monkeypatch.delattr("bridge.sinks.apprise_thread")
    assert "pip install 'outbox-bridge[apprise]'" in problem(configured("json://127.0.0.1/SECRET-1"))


def test_a_url_from_a_variable_not_set_here_is_left_to_who_has_it(
    configured: Callable[[str], Path],
) -> None:
    assert [one for one in lint(configured("${APPRISE_URL}"), {}) if one.level == "error"] == []


def test_doctor_names_the_service_and_the_library_and_never_the_url(
    configured: Callable[[str], Path],
) -> None:
    config = load(configured("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#nuxref"), {})
    [check] = libraries(config)
    assert (check.level, check.where, check.check) == ("ok", "phones", "apprise")
    assert check.message == f"Slack, by apprise {apprise_thread.version()}"
    assert list(reach(config)) == []


def test_an_event_reaches_the_service_once_with_its_deliverys_id(
    bridge_with: Callable[..., BridgeProcess], source: Database, target: Database, receiver: Receiver
) -> None:
    head = f"""
version: 1
source: {{{{ dsn: "${{{{SOURCE_DSN}}}}" }}}}
admin: {{{{ listen: "${{{{BRIDGE_ADMIN}}}}" }}}}
connections:
  warehouse: {{{{ type: postgres, dsn: "${{{{WAREHOUSE_DSN}}}}" }}}}
  phones: {{{{ type: apprise, url: "json://127.0.0.1:{receiver.port}/SECRET-1", allow: [127.0.0.0/8] }}}}
pipelines:
  usage:
    event: usage.limit_reached
    destinations:
"""
    running = bridge_with(
        "events: { connection: warehouse, table: events.usage_limits, mode: upsert, key: [event_id] }\n"
        'nudge: { connection: phones, text: "{{ event.customer_id }} is at {{ event.used }}" }\n',
        head=head,
    )
    running.start().wait_ready()
    try:
        source.execute('select outbox.emit(\'usage.limit_reached\', \'{"customer_id": "cus_1", "used": 7}\')')
        [request] = receiver.wait(1)
        assert request.json["message"] == "cus_1 is at 7"
        assert target.execute("select id::text from bridge.delivery") == [(request.identity,)]
    finally:
        running.terminate()
    assert "SECRET" not in running.log_tail(10_000)
