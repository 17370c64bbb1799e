"""What `bridge doctor --network` says of a way that is broken at each of its steps."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from bridge.config.load import load
from bridge.doctor import path
from bridge.doctor.check import Check
from bridge.doctor.examine import examine
from bridge.doctor.reach import way
from tests.integration.ops.conftest import speaking
from tests.security.certificates import Authority
from tests.support.servers import Database
from tests.support.world import World


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which nothing answers: where something does, it may take its time."""
    monkeypatch.setattr(path, "SECONDS", 1.0)


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue is full: the kernel drops what comes, as a firewall does."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(64):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            if not select.select([], [client], [], 0.3)[1]:
                yield server.getsockname()[1]
                return
        raise AssertionError("the queue of a listening socket does not fill up")


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def examined(world: World) -> list[Check]:
    environment = {
        "SOURCE_DSN": world.source.bridge_dsn,
        "WAREHOUSE_DSN": world.target.bridge_dsn,
        **world.environment,
    }
    return list(examine(load(world.config, environment), network=True))


def findings(world: World, where: str) -> list[Check]:
    return [one for one in examined(world) if one.level != "ok" and one.where == where]


def through(database: Database, port: int, **more: str) -> str:
    return make_conninfo(database.bridge_dsn, port=port, **more)


def with_sink(world: World, sink: str) -> None:
    world.text = world.text.replace("connections:", f"connections:\n  hook: {sink}", 1)


@pytest.mark.usefixtures("_impatient")
def test_a_database_behind_a_firewall_is_a_timeout_with_our_address(world: World) -> None:
    with black_hole() as port:
        world.environment["WAREHOUSE_DSN"] = through(world.target, port)
        [finding] = findings(world, "warehouse")
    assert finding.check == "reach_timeout"
    assert finding.unreachable
    assert finding.message == (f"127.0.0.1:{port} cannot be reached: 127.0.0.1: no answer within 1 s")
    assert "allow 127.0.0.1 (or its translated address)" in finding.fix


@pytest.mark.usefixtures("_impatient")
def test_a_silent_server_is_told_from_one_behind_a_firewall(
    world: World,
) -> None:
    with silent() as port:
        world.environment["WAREHOUSE_DSN"] = through(world.target, port, connect_timeout="2")
        checks = [one for one in examined(world) if one.where == "warehouse"]
    assert [one.check for one in checks] == ["addresses", "port", "reach_timeout"]
    assert checks[-1].message == f"cannot connect: no answer from 127.0.0.1:{port} within 2 s"


def test_a_port_that_nobody_listens_on_and_a_name_that_nobody_has(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    world.environment["WAREHOUSE_DSN"] = through(world.target, port)
    [finding] = findings(world, "warehouse")
    assert finding.check == "reach_port"
    assert "Connection refused" in finding.message
    world.environment["WAREHOUSE_DSN"] = make_conninfo(world.target.bridge_dsn, host="no.such.invalid")
    [finding] = findings(world, "warehouse")
    assert finding.check == "reach_name"
    assert finding.message.startswith("no.such.invalid has no address: ")


@pytest.mark.usefixtures("_impatient")
def test_of_several_hosts_one_that_answers_is_enough_and_the_other_a_warning() -> None:
    reached = []

    def walking(dsn: str) -> Iterator[Check]:
        reached.append((yield from way("warehouse", dsn)))

    with silent() as open_port, black_hole() as dropping:
        checks = list(walking(f"host=127.0.0.1,127.0.0.1 port={dropping},{open_port}"))
    assert reached == [True]
    assert [(one.level, one.check) for one in checks if one.check != "addresses"] == [
        ("warn", "reach_timeout"),
        ("ok", "port"),
    ]
    assert not any(one.unreachable for one in checks)


@pytest.mark.usefixtures("_impatient")
def test_a_sink_behind_a_firewall_is_a_time_out_and_its_address_stays_secret(world: World) -> None:
    with black_hole() as port:
        with_sink(world, f'{{ type: slack, webhook_url: "https://127.0.0.1:{port}/canary" }}')
        [finding] = findings(world, "hook")
    assert finding.check == "reach_timeout"
    assert f"127.0.0.1:{port} cannot be reached: 127.0.0.1: no answer within 1 s" in finding.message
    assert "canary" not in repr(finding)


@pytest.mark.usefixtures("_impatient")
def test_a_sink_that_never_answers_tls_is_told(world: World) -> None:
    with silent() as port:
        with_sink(world, f'{{ type: slack, webhook_url: "https://127.0.0.1:{port}/canary" }}')
        [finding] = findings(world, "hook")
    assert finding.check == "reach_tls"
    assert (
        finding.message
        == f"127.0.0.1:{port} accepts the connection but does not answer the TLS handshake within 1 s"
    )


GREETED = "{{ type: email, host: 127.0.0.1, port: {port}, security: starttls, from: a@example.com }}"


def test_a_mail_server_is_one_that_greets(world: World) -> None:
    with speaking(lambda link: link.sendall(b"220 mail.example.com ESMTP\r\n")) as port:
        with_sink(world, GREETED.format(port=port))
        assert findings(world, "hook") == []
        assert "hook: greeting: " in world.command("doctor", "--network")


@pytest.mark.usefixtures("_impatient")
def test_what_takes_connections_and_does_not_greet_is_no_mail_server(world: World) -> None:
    with silent() as port:
        with_sink(world, GREETED.format(port=port))
        [finding] = findings(world, "hook")
    assert finding.check == "reach_greeting"


def test_a_mail_servers_own_authority_is_trusted_and_another_is_not(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.certificate("mail", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def answer(link: socket.socket) -> None:
        try:
            with context.wrap_socket(link, server_side=True) as secured:
                secured.recv(1)
                secured.unwrap()  # says that it ends, as a server does
        except OSError:
            pass  # the client did not like it

    plain = world.text
    with speaking(answer) as port:
        sink = f"type: email, host: localhost, port: {port}, security: tls, from: a@example.com"
        with_sink(world, f"{{ {sink}, ca_file: {authority.file} }}")
        [shaken] = [one for one in examined(world) if one.where == "hook" and one.check == "tls"]
        assert shaken.level == "ok"
        assert shaken.message.startswith("TLSv1.3 with localhost:")
        world.text = plain
        with_sink(world, f"{{ {sink} }}")
        [finding] = [one for one in findings(world, "hook") if one.check != "port"]
        fix = finding.fix.partition("certificate: ")[2]
        assert "CN" in world.typed(fix)
    assert finding.check == "reach_tls"
    assert "certificate" in finding.message


def test_a_webhook_to_a_private_address_is_told_what_to_allow(world: World) -> None:
    with silent() as port:
        sink = f'type: webhook, url: "http://127.0.0.1:{port}/canary", secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'
        plain = world.text
        with_sink(world, f"{{ {sink} }}")
        [finding] = findings(world, "hook")
        assert (finding.check, finding.unreachable) == ("address_refused", False)
        assert finding.fix.endswith("allow: [127.0.0.1]")
        world.text = plain
        with_sink(world, f"{{ {sink}, allow: [127.0.0.1] }}")
        assert findings(world, "hook") == []


@pytest.mark.parametrize(
    ("local", "seen", "says"),
    [
        ("10.0.0.9", "10.0.0.9", "10.0.0.9, also as the server sees us: the address to allow there"),
        (
            "172.17.0.2",
            "203.0.113.9",
            "203.0.113.9 as the server sees us: the address to allow there; 172.17.0.2 on",
        ),
        ("10.0.0.9", None, "10.0.0.9 on this machine; behind address translation (NAT)"),
        ("127.0.0.1", None, "127.0.0.1 on this machine"),
    ],
)
def test_the_address_to_allow_is_the_one_that_the_server_sees(
    local: str, seen: str | None, says: str
) -> None:
    assert path.egress("warehouse", local, seen).message.startswith(says)


def test_an_address_is_told_without_its_interface_and_ipv4_as_ipv4() -> None:
    assert path.plain("::ffff:10.0.0.9") == "10.0.0.9"
    assert path.plain("fe80::1%eth0") == "fe80::1"
