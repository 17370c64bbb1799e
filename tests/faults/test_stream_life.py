"""A stream goes on under another name, or ends for good: killed at each step, beside names that begin alike."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from bridge.postgres.connect import connect
from bridge.postgres.profiles import DISPATCH, SOURCE, working
from bridge.postgres.profiles import STREAM as READS
from bridge.postgres.served import at_source, at_target, attending
from tests.integration.ops.conftest import emit, usage
from tests.integration.sinks.conftest import SECRET
from tests.support.bridge_process import FAILPOINTS
from tests.support.fixes import line_in
from tests.support.receiver import Receiver
from tests.support.servers import Database
from tests.support.terminal import terminal
from tests.support.variants import first_fast
from tests.support.world import STREAM, World, until

pytestmark = pytest.mark.timeout(240)

Change = Callable[[dict[str, Any]], None]


def called(name: str) -> Change:
    """The connection has this name."""

    def change(document: dict[str, Any]) -> None:
        [old] = [one for one, made in document["connections"].items() if made["type"] == "postgres"]
        document["connections"][name] = document["connections"].pop(old)
        for pipeline in document["pipelines"].values():
            for destination in pipeline["destinations"].values():
                if destination.get("connection") == old:
                    destination["connection"] = name

    return change


def with_hook(url: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        document["connections"]["hook"] = {
            "type": "webhook",
            "url": url,
            "allow": ["127.0.0.0/8"],
            "secret": SECRET,
        }
        document["pipelines"]["usage-limit-hits"]["destinations"]["told"] = {"connection": "hook"}

    return change


@contextmanager
def written(world: World) -> Iterator[None]:
    """A producer goes on meanwhile."""
    stop = threading.Event()

    def write() -> None:
        with world.producer("meanwhile") as producer:
            while not stop.wait(0.05):
                producer.transaction(2)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def neighbour(world: World, name: str) -> Callable[[], list[tuple[Any, ...]]]:
    """Another configuration's stream, whose bridge is not running; what there is of it."""
    source, target = world.source, world.target
    slot = f"{name}_1"
    source.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    source.execute(
        "insert into outbox.stream (stream, target_system, target_database, slot, floor)"
        " values (%s, '1', 'elsewhere', %s, pg_current_snapshot())",
        [name, slot],
    )
    target.execute(
        "insert into bridge.checkpoint (stream, session, mode, floor) values (%s, gen_random_uuid(), 'new', '3:3:')",
        [name],
    )

    def there() -> list[tuple[Any, ...]]:
        return [
            *source.execute("select slot, session from outbox.stream where stream = %s", [name]),
            *source.execute(
                "select restart_lsn::text from pg_replication_slots"
                " where slot_name = %s and database = current_database()",
                [slot],
            ),
            *target.execute("select epoch, session from bridge.checkpoint where stream = %s", [name]),
        ]

    assert len(there()) == 3
    return there


@pytest.mark.fault(87)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
def test_a_rename_killed_at_each_step_is_finished_by_another(world: World, capture: str) -> None:
    """Three renames in a row: each new name is the old one's slot, or begins like it."""
    others = [neighbour(world, f"{STREAM}_22"), neighbour(world, f"{STREAM}_2_11")]
    before = [there() for there in others]
    with closing(Receiver()) as receiver:
        world.configure(lambda document: document["source"].update(capture=capture))
        world.configure(with_hook(receiver.url))
        bridge = world.bridge().start().wait_ready()
        world.command("sink", "pause", "told", "--reason", "a holiday")
        old = STREAM
        with written(world):
            until(lambda: world.applied() > 4, "rows")
            for point, name in (
                ("rename.copied", "warehouse_2"),
                ("rename.source", "warehouse_2_1"),
                ("rename.target", "warehouse"),
            ):
                new = f"outbox_bridge_{name}"
                assert "a bridge has stream" in _renames_while_it_runs(world, old, new, called(name))
                assert bridge.terminate() == 0
                ran = world.run("rename-stream", old, new, **{FAILPOINTS: f"{point}=kill"})
                assert ran.returncode == -signal.SIGKILL, ran.stderr
                if capture == "slot" or point != "rename.target":  # without a slot nothing was left to do
                    assert f"{old} is {new} now" in world.command("rename-stream", old, new)
                assert f"stream {old} is {new} already" in world.run("rename-stream", old, new).stderr
                applied = world.applied()
                bridge = world.bridge().start().wait_ready()
                until(lambda applied=applied: world.applied() > applied, "it goes on")  # type: ignore[misc]
                old = new
        world.law()
        assert [there() for there in others] == before
        slots = world.source.execute(
            "select slot_name from pg_replication_slots where database = current_database()"
        )
        ours = {name for (name,) in slots} - {f"{STREAM}_22_1", f"{STREAM}_2_11_1"}
        assert {name.rpartition("_")[0] for name in ours} == ({STREAM} if capture == "slot" else set())
        assert receiver.requests == []
        world.command("sink", "resume", "told")
        events = world.source.value("select count(*) from rig.truth")
        until(lambda: len(receiver.requests) >= events, "every message", 60)
        sent = [request.headers["webhook-id"] for request in receiver.requests]
        assert len(set(sent)) == len(sent)


def _renames_while_it_runs(world: World, old: str, new: str, change: Change) -> str:
    world.configure(change)
    ran = world.run("rename-stream", old, new)
    assert ran.returncode == 1
    return ran.stderr


@pytest.mark.fault(87)
def test_a_stream_that_ends_takes_what_a_person_says_and_nothing_else(world: World) -> None:
    other = neighbour(world, f"{STREAM}_2")
    before = other()
    with closing(Receiver()) as receiver:
        world.configure(with_hook(receiver.url))
        bridge = world.bridge().start().wait_ready()
        world.command("sink", "pause", "told")
        emit(world.source, usage(), usage(used="many"))
        until(lambda: world.applied() == 1 and len(world.dead_letters()) > 0, "a row and dead letters")
        letters = world.target.value("select count(*) from bridge.dead_letter where state = 'open'")
        world.configure(called("dwh"))  # as another configuration on these servers
        ran = world.run("decommission", STREAM, "--yes")
        assert ran.returncode == 1
        assert f"a bridge has stream {STREAM}" in ran.stderr
        assert bridge.terminate() == 0

        shown = world.command("decommission", STREAM)
        assert f"{letters} open dead letters, 1 unsent messages" in shown
        assert "nothing was changed" in shown
        refused = world.run("decommission", STREAM, "--yes")
        assert refused.returncode == 1
        assert f"1 unsent messages and {letters} open dead letters would be given up" in refused.stderr
        assert world.slot == f"{STREAM}_1"

        # -- the target does not answer
        world.environment["WAREHOUSE_DSN"] = "host=127.0.0.1 port=9 dbname=x"
        refused = world.run("decommission", STREAM, "--yes", "--messages", "discard")
        assert refused.returncode == 3
        fix = line_in(refused.stderr, f"bridge decommission {STREAM} --target-gone")
        assert "its target is not asked" in world.typed(fix)
        assert world.slot == f"{STREAM}_1"
        del world.environment["WAREHOUSE_DSN"]

        keep = ("decommission", STREAM, "--messages", "keep", "--dead-letters", "keep", "--yes")
        for point in ("decommission.source", "decommission.target"):
            ran = world.run(*keep, **{FAILPOINTS: f"{point}=kill"})
            assert ran.returncode == -signal.SIGKILL, ran.stderr
        assert f"stream {STREAM} has ended" in world.command(*keep)
        assert world.source.execute("select stream from outbox.stream") == [(f"{STREAM}_2",)]
        assert world.target.execute("select stream from bridge.checkpoint") == [(f"{STREAM}_2",)]
        assert world.source.execute(
            "select slot_name from pg_replication_slots where database = current_database()"
        ) == [(f"{STREAM}_2_1",)]
        assert world.target.value("select count(*) from bridge.delivery where state = 'pending'") == 1
        assert len(world.dead_letters()) == letters

        discard = ("decommission", STREAM, "--messages", "discard", "--dead-letters", "discard", "--yes")
        world.command(*discard)
        assert world.target.value("select count(*) from bridge.delivery where state = 'pending'") == 0
        assert world.dead_letters() == []
        assert "there is no stream" in world.run(*discard).stderr
        assert other() == before
        assert receiver.requests == []


def answered(world: World, *words: str, answers: str) -> tuple[int, str]:
    """A command at a terminal of its own, with these answers typed; its exit code and all it printed."""
    with terminal(answers) as theirs:
        ran = subprocess.run(
            [sys.executable, "-m", "bridge", *words, "-c", str(world.config)],
            env=world.shell_environment(),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
    return ran.returncode, ran.stdout


@pytest.mark.fault(87)
def test_at_a_terminal_it_shows_asks_what_becomes_of_the_rest_and_ends(world: World) -> None:
    with closing(Receiver()) as receiver:
        world.configure(with_hook(receiver.url))
        bridge = world.bridge().start().wait_ready()
        world.command("sink", "pause", "told")
        emit(world.source, usage(), usage(used="many"))
        until(lambda: world.applied() == 1 and len(world.dead_letters()) > 0, "a row and dead letters")
        letters = len(world.dead_letters())
        assert bridge.terminate() == 0
    world.configure(called("dwh"))
    code, said = answered(world, "decommission", STREAM, answers="keep\ndiscard\nn\n")
    assert (code, "nothing was changed" in said) == (0, True), said
    shown, asked = (
        said.index(f"{letters} open dead letters, 1 unsent messages"),
        said.index("1 unsent messages ("),
    )
    assert shown < asked < said.index(f"{letters} open dead letters (") < said.index("End it? [y/N]")
    assert world.slot == f"{STREAM}_1"

    code, said = answered(world, "decommission", STREAM, answers="perhaps\nkeep\ndiscard\ny\n")
    assert (code, f"stream {STREAM} has ended" in said) == (0, True), said
    assert "'perhaps' is not one of 'discard', 'keep'" in said
    assert world.source.value("select count(*) from outbox.stream") == 0
    assert world.target.value("select count(*) from bridge.checkpoint") == 0
    assert world.target.value("select count(*) from bridge.delivery where state = 'pending'") == 1
    assert world.dead_letters() == []


def test_streams_whose_long_names_begin_alike_are_told_apart(source: Database) -> None:
    """Postgres keeps 63 bytes of an application_name."""
    one, two = (f"{'a' * 60}_{end}" for end in ("x", "y"))
    for stream in (one, "short"):
        for asked, ask, profile in (
            (source, at_source, SOURCE),
            (source, at_source, READS),
            (source, attending, DISPATCH),
        ):
            with connect(asked.dsn, profile, stream) as link, connect(asked.dsn, SOURCE, "asks") as asking:
                assert ask(asking, stream) == [link.info.backend_pid]
                assert ask(asking, two) == []
                assert ask(asking, f"{stream}_2") == []
    with source.connect() as link, connect(source.dsn, SOURCE, "asks") as asking:
        link.execute("select set_config('application_name', %s, false)", [f"{working(one)}17"])
        assert at_target(asking, one) == [link.info.backend_pid]
        assert at_target(asking, two) == []
    assert working("short") == "bridge/short/"
