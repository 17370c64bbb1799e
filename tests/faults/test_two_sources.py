"""Two sources whose streams have one name, and one target: the second learns it before it touches anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from bridge.postgres import ledger as ledger_sql
from bridge.postgres.target import ResultRows, TargetLink
from bridge.protocol.facts import SourceIdentity
from tests.integration.ops.conftest import emit, usage
from tests.integration.sinks.conftest import SECRET
from tests.support.fixes import line_in
from tests.support.receiver import Receiver, Reply
from tests.support.servers import (
    Database,
    EmbeddedServer,
    Servers,
    create_database,
    drop_database,
    template_of,
)
from tests.support.variants import first_fast
from tests.support.world import STREAM, World, make_database, until

pytestmark = pytest.mark.timeout(240)


@contextmanager
def second(world: World, source: Database, directory: Path) -> Iterator[World]:
    """The same configuration for another source."""
    directory.mkdir()
    other = World(source, world.target, directory)
    other.text = world.text
    try:
        yield other
    finally:
        other.close()


@pytest.fixture(params=first_fast("database", "twin"))
def other_source(request: pytest.FixtureRequest, servers: Servers, source: Database) -> Iterator[Database]:
    """Another database of the cluster; or a cluster with the same identifier, as of containers from one image."""
    if request.param == "database":
        made = create_database(source.server, f"{source.name}_2", template_of("source"))
        yield made
        drop_database(made)
        return
    server = servers.private("twin")
    assert isinstance(server, EmbeddedServer)
    yield make_database(server, source.name, "source")
    server.discard()


def with_sink(url: str) -> Any:
    def change(document: dict[str, Any]) -> None:
        hook = {"type": "webhook", "url": url, "allow": ["127.0.0.0/8"], "secret": SECRET}
        document["connections"]["hook"] = hook
        document["pipelines"]["usage-limit-hits"]["destinations"]["told"] = {"connection": "hook"}

    return change


@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
def test_the_second_source_of_a_name_changes_nothing_and_says_why(
    world: World, other_source: Database, tmp_path: Path, capture: str
) -> None:
    source, target = world.source, world.target
    with closing(Receiver()) as receiver, closing(Receiver()) as others:
        world.configure(lambda document: document["source"].update(capture=capture))
        world.configure(with_sink(receiver.url))
        bridge = world.bridge().start().wait_ready()
        emit(source, usage())
        until(lambda: world.applied() == 1 and len(receiver.requests) == 1, "a row and a message")
        with second(world, other_source, tmp_path / "second") as there:
            there.configure(with_sink(others.url))
            before = target.execute("select epoch, session, source_database from bridge.checkpoint")
            assert before[0][2] == source.name
            emit(other_source, usage())
            second_bridge = there.bridge().start()
            second_bridge.wait_halted("stream_name_taken")
            assert "stream_name_taken" in there.command("doctor", code=1)
            said = there.command("status", code=1)
            assert f"stream {STREAM} of this target belongs to another source: database {source.name}" in said
            assert second_bridge.terminate() == 0

            # The first one is down, as in a rolling deployment, with a message that waits.
            assert bridge.terminate() == 0
            receiver.always = Reply(503)
            target.execute(
                "update bridge.delivery set state = 'pending', next_attempt_at = now() where state = 'sent'"
            )
            target.execute(
                "insert into bridge.dead_letter (id, stream, pipeline, destination, event_id, event_seq, event_type,"
                " code, cause, retry_at) select gen_random_uuid(), stream, 'usage-limit-hits', 'events', 'x', 1, 'x',"
                " 'x', 'x', now() from bridge.checkpoint"
            )
            second_bridge = there.bridge().start()
            second_bridge.wait_halted("stream_name_taken")
            for command in (
                ("dead", "retry", "--all"),
                ("dead", "discard", "--all"),
                ("sink", "pause", "told"),
                ("recover", "--accept-source"),
                ("prove",),
                ("decommission", STREAM),
            ):
                ran = there.run(*command)
                assert ran.returncode in (1, 2), command
                if command[0] != "decommission":
                    assert "belongs to another source" in ran.stderr, command
            said = there.command("status", code=1)
            assert "stream_name_taken" in said
            assert "left behind" not in said
            assert second_bridge.terminate() == 0
            assert target.execute("select epoch, session, source_database from bridge.checkpoint") == before
            assert others.requests == []
            assert target.value("select count(*) from bridge.dead_letter where state = 'open'") == 1

            # With a name of its own it delivers, and so does the first.
            receiver.always = Reply()
            there.configure(lambda document: document["source"].update(slot="outbox_bridge_second"))
            there.environment["SOURCE_DSN"] = other_source.dsn
            there.command("install")
            there.bridge().start().wait_ready()
            until(lambda: world.applied() == 2, "the second source's event")
        world.bridge().start().wait_ready()
        emit(source, usage())
        until(lambda: world.applied() == 3, "the first goes on")


def test_the_fence_itself_compares(target: Database) -> None:
    """Two sources that start at one time have both seen no row."""
    first, second = SourceIdentity("1", "app", 5), SourceIdentity("1", "app", 6)
    with closing(TargetLink(target.dsn, "fence")) as link:

        def fence(session: int, source: SourceIdentity) -> ResultRows:
            made = ledger_sql.fence(STREAM, str(UUID(int=session)), source, None, create=True)
            return link.run_alone(*made)

        *_, fenced, there = fence(1, first)
        assert fenced == there
        *_, fenced, there = fence(2, second)
        assert fenced == []
        assert ledger_sql.read_row(there[0]).session == str(UUID(int=1))


def test_a_stream_whose_source_is_gone_is_ended_by_name(
    world: World, source: Database, target: Database, tmp_path: Path
) -> None:
    world.bridge().start().wait_ready()
    emit(source, usage())
    until(lambda: world.applied() == 1, "a row")
    world.close()
    other = create_database(source.server, f"{source.name}_2", template_of("source"))
    try:
        with second(world, other, tmp_path / "second") as there:
            refused = there.run("decommission", STREAM).stderr
            gone = line_in(refused, f"bridge decommission {STREAM} --source-gone")
            assert "nothing was changed" in there.typed(gone)
            assert target.value("select count(*) from bridge.checkpoint") == 1
            there.command("decommission", STREAM, "--source-gone", "--yes")
            emit(other, usage())
            there.bridge().start().wait_ready()
            until(lambda: world.applied() == 2, "this source has the name")
            there.command("decommission", STREAM, "--source-gone", "--yes", code=2)
    finally:
        drop_database(other)
