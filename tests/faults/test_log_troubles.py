"""A log that is away, full, closed, off, foreign or damaged: said clearly, nothing lost, and it goes on when mended."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings
from tests.support.bridge_process import BridgeProcess
from tests.support.nats import NatsNode, NatsOptions
from tests.support.over_log import over_log, part
from tests.support.world import World, until

pytestmark = pytest.mark.timeout(240)
RELAY = "outbox_bridge_bus"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NatsNode]:
    with NatsNode(tmp_path) as made:
        yield made


@contextlib.contextmanager
def at(node: NatsNode) -> Iterator[Bus]:
    """A connection of the person who looks after the log."""
    bus = Bus(BusSettings("bus", (node.url,)), "test")
    bus.connect()
    try:
        yield bus
    finally:
        bus.close()


def publish(node: NatsNode, subject: str, data: bytes) -> None:
    with at(node) as bus:
        bus.call(lambda js: js.publish(subject, data), doing=f"publish to {subject}")


def large(size: int) -> dict[str, Any]:
    """An event of so many bytes."""
    known = {"customer_id": "cus_1", "metric": "seats", "limit": 1000, "used": 990, "plan": "scale"}
    return {**known, "note": "x" * size}


def said(bridge: BridgeProcess, reason: str) -> dict[str, Any]:
    """Its log's line about it, which has a fix."""
    line: dict[str, Any] = json.loads(bridge.wait_log(f'"reason":"{reason}"', 60))
    assert line["fix"]
    return line


def running(world: World) -> BridgeProcess:
    made = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
    until(lambda: streaming(world), "all partitions stream")
    return made


def streaming(world: World) -> bool:
    return world.target.value("select count(*) from bridge.checkpoint where mode = 'stream'") == 3


@pytest.mark.slow
def test_a_log_that_is_away_is_told_and_comes_back(world: World, node: NatsNode) -> None:
    over_log(world, node)
    bridge = running(world)
    node.stop()
    with world.producer() as producer:
        producer.transaction(10)
        said(bridge, "bus_away")
        until(lambda: bridge.get("/readyz")[0] == 503, "it is not ready", 60)
        told = world.json("status", code=1)
        assert told["problems"]
        assert all(one["hint"] for one in told["problems"])
        assert world.json("scale", "status", code=1)["problems"]
        node.start()
        bridge.wait_ready(deadline=60)
        world.caught_up(deadline=60)
    world.law()


def test_a_log_that_is_away_when_all_begins_is_waited_for(world: World, tmp_path: Path) -> None:
    node = NatsNode(tmp_path)
    over_log(world, node)
    bridge = world.bridge().start()
    line = said(bridge, "cannot_connect")
    assert "nothing listens there" in line["message"]
    with world.producer() as producer, node:
        producer.transaction(5)
        bridge.wait_ready(deadline=60)
        world.caught_up(deadline=60)
        world.law()


def test_without_jetstream_the_missing_line_is_named(world: World, tmp_path: Path) -> None:
    with NatsNode(tmp_path, NatsOptions(jetstream=False)) as node:
        over_log(world, node)
        bridge = world.bridge().start()
        line = said(bridge, "bus_refused")
        assert "jetstream {" in line["fix"]
        assert "JetStream is not enabled" in world.run("doctor").stdout
        node.options.jetstream = True
        with world.producer() as producer:
            producer.transaction(5)
            node.restart()
            bridge.wait_ready(deadline=60)
            world.caught_up(deadline=60)
        world.law()


@pytest.mark.slow
def test_a_wrong_password_is_told_and_its_correction_is_used(world: World, tmp_path: Path) -> None:
    login = 'user: bridge, password: "right"'
    with NatsNode(tmp_path, NatsOptions(authorization=login)) as node:
        over_log(world, node, user="bridge", password="wrong")
        bridge = world.bridge().start()
        line = said(bridge, "cannot_connect")
        assert "password of user bridge" in line["message"]
        assert "wrong" not in line["message"]
        assert bridge.terminate() == 0
        over_log(world, node, user="bridge", password="right")
        world.bridge().start().wait_ready()
        with world.producer() as producer:
            producer.transaction(5)
            world.caught_up()
        world.law()


def test_a_log_of_another_source_is_left_alone(world: World, node: NatsNode) -> None:
    over_log(world, node)

    async def make(js: Any) -> None:
        await js.add_stream(
            name=RELAY, subjects=[f"{RELAY}.frames.*"], metadata={"outbox_bridge_source": "7/another"}
        )

    with at(node) as bus:
        bus.call(make, doing="make a stream")
    publish(node, f"{RELAY}.frames.1", b"theirs")
    bridge = world.bridge().start()
    line = said(bridge, "log_taken")
    assert "7/another" in line["message"]
    with at(node) as bus:
        assert bus.call(lambda js: js.stream_info(RELAY), doing="look").state.messages == 1
        bus.call(lambda js: js.delete_stream(RELAY), doing="remove it")
    with world.producer() as producer:
        producer.transaction(5)
        bridge.wait_ready(deadline=60)
        world.caught_up()
    world.law()


def test_what_is_no_frame_is_passed_over(world: World, node: NatsNode) -> None:
    over_log(world, node)
    bridge = running(world)
    with world.producer() as producer:
        for number in (1, 2, 3):
            publish(node, f"{RELAY}.frames.{number}", b"garbage")
            publish(node, f"{RELAY}.frames.{number}", b"OBF1" + bytes(40))
        bridge.wait_log("bad frame")
        producer.transaction(20)
        world.caught_up()
    assert 'reason="bad_frame"' in bridge.get("/metrics")[1]
    world.law()


@pytest.mark.slow
def test_frames_of_another_release_stop_the_workers_until_they_are_gone(world: World, node: NatsNode) -> None:
    over_log(world, node)
    bridge = running(world)
    for number in (1, 2, 3):
        publish(node, f"{RELAY}.frames.{number}", b"OBF9" + bytes(40))
    line = said(bridge, "log_version")
    assert "format 9" in line["message"]
    until(lambda: bridge.get("/readyz")[0] == 503, "it is not ready")
    with world.producer() as producer:
        producer.transaction(5)
        with at(node) as bus:
            bus.call(lambda js: js.purge_stream(RELAY), doing="purge it")
        bridge.wait_ready(deadline=60)
        world.caught_up(deadline=60)
    world.law()


@pytest.mark.slow
def test_an_event_larger_than_a_message_goes_in_slices(world: World, tmp_path: Path) -> None:
    with NatsNode(tmp_path, NatsOptions(max_payload="1MB")) as node:
        over_log(world, node)
        running(world)
        with world.producer() as producer:
            producer.transaction(payloads=[large(3 << 20)])
            producer.transaction(3)
            world.caught_up(deadline=60)
        world.law()
        assert world.dead_letters() == []


@pytest.mark.slow
def test_a_full_log_makes_the_relay_wait(world: World, node: NatsNode) -> None:
    over_log(world, node)
    world.configure(lambda document: document["scale"].update(log_size="16MiB"))
    running(world).terminate()
    relay = part(world, "relay")
    relay.wait_ready()
    with world.producer() as producer:
        for _ in range(12):
            producer.transaction(payloads=[large(2 << 20)])
        line = said(relay, "bus_full")
        assert "full" in line["message"]
        until(lambda: relay.get("/readyz")[0] == 503, "it is not ready", 60)
        part(world, "worker").wait_ready()
        relay.wait_ready(deadline=90)
        world.caught_up(deadline=90)
    world.law()


def test_doctor_compares_the_log_with_the_file(world: World, node: NatsNode) -> None:
    over_log(world, node)
    assert "has not begun: bridge relay" in world.command("doctor")
    running(world)
    told = world.command("doctor")
    assert "3 of 3 partitions are registered" in told
    assert f"ok     bus: log: stream {RELAY}" in told
    assert "slot: outbox_bridge_bus_1 is active" in told

    async def spoil(js: Any) -> None:
        config = (await js.stream_info(RELAY)).config
        config.max_bytes, config.max_age = 32 << 20, 3600.0
        await js.update_stream(config)

    with at(node) as bus:
        bus.call(spoil, doing="change the stream")
    told = world.command("doctor")
    assert f"nats stream edit {RELAY} --max-age 0" in told
    assert f"nats stream edit {RELAY} --max-bytes {64 << 20}" in told
    over_log(world, node, partitions=5)
    told = world.command("doctor", code=1)
    assert "partitions_differ" in told
    assert "bridge scale repartition" in told
