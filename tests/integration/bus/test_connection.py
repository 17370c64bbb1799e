"""The connection to NATS, on real servers: what it does when one is away, slow, full, or refuses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings
from bridge.errors import BridgeError, CannotConnect, Halt, Retry, Verdict
from tests.support.nats import NatsCluster, NatsNode, NatsOptions, permissions
from tests.support.servers import free_port
from tests.support.world import until


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsNode]:
    with NatsNode(tmp_path_factory.mktemp("nats")) as node:
        yield node


def settings(*servers: str, **others: object) -> BusSettings:
    return BusSettings("bus", servers, **others)  # type: ignore[arg-type]


def stream(bus: Bus, name: str, **limits: object) -> None:
    bus.call(
        lambda js: js.add_stream(name=name, subjects=[f"{name}.>"], **limits), doing=f"make stream {name}"
    )


def publish(bus: Bus, subject: str, payload: bytes = b"x", timeout: float = 10.0) -> int:
    ack = bus.call(
        lambda js: js.publish(subject, payload),
        doing=f"publish to {subject}",
        subject=subject,
        timeout=timeout,
    )
    return int(ack.seq)


def refused(bus: Bus, subject: str, payload: bytes = b"x", timeout: float = 10.0) -> BridgeError:
    with pytest.raises(BridgeError) as error:
        publish(bus, subject, payload, timeout)
    return error.value


@pytest.mark.slow
def test_calls_from_several_threads_are_answered(node: NatsNode) -> None:
    bus = Bus(settings(node.url), "test")
    bus.connect()
    try:
        assert bus.connected
        assert bus.server == f"127.0.0.1:{node.port}"
        assert bus.max_payload == 4_000_000 or bus.max_payload == 4 * 2**20
        stream(bus, "threads")
        threads = [threading.Thread(target=publish, args=(bus, f"threads.{n}")) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = bus.call(lambda js: js.stream_info("threads"), doing="look")
        assert found.state.messages == 8
    finally:
        bus.close()
    assert not bus.connected
    with pytest.raises(Retry, match="not connected"):
        publish(bus, "threads.9")


def test_a_refused_port_says_what_to_start() -> None:
    bus = Bus(settings(f"nats://127.0.0.1:{free_port()}"), "test")
    with pytest.raises(CannotConnect) as error:
        bus.connect(2)
    assert "nothing listens there" in str(error.value)
    assert "nats-server -c FILE" in error.value.hint
    bus.close()


def test_a_name_that_does_not_resolve_is_named() -> None:
    bus = Bus(settings("nats://no-such-host.invalid:4222"), "test")
    with pytest.raises(CannotConnect, match="does not resolve") as error:
        bus.connect(5)
    assert "getent hosts no-such-host.invalid" in error.value.hint
    bus.close()


def test_the_next_server_is_tried_when_one_is_away(node: NatsNode) -> None:
    for _ in range(4):  # the order is random
        bus = Bus(settings(f"nats://127.0.0.1:{free_port()}", node.url), "test")
        bus.connect()
        assert bus.server == f"127.0.0.1:{node.port}"
        bus.close()


@pytest.mark.slow
def test_a_frozen_server_is_no_answer(tmp_path: Path) -> None:
    with NatsNode(tmp_path) as own:
        own.freeze()
        bus = Bus(settings(own.url), "test")
        with pytest.raises(CannotConnect, match="no answer"):
            bus.connect(1)
        bus.close()
        own.thaw()


def test_something_else_that_answers_is_not_nats(node: NatsNode) -> None:
    bus = Bus(settings(f"nats://127.0.0.1:{node.monitor_port}"), "test")
    with pytest.raises(CannotConnect) as error:
        bus.connect(3)
    assert "is not NATS" in str(error.value) or "no answer" in str(error.value)
    bus.close()


def test_a_lost_server_comes_back_and_is_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    with NatsNode(tmp_path) as own:
        bus = Bus(
            settings(own.url),
            "test",
            on_lost=lambda: said.append("lost"),
            on_back=lambda: said.append("back"),
        )
        bus.connect()
        stream(bus, "orders")
        publish(bus, "orders.a")
        own.kill()
        until(lambda: said == ["lost"], "the loss was told of")
        assert refused(bus, "orders.a", timeout=1).verdict is Verdict.RETRY
        own.start()
        until(lambda: said == ["lost", "back"], "the return was told of")
        publish(bus, "orders.b")
        bus.close()


def test_without_jetstream_the_block_to_add_is_said(tmp_path: Path) -> None:
    with NatsNode(tmp_path, NatsOptions(jetstream=False)) as own:
        bus = Bus(settings(own.url), "test")
        bus.connect()
        with pytest.raises(Halt, match="JetStream is not enabled on the server") as error:
            bus.check_jetstream()
        assert "jetstream { store_dir" in error.value.hint
        bus.close()


def test_a_subject_of_no_stream_is_a_retry_that_says_so(node: NatsNode) -> None:
    bus = Bus(settings(node.url), "test")
    bus.connect()
    error = refused(bus, "nobody.takes.this")
    assert isinstance(error, Retry)
    assert "no stream takes the subject" in str(error)
    bus.close()


def test_a_payload_above_the_limit_names_max_payload(tmp_path: Path) -> None:
    with NatsNode(tmp_path, NatsOptions(max_payload="1KB")) as own:
        bus = Bus(settings(own.url), "test")
        bus.connect()
        stream(bus, "small")
        error = refused(bus, "small.a", b"x" * 5000)
        assert isinstance(error, Halt)
        assert "max_payload" in str(error)
        bus.close()


def test_a_full_stream_is_retried_and_says_what_to_raise(node: NatsNode) -> None:
    bus = Bus(settings(node.url), "test")
    bus.connect()
    stream(bus, "full", max_bytes=2000, discard="new")
    for _ in range(3):
        publish(bus, "full.a", b"x" * 500)
    error = refused(bus, "full.a", b"x" * 900)
    assert (error.verdict, error.reason) == (Verdict.RETRY, "bus_full")
    assert "--max-bytes" in error.hint
    bus.close()


@pytest.mark.slow
def test_a_full_store_is_retried(tmp_path: Path) -> None:
    with NatsNode(tmp_path, NatsOptions(max_file="64KB")) as own:
        bus = Bus(settings(own.url), "test")
        bus.connect()
        stream(bus, "store")
        error: BridgeError | None = None
        for _ in range(200):
            try:
                publish(bus, "store.a", b"x" * 2000)
            except BridgeError as found:
                error = found
                break
        assert error is not None
        assert (error.verdict, error.reason) == (Verdict.RETRY, "bus_full"), error
        bus.close()


@pytest.mark.slow
def test_too_many_replicas_for_one_node_says_the_key(node: NatsNode) -> None:
    bus = Bus(settings(node.url, replicas=3), "test")
    bus.connect()
    with pytest.raises(BridgeError, match="3 replicas need a cluster") as error:
        bus.call(lambda js: js.add_stream(name="r3", subjects=["r3.>"], num_replicas=3), doing="make r3")
    assert "connections.bus.replicas" in error.value.hint
    bus.close()


def test_a_refused_subject_is_named_at_once_with_its_permission(tmp_path: Path) -> None:
    allowed = permissions("relay", "secret", ["orders.>"], ["_INBOX.outbox_bridge.>"])
    with NatsNode(tmp_path, NatsOptions(authorization=allowed)) as own:
        bus = Bus(settings(own.url, user="relay", password="secret"), "test")
        bus.connect()
        error = refused(bus, "Secret.Place", timeout=60)
        assert isinstance(error, Halt)
        assert "user relay may not publish to Secret.Place" in str(error)
        assert 'publish: { allow: ["Secret.Place"] }' in error.hint
        bus.close()


@pytest.mark.slow
def test_a_refused_answer_subject_names_the_inbox(tmp_path: Path) -> None:
    allowed = permissions("relay", "secret", [">"], ["something.else"])
    with NatsNode(tmp_path, NatsOptions(authorization=allowed)) as own:
        bus = Bus(settings(own.url, user="relay", password="secret"), "test")
        bus.connect()
        error = refused(bus, "orders.a", timeout=1)
        assert isinstance(error, Halt)
        assert 'subscribe: { allow: ["_INBOX.outbox_bridge.>"] }' in error.hint
        bus.close()


@pytest.mark.slow
def test_a_session_that_the_server_ends_is_opened_again(tmp_path: Path) -> None:
    said: list[str] = []
    options = NatsOptions(authorization='users: [ { user: relay, password: "one" } ]')
    with NatsNode(tmp_path, options) as own:
        bus = Bus(
            settings(own.url, user="relay", password="one"), "test", on_back=lambda: said.append("back")
        )
        bus.connect()
        own.options.authorization = 'users: [ { user: relay, password: "two" } ]'
        own.reload()
        until(lambda: not bus.connected, "the server ended the session")
        bus.use(settings(own.url, user="relay", password="two"))
        until(lambda: said == ["back"], "it logged in with the new password")
        bus.close()


@pytest.mark.slow
def test_a_cluster_goes_on_when_a_node_is_killed(tmp_path: Path) -> None:
    with NatsCluster(tmp_path) as cluster:
        bus = Bus(settings(cluster.nodes[0].url), "test")  # the others are learned
        bus.connect()
        stream(bus, "orders", num_replicas=3)
        publish(bus, "orders.a")
        cluster.nodes[0].kill()

        def goes_on() -> bool:
            try:
                publish(bus, "orders.b", timeout=3)
            except Retry:
                return False
            return True

        until(goes_on, "another node took over", 60)
        assert bus.server in {f"127.0.0.1:{node.port}" for node in cluster.nodes[1:]}
        bus.close()


@pytest.mark.slow
def test_an_account_without_jetstream_is_told_with_its_line(tmp_path: Path) -> None:
    accounts = 'accounts { APP: { users: [ { user: relay, password: "secret" } ] } }'
    with NatsNode(tmp_path, NatsOptions(extra=accounts)) as own:
        bus = Bus(settings(own.url, user="relay", password="secret"), "test")
        bus.connect()
        with pytest.raises(Halt, match="JetStream is not enabled for this account") as error:
            bus.check_jetstream()
        assert "jetstream: enabled" in error.value.hint
        bus.close()


def test_an_old_server_is_refused_with_the_version_that_is_needed() -> None:
    """No old server is at hand: its greeting, and the two lines of a login."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(
                    b'INFO {"server_id":"x","version":"2.9.25","max_payload":1048576,"headers":true}\r\n'
                )
                heard = b""
                while data := peer.recv(65536):
                    heard += data
                    if heard.endswith(b"PING\r\n"):
                        peer.sendall(b"PONG\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        bus = Bus(settings(f"nats://127.0.0.1:{listener.getsockname()[1]}"), "test")
        with pytest.raises(Halt, match=r"is 2\.9\.25; the bridge needs 2\.10 or newer"):
            bus.connect(5)
        bus.close()
        thread.join(10)


def test_a_call_that_waits_ends_when_the_connection_is_closed(node: NatsNode) -> None:
    bus = Bus(settings(node.url), "test")
    bus.connect()
    waiting = bus.submit(lambda js: asyncio.sleep(60), doing="wait", timeout=60)
    until(lambda: bus.pending == 1, "it waits")
    bus.close()
    with pytest.raises(Retry, match="not connected"):
        waiting.result(20)


@pytest.mark.slow
def test_a_connection_of_no_node_left_says_of_how_many(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    bus = Bus(settings(*(f"nats://127.0.0.1:{port}" for port in ports)), "test")
    with pytest.raises(CannotConnect, match=r"\(and 2 more\)"):
        bus.connect(3)
    bus.close()
