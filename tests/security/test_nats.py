"""Logins and TLS to NATS, on real servers: each kind works, and what is wrong with each is said without a secret."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings, BusTls
from bridge.errors import BridgeError, CannotConnect, Halt
from tests.integration.bus.conftest import Log, publishing
from tests.security.certificates import Authority
from tests.support import fixes
from tests.support.nats import NatsNode, NatsOptions, NatsTlsFiles
from tests.support.nats_keys import Nkey, Operator
from tests.support.world import World, until

SECRET = "S3CRET-of-the-test"


def settings(node: NatsNode, **others: object) -> BusSettings:
    return BusSettings("bus", (node.url,), **others)  # type: ignore[arg-type]


def works(wanted: BusSettings) -> None:
    bus = Bus(wanted, "test")
    try:
        bus.connect(10)
        bus.check_jetstream()
    finally:
        bus.close()


def refused(wanted: BusSettings) -> BridgeError:
    bus = Bus(wanted, "test")
    try:
        with pytest.raises(BridgeError) as error:
            bus.connect(5)
    finally:
        bus.close()
    assert SECRET not in str(error.value)
    assert SECRET not in repr(wanted)
    return error.value


# -- logins --------------------------------------------------------------------------------------------


@pytest.mark.security(21)
def test_user_and_password(tmp_path: Path) -> None:
    login = f'user: relay, password: "{SECRET}"'
    with NatsNode(tmp_path, NatsOptions(authorization=login)) as node:
        works(settings(node, user="relay", password=SECRET))
        wrong = refused(settings(node, user="relay", password=f"{SECRET}2"))
        assert isinstance(wrong, CannotConnect)
        assert "password of user relay" in str(wrong)
        assert "connections.bus.user and password" in wrong.hint
        none = refused(settings(node))
        assert "it wants a login, and the configuration has none" in str(none)


@pytest.mark.slow
@pytest.mark.security(21)
def test_token(tmp_path: Path) -> None:
    with NatsNode(tmp_path, NatsOptions(authorization=f'token: "{SECRET}"')) as node:
        works(settings(node, token=SECRET))
        wrong = refused(settings(node, token=f"{SECRET}2"))
        assert "does not take the token" in str(wrong)
        assert "connections.bus.token" in wrong.hint


@pytest.mark.security(21)
def test_nkey(tmp_path: Path) -> None:
    known, unknown = Nkey(), Nkey()
    with NatsNode(tmp_path, NatsOptions(authorization=f"users: [ {{ nkey: {known.public} }} ]")) as node:
        works(settings(node, nkey=str(known.write(tmp_path / "known.nk"))))
        wrong = refused(settings(node, nkey=str(unknown.write(tmp_path / "unknown.nk"))))
        assert "does not know the nkey" in str(wrong)
        assert "nk -inkey" in wrong.hint
        (tmp_path / "empty.nk").write_text("")
        assert "does not hold an nkey's seed" in str(refused(settings(node, nkey=str(tmp_path / "empty.nk"))))
        missing = refused(settings(node, nkey=str(tmp_path / "missing.nk")))
        assert "missing.nk: no such file" in str(missing)


@pytest.mark.security(21)
def test_credentials_file_with_a_jwt(tmp_path: Path) -> None:
    operator = Operator()
    with NatsNode(tmp_path, NatsOptions(extra=operator.configuration)) as node:
        good = operator.credentials(tmp_path / "good.creds", publish=[">"], subscribe=["_INBOX.>"])
        works(settings(node, credentials=str(good)))
        late = operator.credentials(
            tmp_path / "late.creds", publish=[">"], subscribe=["_INBOX.>"], expires=-10
        )
        wrong = refused(settings(node, credentials=str(late)))
        assert "does not take the JWT: it has expired" in str(wrong)
        other = Operator().credentials(tmp_path / "other.creds", publish=[">"], subscribe=["_INBOX.>"])
        assert "its account is not the server's" in str(refused(settings(node, credentials=str(other))))
        (tmp_path / "text.creds").write_text("hello\n")
        text = refused(settings(node, credentials=str(tmp_path / "text.creds")))
        assert "does not hold a JWT and its seed" in str(text)


@pytest.mark.security(21)
def test_a_jwt_without_a_permission_names_it(tmp_path: Path) -> None:
    operator = Operator()
    with NatsNode(tmp_path, NatsOptions(extra=operator.configuration)) as node:
        file = operator.credentials(
            tmp_path / "narrow.creds", publish=["orders.>"], subscribe=["_INBOX.outbox_bridge.>"]
        )
        bus = Bus(settings(node, credentials=str(file)), "test")
        bus.connect()
        with pytest.raises(Halt, match="may not publish to Other") as error:
            bus.call(lambda js: js.publish("Other", b"x"), doing="publish to Other", subject="Other")
        assert 'nsc edit user --name <user> --allow-pub "Other"' in error.value.hint
        bus.close()


@pytest.mark.slow
@pytest.mark.security(21)
def test_a_jwt_that_expires_while_in_use_is_read_anew(tmp_path: Path) -> None:
    operator = Operator()
    said: list[str] = []
    with NatsNode(tmp_path, NatsOptions(extra=operator.configuration)) as node:
        file = operator.credentials(
            tmp_path / "u.creds", publish=[">"], subscribe=["_INBOX.outbox_bridge.>"], expires=3
        )
        bus = Bus(
            settings(node, credentials=str(file)),
            "test",
            on_lost=lambda: said.append("lost"),
            on_back=lambda: said.append("back"),
        )
        bus.connect()
        operator.credentials(file, publish=[">"], subscribe=["_INBOX.outbox_bridge.>"], expires=3600)
        until(lambda: said == ["lost", "back"], "it logged in with the new JWT")
        bus.check_jetstream()
        bus.close()


# -- TLS -----------------------------------------------------------------------------------------------


def tls_options(
    authority: Authority, host: str = "localhost", *, days: int = 2, verify: bool = False
) -> NatsOptions:
    cert, key = authority.certificate(f"server{days}", host, days=days)
    return NatsOptions(tls=NatsTlsFiles(authority.file, cert, key, verify))


@pytest.mark.security(21)
def test_tls_with_the_right_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with NatsNode(tmp_path, tls_options(authority)) as node:
        works(settings(node, tls=BusTls(ca=str(authority.file))))


@pytest.mark.security(21)
def test_an_unknown_authority_is_refused(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    with NatsNode(tmp_path, tls_options(authority)) as node:
        wrong = refused(settings(node, tls=BusTls(ca=str(other.file))))
        assert f"the authority that signed its certificate is not {other.file}" in str(wrong)
        assert "connections.bus.tls.ca" in wrong.hint
        system = refused(settings(node))  # the server requires TLS; the file has no tls
        assert "none that this machine trusts" in str(system)
        assert "connections.bus.tls.ca" in system.hint


@pytest.mark.security(21)
def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with NatsNode(tmp_path, tls_options(authority, "log.example.com")) as node:
        wrong = refused(settings(node, tls=BusTls(ca=str(authority.file))))
        assert "its certificate is for another host" in str(wrong)
        shown = wrong.hint[wrong.hint.index("openssl x509") :]
        fixes.note(shown)
        tls = node.options.tls
        assert tls is not None
        ran = subprocess.run(
            ["sh", "-c", shown.replace("<cert_file>", str(tls.cert))],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "DNS:log.example.com" in ran.stdout


@pytest.mark.slow
@pytest.mark.security(21)
def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with NatsNode(tmp_path, tls_options(authority, days=-1)) as node:
        wrong = refused(settings(node, tls=BusTls(ca=str(authority.file))))
        assert "its certificate has expired" in str(wrong)


@pytest.mark.security(21)
def test_a_client_certificate_is_shown_where_the_server_wants_one(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    own = authority.certificate("client", "relay")
    strange = other.certificate("client", "relay")
    with NatsNode(tmp_path, tls_options(authority, verify=True)) as node:
        works(settings(node, tls=BusTls(str(authority.file), str(own[0]), str(own[1]))))
        none = refused(settings(node, tls=BusTls(str(authority.file))))
        assert "does not take the client certificate" in str(none)
        foreign = refused(settings(node, tls=BusTls(str(authority.file), str(strange[0]), str(strange[1]))))
        assert "does not take the client certificate" in str(foreign)
        mixed = refused(settings(node, tls=BusTls(str(authority.file), str(own[0]), str(strange[1]))))
        assert "cert and key have to be one pair" in mixed.hint


@pytest.mark.security(21)
def test_a_missing_file_of_tls_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with NatsNode(tmp_path, tls_options(authority)) as node:
        wrong = refused(settings(node, tls=BusTls(ca=str(tmp_path / "no.crt"))))
        assert "no.crt: no such file" in str(wrong)


@pytest.mark.security(21)
def test_no_login_is_sent_to_a_server_without_tls(tmp_path: Path) -> None:
    """Also where something in between hides that the server has it: the password must not leave in clear text."""
    authority = Authority(tmp_path / "ca")
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def plain() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(
                    b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"auth_required":true}\r\n'
                )
                peer.settimeout(10)
                while data := peer.recv(65536):
                    heard.append(data)

        thread = threading.Thread(target=plain)
        thread.start()
        url = f"nats://127.0.0.1:{listener.getsockname()[1]}"
        wanted = BusSettings("bus", (url,), user="relay", password=SECRET, tls=BusTls(ca=str(authority.file)))
        wrong = refused(wanted)
        thread.join(20)
    assert "does not offer TLS, and nothing was sent to it" in str(wrong)
    assert b"".join(heard) == b""


@pytest.mark.slow
@pytest.mark.security(21)
def test_a_server_that_only_allows_tls_is_asked_for_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    options = tls_options(authority)
    options.extra = "allow_non_tls: true"
    with NatsNode(tmp_path, options) as node:
        bus = Bus(settings(node, tls=BusTls(ca=str(authority.file))), "test")
        bus.connect()
        shown = node.ask("/connz?auth=true")["connections"]
        assert [one.get("tls_version") for one in shown] == ["1.3"]
        bus.close()


# -- through a bridge ----------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[2] / "docs" / "nats.md"


def printed_permissions() -> str:
    """The block of docs/nats.md, for subjects of the tests."""
    found = re.search(
        r"### Least privilege.*?```\nauthorization \{\n(.*?)\n\}\n```", DOCUMENT.read_text(), re.S
    )
    assert found
    return found[1].replace("orders.>", "usage.>").replace("$BRIDGE_PASSWORD", json.dumps(SECRET))


@pytest.mark.security(21)
def test_the_printed_permissions_are_enough_and_no_more(world: World, tmp_path: Path) -> None:
    administrator = f'{{ user: admin, password: "{SECRET}-admin" }},'
    block = printed_permissions().replace("users: [", f"users: [ {administrator}")
    with NatsNode(tmp_path / "nats", NatsOptions(authorization=block)) as node:
        log = Log(node, settings(node, user="admin", password=f"{SECRET}-admin"))
        publishing(
            world, node.url, {"subject": "usage.{{ event.metric }}"}, user="bridge", password="${PASSWORD}"
        )
        world.environment["PASSWORD"] = SECRET
        bridge = world.bridge(PASSWORD=SECRET).start()
        with world.producer() as producer:
            producer.transaction(1)
            halted = bridge.wait_log("halted")
            assert "no JetStream stream takes it" in halted, "it may ask which streams there are"
            log.stream()
            world.law()
        assert log.count() >= 1
        own = Bus(settings(node, user="bridge", password=SECRET), "test")
        own.connect()
        for subject in ("orders.placed", "$JS.API.STREAM.DELETE.USAGE", "$JS.API.STREAM.PURGE.USAGE"):
            with pytest.raises(Halt, match="may not publish to"):
                own.call(
                    lambda js, to=subject: js._nc.request(to, b"", timeout=5), doing="try", subject=subject
                )
        own.close()
        log.close()
        assert SECRET not in "\n".join(bridge.lines)


@pytest.mark.slow
@pytest.mark.security(9, 21)
def test_a_rotated_password_counts_from_the_next_login_on(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first")
    with NatsNode(tmp_path / "nats", NatsOptions(authorization='user: bridge, password: "first"')) as node:
        log = Log(node, settings(node, user="bridge", password="first"))
        log.stream()
        publishing(world, node.url, user="bridge", password=f"${{file:{secret}}}")
        bridge = world.bridge().start()
        bridge.wait_log("streaming")
        with world.producer() as producer:
            producer.transaction(1)
            world.caught_up()
            secret.write_text("second")
            node.options.authorization = 'user: bridge, password: "second"'
            node.reload()
            log.bus.use(settings(node, user="bridge", password="second"))
            producer.transaction(1)
            world.law()
        log.close()


@pytest.mark.slow
@pytest.mark.security(21)
def test_a_bridge_publishes_over_tls_with_a_client_certificate(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    cert, key = authority.certificate("client", "bridge")
    files = {"ca": str(authority.file), "cert": str(cert), "key": str(key)}
    with NatsNode(tmp_path / "nats", tls_options(authority, verify=True)) as node:
        log = Log(node, settings(node, tls=BusTls(**files)))
        log.stream()
        publishing(world, node.url, tls=files)
        world.bridge().start()
        with world.producer() as producer:
            producer.transaction(3)
            world.law()
        assert log.count() >= 3
        log.close()
