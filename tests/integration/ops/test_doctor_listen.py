"""Doctor beside whoever listens already: this bridge, another bridge, another program."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.doctor import listen
from bridge.doctor.check import Check
from bridge.quantity import Listen
from tests.integration.ops.conftest import speaking
from tests.security.certificates import Authority
from tests.support.bridge_process import BridgeProcess
from tests.support.servers import free_port
from tests.support.variants import first_fast
from tests.support.world import World, until

OURS = "1-00000000000000ab"
OURS_OF_ANOTHER_SLOT = "1-00000000000000cd"
OF_A_LATER_VERSION = "2-00000000000000ab"
KEY = "0123456789abcdef"

Starts = Callable[..., BridgeProcess]


def _has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


IPV6 = ["[::1]", "[::]"] if _has_ipv6() else []


def looked(host: str, port: int) -> Check:
    """The check, where OURS is the instance that the configuration describes; never an address twice."""
    [check] = listen.listens("admin.listen", Listen(host, port), OURS)
    assert (check.where, check.check) == ("bridge", "admin.listen")
    assert check.message.count(str(Listen(host, port))) == 1
    assert host not in check.fix
    return check


def answering(*headers: str, status: str = "200 OK", body: str = "ok\n") -> Callable[[socket.socket], None]:
    """An HTTP server that gives every request the same answer."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", body]

    def answer(link: socket.socket) -> None:
        assert KEY not in link.recv(65536).decode()
        link.sendall("\r\n".join(lines).encode())

    return answer


def instance(name: str) -> Callable[[socket.socket], None]:
    return answering(f"outbox-bridge-instance: {name}")


@pytest.fixture
def bridge(world: World) -> Starts:
    """Starts `bridge run` with the configuration and the environment as they are now; it streams when this returns."""

    def start() -> BridgeProcess:
        process = world.bridge(**world.environment).start()
        process.wait_log("streaming")
        return process

    return start


def with_ingress(world: World, host: str = "127.0.0.1", **more: object) -> Listen:
    at = Listen(host.strip("[]"), free_port())
    keys = "".join(f", {name}: {value}" for name, value in more.items())
    world.text += f'ingress: {{ listen: "{at}", api_keys: [{KEY}]{keys} }}\n'
    return at


def said(world: World, key: str, code: int = 0) -> str:
    [check] = [one for one in world.json("doctor", code=code)["checks"] if one["check"] == key]
    return f"{check['level']}: {check['message']}"


@pytest.mark.parametrize("host", first_fast("127.0.0.1", "localhost", "0.0.0.0", *IPV6))
def test_beside_the_bridge_it_describes_doctor_finds_nothing(world: World, bridge: Starts, host: str) -> None:
    """Wherever both of its servers listen, and though both ask for secrets."""
    at = with_ingress(world, host)
    admin = Listen(host.strip("[]"), free_port())
    world.environment["BRIDGE_ADMIN"] = str(admin)
    world.text = world.text.replace("admin: { ", f"admin: {{ token: {KEY}, ")
    assert said(world, "admin.listen") == f"ok: {admin} is free"
    assert said(world, "ingress.listen") == f"ok: {at} is free"
    running = bridge()
    assert said(world, "admin.listen") == f"ok: this bridge runs and answers on {admin}"
    assert said(world, "ingress.listen") == f"ok: this bridge runs and answers on {at}"
    running.terminate()
    until(lambda: said(world, "ingress.listen") == f"ok: {at} is free", "the port is free")


def test_a_change_that_the_bridge_has_not_read_yet_does_not_make_it_another(
    world: World, bridge: Starts
) -> None:
    at = with_ingress(world)
    bridge()
    world.text = world.text.replace("  capture: slot\n", "  capture: slot\n  retention: 1d\n", 1)
    world.text = world.text.replace("api_keys: [", "max_payload: 1KiB, api_keys: [another, ")
    assert said(world, "ingress.listen") == f"ok: this bridge runs and answers on {at}"


def test_a_bridge_with_more_requests_than_it_takes_is_known_all_the_same(
    world: World, bridge: Starts
) -> None:
    at = with_ingress(world, max_connections=1)  # doctor's own is one too many
    bridge()
    assert said(world, "ingress.listen") == f"ok: this bridge runs and answers on {at}"


def test_the_bridge_of_another_configuration_is_an_error(world: World, bridge: Starts) -> None:
    at = with_ingress(world)
    bridge()
    world.text = world.text.replace("  capture: slot\n", "  capture: slot\n  slot: second\n", 1)
    told = f"error: another bridge answers on {at}, with another source or slot"
    assert said(world, "ingress.listen", code=1) == told
    assert said(world, "admin.listen", code=1).startswith("error: another bridge answers on ")


def test_a_database_where_the_bridge_would_listen_is_another_program(world: World) -> None:
    at = Listen("127.0.0.1", int(world.source.value("show port")))
    world.environment["BRIDGE_ADMIN"] = str(at)
    world.text += f'ingress: {{ listen: "{at}", api_keys: [{KEY}] }}\n'
    for key in ("admin.listen", "ingress.listen"):
        assert said(world, key, code=1).startswith("error: ")
    assert f"ss -ltnp 'sport = :{at.port}'" in world.command("doctor", code=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", *(host.strip("[]") for host in IPV6)])
@pytest.mark.parametrize(
    ("name", "level", "message"),
    [
        (OURS, "ok", "this bridge runs and answers on {}"),
        (OURS_OF_ANOTHER_SLOT, "error", "another bridge answers on {}, with another source or slot"),
        (OF_A_LATER_VERSION, "warn", "a bridge of another version answers on {}: it is unknown whose it is"),
        ("", "error", "another program listens on {}"),
    ],
    ids=["this", "another", "another version", "a program"],
)
def test_who_answers_is_known_by_what_it_says_of_itself(
    host: str, name: str, level: str, message: str
) -> None:
    where = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)
    with speaking(instance(name) if name else answering(), where) as port:
        check = looked(host, port)
    assert (check.level, check.message) == (level, message.format(Listen(host, port)))


def test_whatever_else_answers_is_no_bridge() -> None:
    """Not even one that answers as a health check does, or that says so in another header."""
    for answer in (
        answering(),
        answering("server: outbox-bridge", status="401 Unauthorized", body='{"openapi": "3.1.0"}'),
        answering("location: /livez", status="302 Found"),
        lambda link: link.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"),
        lambda link: link.sendall(b"\0" * 100_000),
    ):
        with speaking(answer) as port:
            check = looked("127.0.0.1", port)
        assert check.level == "error"
        assert check.fix.endswith(f"find who listens there: ss -ltnp 'sport = :{port}'")


def test_a_server_that_hangs_up_or_says_nothing_is_told_as_such() -> None:
    with speaking(lambda link: link.recv(65536) and None) as port:
        assert looked("127.0.0.1", port).message.startswith(
            f"127.0.0.1:{port} is in use, and its connections are closed"
        )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        check = looked("127.0.0.1", port)
    assert (
        check.message
        == f"127.0.0.1:{port} is in use, and the program that listens there does not answer within 2 s"
    )
    assert check.level == "error"


def test_a_server_that_speaks_tls_is_another_program(tmp_path: Path) -> None:
    """The bridge has none: where TLS answers, a proxy has its place."""
    certificate, key = Authority(tmp_path).certificate("proxy", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def answer(link: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(link, server_side=True):
            pass

    with speaking(answer) as port:
        assert looked("127.0.0.1", port).level == "error"


def test_a_port_of_another_address_of_this_machine_is_told_as_such() -> None:
    with speaking(instance(OURS), "127.0.0.2") as port:
        check = looked("0.0.0.0", port)
    assert check.level == "error"
    assert check.message == (
        f"0.0.0.0:{port} overlaps an address of this machine where another program listens on port {port}"
    )


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "Cannot assign requested address"), ("no.such.invalid", "")],
)
def test_an_address_that_this_machine_does_not_have_is_nobodys(host: str, reason: str) -> None:
    """Nobody is asked there: it would be another machine."""
    check = looked(host, 8377)
    assert check.level == "error"
    assert check.message.startswith(f"cannot listen on {host}:8377: {reason}")
    assert "Unknown error" not in check.message
    assert (
        check.fix == "choose another address in `admin.listen`: one that this machine has (ip -brief address)"
    )
