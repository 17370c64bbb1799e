"""A ledger that is divided in another way than bridge.yaml says (scale.partitions): refused, and nothing is applied
twice or lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from bridge.postgres import ledger as ledger_sql
from bridge.postgres.target import BEGIN, COMMIT, TargetLink
from bridge.protocol.facts import SourceIdentity
from tests.support.nats import NatsNode
from tests.support.over_log import over_log, without_log
from tests.support.servers import Database
from tests.support.world import STREAM, World, until

pytestmark = pytest.mark.timeout(180)
PLACE = SourceIdentity("1", "app", 5)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NatsNode]:
    with NatsNode(tmp_path) as made:
        yield made


def refused(world: World) -> None:
    """A bridge halts, and says what changes it."""
    bridge = world.bridge().start()
    halt = json.loads(bridge.wait_log('"reason":"partitions_differ"'))
    assert halt["event"] == "halted"
    assert "bridge scale repartition" in halt["fix"]
    assert bridge.terminate() == 0


def test_a_ledger_of_partitions_is_refused_without_a_log(world: World, node: NatsNode) -> None:
    over_log(world, node)
    world.applied_some(7)
    without_log(world)
    with world.producer() as producer:
        producer.transaction(5)
        refused(world)
        over_log(world, node, partitions=4)
        refused(world)
        over_log(world, node)
        world.bridge().start().wait_ready()
        world.caught_up()
    world.law()


@pytest.mark.slow
def test_a_ledger_without_partitions_is_refused_over_a_log(world: World, node: NatsNode) -> None:
    world.applied_some(7)
    over_log(world, node)
    with world.producer() as producer:
        producer.transaction(5)
        refused(world)
        without_log(world)
        world.bridge().start().wait_ready()
        world.caught_up()
    world.law()
    assert world.target.value("select count(*) from bridge.checkpoint") == 1


@pytest.mark.parametrize("other", [STREAM, f"{STREAM}.1of4"])
def test_two_layouts_that_begin_at_one_time_are_one(target: Database, other: str) -> None:
    """Whichever fence commits first; the other's ledger has no row."""
    names = [f"{STREAM}.1of3", other]

    def begin(name: str, link: TargetLink) -> None:
        link.run_alone(BEGIN, *ledger_sql.fence(name, str(UUID(int=1)), PLACE, None, create=True))

    with (
        closing(TargetLink(target.dsn, "first")) as first,
        closing(TargetLink(target.dsn, "second")) as later,
    ):
        begin(names[0], first)
        second = threading.Thread(target=begin, args=[other, later])
        second.start()
        waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
        until(lambda: not second.is_alive() or target.value(waits), "the second one waits, or has not waited")
        first.run_alone(COMMIT)
        second.join(30)
        later.run_alone(COMMIT)
    rows = target.execute("select stream from bridge.checkpoint")
    assert len(rows) == 1
    with closing(TargetLink(target.dsn, "fence")) as link:
        again = f"{STREAM}.2of3" if rows == [(names[0],)] else other
        *_, fenced, _ = link.run_alone(*ledger_sql.fence(again, str(UUID(int=2)), PLACE, None, create=True))
        assert len(fenced) == 1  # the same layout's next row
        neighbour = f"{STREAM}s.1of4"
        *_, fenced, _ = link.run_alone(
            *ledger_sql.fence(neighbour, str(UUID(int=3)), PLACE, None, create=True)
        )
        assert len(fenced) == 1  # a name that only begins alike
