"""Several bridges with one file divide its streams: they join, die, freeze and leave, under load."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from typing import Any

import pytest
from psycopg import sql

from tests.support import truth
from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Traffic
from tests.support.proxy import FaultProxy
from tests.support.receiver import Receiver, Reply
from tests.support.truth import Unit
from tests.support.world import World, until

pytestmark = pytest.mark.timeout(300)

NAMES = ("warehouse", "two", "three", "four")
STREAMS = {f"outbox_bridge_{name}" for name in NAMES}
UNITS = (Unit(), *(Unit(f"usage-{name}", name, table=f"events.usage_{name}") for name in NAMES[1:]))


def several(world: World, **scale: Any) -> None:
    """Four streams: each fills a table of its own, in one database."""
    for name in NAMES[1:]:
        table = sql.Identifier("events", f"usage_{name}")
        with world.target.connect() as connection:
            connection.execute(
                sql.SQL("create table {} (like events.usage_limits including all)").format(table)
            )
            connection.execute(sql.SQL("grant select, insert, update on {} to outbox_bridge").format(table))
            truth.watch(connection, f"events.usage_{name}")

    def change(document: dict[str, Any]) -> None:
        document["scale"] = {"share": True, **scale}
        pipeline = document["pipelines"]["usage-limit-hits"]
        for name in NAMES[1:]:
            document["connections"][name] = document["connections"]["warehouse"]
            events = {
                **pipeline["destinations"]["events"],
                "connection": name,
                "table": f"events.usage_{name}",
            }
            document["pipelines"][f"usage-{name}"] = {**pipeline, "destinations": {name: events}}

    world.configure(change)


def status(bridge: BridgeProcess) -> dict[str, Any]:
    code, text = bridge.get("/status")
    found: dict[str, Any] = json.loads(text) if code == 200 else {"shared": None, "streams": []}
    return found


def shared(bridge: BridgeProcess) -> dict[int, set[str]]:
    """Who runs what, as this bridge sees it: pid to streams."""
    picture = status(bridge)["shared"] or {"members": []}
    return {one["pid"]: set(one["streams"]) for one in picture["members"]}


def agreed(*bridges: BridgeProcess, streams: set[str] = STREAMS, deadline: float = 20.0) -> list[set[str]]:
    """Wait until these bridges see each other, every stream runs and the split is fair; what each runs."""

    def fair() -> list[set[str]]:
        seen = shared(bridges[0])
        if seen.keys() != {bridge.pid for bridge in bridges} or any(shared(one) != seen for one in bridges):
            return []
        loads = sorted(map(len, seen.values()))
        if set().union(*seen.values()) != streams or loads[-1] - loads[0] > 1:
            return []
        running = [{one["stream"] for one in status(bridge)["streams"]} for bridge in bridges]
        return running if running == [seen[bridge.pid] for bridge in bridges] else []

    found: list[set[str]] = until(fair, "a fair split", deadline)
    return found


def laws(world: World) -> None:
    """Of each stream; world.law() also compares the one stream's slot."""
    for unit in UNITS:
        world.caught_up(unit)
        verdict = truth.conservation(world.source.dsn, world.target.dsn, unit)
        assert verdict.holds, f"{verdict}\n{world.log_tails()}"


def told(bridge: BridgeProcess, event: str, stream: str) -> float:
    """When it said so last, unix seconds."""
    at = [
        one["time"]
        for one in bridge.logs
        if one.get("stream") == stream and event in (one["event"], one.get("phase"))
    ]
    return datetime.fromisoformat(at[-1]).timestamp()


def keep(document: dict[str, Any], *names: str) -> None:
    """Only these streams."""
    for name in set(NAMES[1:]) - set(names):
        del document["connections"][name], document["pipelines"][f"usage-{name}"]


def test_a_bridge_joins_leaves_dies_and_the_streams_go_on(world: World) -> None:
    several(world)
    first, second, third = world.bridge(), world.bridge(), world.bridge()
    first.start().wait_ready()
    assert agreed(first) == [STREAMS]
    with Traffic(world.source.dsn, producers=1, burst=50):
        second.start().wait_ready()
        assert sorted(map(len, agreed(first, second))) == [2, 2]
        third.start().wait_ready()
        assert sorted(map(len, agreed(first, second, third))) == [1, 1, 2]

        said = world.command("status")
        assert "3 bridges share this file" in said
        for bridge in (first, second, third):
            assert f"pid {bridge.pid}" in said
        page = second.get("/")[1]
        assert all(f"pid {bridge.pid}" in page for bridge in (first, second, third))
        metrics = second.get("/metrics")[1]
        assert "outbox_bridge_members 3.0" in metrics
        assert "outbox_bridge_streams_free 0.0" in metrics

        third.kill()
        began = time.monotonic()
        agreed(first, second)
        killed = time.monotonic() - began
        its = shared(second)[second.pid]
        assert second.terminate() == 0, second.log_tail()
        agreed(first)
        until(lambda: {one["phase"] for one in status(first)["streams"]} == {"streaming"}, "all stream")
        gaps = [told(first, "streaming", stream) - told(second, "stopped", stream) for stream in its]
        print(f"killed: {killed:.1f} s, handed over: {', '.join(f'{gap:.1f} s' for gap in gaps)}")
    laws(world)

    # Without a bridge: nobody runs anything.
    assert first.terminate() == 0, first.log_tail()
    assert set(world.json("status", code=1)["shared"]["free"]) == STREAMS


def test_a_frozen_bridge_is_replaced_and_writes_nothing_on_waking(world: World) -> None:
    several(world)
    frozen, other = world.bridge(), world.bridge()
    frozen.start().wait_ready()
    other.start().wait_ready()
    agreed(frozen, other)
    with Traffic(world.source.dsn, producers=1, burst=50) as traffic:
        before = traffic.transactions
        until(lambda: traffic.transactions > before + 20, "traffic")
        began = time.monotonic()
        frozen.pause()
        until(lambda: shared(other) == {other.pid: STREAMS}, "it takes over")
        claimed = time.monotonic() - began
        until(lambda: {one["phase"] for one in status(other)["streams"]} == {"streaming"}, "all stream")
        until(lambda: len(status(other)["streams"]) == 4, "all run")
        print(f"claimed after {claimed:.1f} s, streaming after {time.monotonic() - began:.1f} s")
        until(lambda: traffic.transactions > before + 60, "traffic")
        frozen.resume()
        agreed(frozen, other)  # it is a member again, and has not ended
    laws(world)


def test_limits_choices_and_a_lost_session(world: World) -> None:
    several(world, max_streams=1)
    first = world.bridge()
    first.start().wait_ready()
    second = world.bridge()
    second.arguments = ("--stream", "outbox_bridge_two")
    second.start().wait_ready()
    third = world.bridge()
    third.start().wait_ready()

    # Three bridges of one stream each: the fourth is said to be nobody's, with what to do.
    until(lambda: sorted(map(len, shared(first).values())) == [1, 1, 1], "one each")
    until(lambda: shared(first)[second.pid] == {"outbox_bridge_two"}, "the one that it was told")
    body = first.wait_halted("stream_unclaimed")
    (free,) = status(first)["shared"]["free"]
    assert f"no bridge takes {free}" in body

    # Without the limit, after a reload.
    world.configure(lambda document: document["scale"].pop("max_streams"))
    for bridge in (first, second, third):
        bridge.signal(signal.SIGHUP)
    running = agreed(first, second, third)
    assert running[1] == {"outbox_bridge_two"}
    first.wait_ready()

    # A session that somebody ends costs its bridge the streams for a moment, and nothing else.
    with world.producer() as producer:
        producer.transaction(5)
        world.target.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where starts_with(application_name, 'bridge-share/')"
        )
        producer.transaction(5)
        agreed(first, second, third)
    laws(world)

    # More bridges than streams: one that has none is ready. What runs where is also told without a bridge here.
    world.configure(lambda document: keep(document, "warehouse", "two"))
    for bridge in (first, second, third):
        bridge.signal(signal.SIGHUP)
    kept = {"outbox_bridge_warehouse", "outbox_bridge_two"}
    assert sorted(map(len, agreed(first, second, third, streams=kept))) == [0, 1, 1]
    idle = next(bridge for bridge in (first, second, third) if not shared(first)[bridge.pid])
    assert idle.get("/readyz")[0] == 200
    for bridge in (first, second, third):
        if bridge is not idle:
            assert bridge.terminate() == 0, bridge.log_tail()
    if idle is second:
        assert until(lambda: shared(second) == {second.pid: {"outbox_bridge_two"}}, "what it was given")
    else:
        agreed(idle, streams=kept)
    ran = world.run("run", "--stream", "outbox_bridge_tow")
    assert ran.returncode == 2
    assert "did you mean outbox_bridge_two?" in ran.stderr


def test_a_bridge_that_cannot_reach_the_source_leaves_it_to_others(
    world: World, proxy_to: Callable[[str], FaultProxy]
) -> None:
    """Its target answers, so its claims stay; and the one that it leaves them to keeps them while it is cut off."""
    several(world)
    link = proxy_to(world.source.bridge_dsn)
    cut, other = world.bridge(), world.bridge()
    cut.environment["SOURCE_DSN"] = link.dsn
    cut.start().wait_ready()
    other.start().wait_ready()
    agreed(cut, other)
    with Traffic(world.source.dsn, producers=1, burst=50) as traffic:
        link.refuse()
        link.reset_all()
        until(lambda: shared(other)[other.pid] == STREAMS, "the other has all streams", 60)
        until(lambda: {one["phase"] for one in status(other)["streams"]} == {"streaming"}, "all stream")
        before = traffic.transactions
        until(lambda: traffic.transactions > before + 60, "traffic")
        # Where this machine is so busy that one of them was silent for a while, they had to settle once more.
        until(lambda: shared(other)[other.pid] == STREAMS, "the other still has all streams", 60)
        link.clear()
        agreed(cut, other, deadline=60)  # it has its share again
    laws(world)


def test_messages_are_sent_wherever_their_stream_runs(world: World) -> None:
    """Lanes move with their streams: with a bridge that leaves, one that is killed and one that joins, nothing is
    forgotten, and what is sent again has the id that it had."""
    several(world)
    with closing(Receiver()) as receiver:
        receiver.decide = lambda _: Reply(after=0.02)  # so that some wait, whenever a stream moves

        def change(document: dict[str, Any]) -> None:
            for name in NAMES:
                document["connections"][f"hook_{name}"] = {
                    "type": "webhook",
                    "url": f"{receiver.url}/{name}",
                    "allow": ["127.0.0.0/8"],
                    "secret": f"whsec_{'QQ' * 16}",
                }
                pipeline = "usage-limit-hits" if name == "warehouse" else f"usage-{name}"
                document["pipelines"][pipeline]["destinations"]["told"] = {"connection": f"hook_{name}"}

        world.configure(change)
        first, second, third = world.bridge(), world.bridge(), world.bridge()
        first.start().wait_ready()
        second.start().wait_ready()
        agreed(first, second)
        with Traffic(world.source.dsn, producers=1, burst=5) as traffic:
            _go_on(traffic, 10)
            second.kill()
            agreed(first)
            _go_on(traffic, 10)
            third.start().wait_ready()
            agreed(first, third)
            _go_on(traffic, 10)
            assert first.terminate() == 0, first.log_tail()
            agreed(third)
        events = world.source.value("select count(*) from rig.truth where type = 'usage.limit_reached'")

        def told() -> dict[str, Counter[str]]:
            found: dict[str, Counter[str]] = defaultdict(Counter)
            for request in receiver.requests:
                found[request.path].update([request.identity])
            return found

        until(lambda: [len(ids) for ids in told().values()] == [events] * 4, "every message", 120)
        again = sum(times - 1 for ids in told().values() for times in ids.values())
        print(f"{events} events, {4 * events} messages, {again} sent again")
    laws(world)


def _go_on(traffic: Traffic, transactions: int) -> None:
    before = traffic.transactions
    until(lambda: traffic.transactions > before + transactions, "traffic")
