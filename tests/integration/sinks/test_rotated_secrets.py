"""What a sink's secret file has is read again: what the receiver refuses meanwhile is sent with the new one, and nobody
sends a signal."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.integration.sinks.conftest import HEAD, SECRET, Start
from tests.integration.sinks.test_delivery import until_it_is
from tests.security.certificates import Authority
from tests.support.bridge_process import BridgeProcess
from tests.support.mail import MailServer
from tests.support.producers import Producer
from tests.support.receiver import Received, Receiver, Reply
from tests.support.servers import Database

Place = tuple[psycopg.Connection[tuple[Any, ...]], Database, Path]
Connection = psycopg.Connection[tuple[Any, ...]]

OTHER = f"whsec_{base64.b64encode(b'another secret of this webhook').decode()}"


def signed_with(secret: str, request: Received) -> bool:
    """By Standard Webhooks 1.0: HMAC-SHA256 of id.timestamp.body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    said = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    wanted = base64.b64encode(hmac.digest(key, said, hashlib.sha256)).decode()
    return f"v1,{wanted}" in request.headers["webhook-signature"].split()


@pytest.fixture
def place(source: Database, target_connection: Connection, tmp_path: Path) -> Place:
    """The ledger, the source, and a file for a secret."""
    return target_connection, source, tmp_path / "secret"


class Rotation(NamedTuple):
    """A bridge with a secret in a file."""

    sql: Connection
    source: Database
    bridge: BridgeProcess
    file: Path


def rotated(what: Rotation, new: str, status: int) -> None:
    """One message arrives; the receiver has changed by then, and refuses the next ones until the file is new."""
    sql, source, bridge, file = what
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[{"n": 1}])
        until_it_is(sql, "select count(*) from bridge.delivery where state = 'sent'", 1)
        producer.transaction(payloads=[{"n": 2}])
        producer.transaction(payloads=[{"n": 3}])
        until_it_is(
            sql, f"select count(*) > 0 from bridge.delivery where last_error like 'http_{status}:%'", True
        )
        file.write_text("")  # as whoever does not rename a new file over it
        file.write_text(f"{new}\n")
        until_it_is(sql, "select count(*) from bridge.delivery where state = 'sent'", 3)
    until_it_is(sql, "select count(*) from bridge.dead_letter", 0)
    assert bridge.wait_log('"secrets were read again"')
    assert bridge.terminate() == 0


@pytest.mark.parametrize("status", [401, 403])
def test_the_secret_of_a_webhook(status: int, place: Place, receiver: Receiver, bridge_with: Start) -> None:
    sql, source, file = place
    file.write_text(SECRET)

    def decide(request: Received) -> Reply | None:
        valid = SECRET if request.json["data"]["n"] == 1 else OTHER
        return None if signed_with(valid, request) else Reply(status)

    receiver.decide = decide
    head = HEAD.replace('"{secret}"', f'"${{{{file:{file}}}}}"')
    bridge = bridge_with("hook: { connection: hook, data: { n: $event.n } }\n", head=head).start()
    rotated(Rotation(sql, source, bridge, file), OTHER, status)
    assert {request.json["data"]["n"] for request in receiver.requests} == {1, 2, 3}


@pytest.mark.parametrize("status", [403, 404])
def test_the_address_of_a_slack_webhook(
    status: int, place: Place, receiver: Receiver, bridge_with: Start
) -> None:
    sql, source, file = place
    file.write_text(f"{receiver.url}/services/old")
    receiver.decide = lambda request: (
        Reply(status, b"invalid_token" if status == 403 else b"no_service")
        if request.path.endswith("/old") and "number 1" not in request.json["text"]
        else None
    )
    head = HEAD.replace('"{url}/slack"', f'"${{{{file:{file}}}}}"')
    bridge = bridge_with('nudge: { connection: csm, text: "number {{ event.n }}" }\n', head=head).start()
    rotated(Rotation(sql, source, bridge, file), f"{receiver.url}/services/new", status)
    assert {r.path for r in receiver.requests if "number 1" not in r.json["text"]} == {
        "/services/old",
        "/services/new",
    }


def test_the_password_of_a_mail_server(
    source: Database, target_connection: Connection, bridge_with: Start, tmp_path: Path
) -> None:
    """It answers AUTH with 535, which is RFC 4954's word for a wrong password."""
    file = tmp_path / "password"
    file.write_text("old")
    authority = Authority(tmp_path / "authority")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.certificate("mail", "localhost"))
    valid = ["old"]
    tried: list[str] = []

    def authenticate(_server: Any, _session: Any, _envelope: Any, _how: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        tried.append(data.password.decode())
        return AuthResult(success=tried[-1] == valid[0], handled=False)

    server = MailServer(tls=context, authenticator=authenticate)
    head = HEAD.replace(
        "pipelines:",
        f"  post: {{{{ type: email, host: localhost, port: {server.port}, security: tls, user: bridge,"
        f' password: "${{{{file:{file}}}}}", ca_file: {authority.file}, from: bridge@example.com }}}}\npipelines:',
    )
    try:
        bridge = bridge_with(
            'mail: { connection: post, to: a@example.com, subject: "{{ event.n }}", text: x }\n', head=head
        ).start()
        with Producer(source.dsn) as producer:
            producer.transaction(payloads=[{"n": 0}])
            server.wait(1)
            until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 1)
        target_connection.execute("delete from bridge.delivery")
        valid[0] = "new"
        assert bridge.terminate() == 0  # its connections to the mail server are those of before
        bridge.start()
        with Producer(source.dsn) as producer:
            producer.transaction(payloads=[{"n": 1}])
            until_it_is(
                target_connection,
                "select count(*) > 0 from bridge.delivery where last_error like '%535%'",
                True,
            )
            file.write_text("new")
            server.wait(2)
            until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 1)
        until_it_is(target_connection, "select count(*) from bridge.dead_letter", 0)
        assert bridge.wait_log('"secrets were read again"')
        assert bridge.terminate() == 0
    finally:
        server.close()
    assert set(tried) == {"old", "new"}
