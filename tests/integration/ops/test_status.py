"""bridge status: from the bridge that runs, and from the servers where none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bridge.cli.status import lines
from tests.integration.ops.conftest import emit, letters, rows, usage
from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database
from tests.support.world import World, until

Start = Callable[[], BridgeProcess]


def test_a_running_bridge_answers_and_is_ready(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    bridge()
    emit(source, usage())
    until(lambda: rows(target) == 1, "a row")
    state = world.json("status")
    assert (state["running"], state["ready"]) == (True, True)
    [stream] = state["streams"]
    assert stream["phase"] == "streaming"
    said = world.command("status")
    assert said.startswith("ready\n")
    assert "pipeline usage-limit-hits: 1 applied" in said


@pytest.mark.slow
def test_repeats_are_told_by_a_bridge_that_runs_and_without_one(
    world: World, bridge: Start, source: Database
) -> None:
    emitted = "select outbox.emit('usage.limit_reached', '{}', 'k') from generate_series(1, 3)"
    source.execute(emitted)
    state = world.json("status", code=1)
    assert (state["running"], state["suppressed"]) == (False, {"usage.limit_reached": 2})
    bridge()
    until(lambda: world.json("status")["suppressed"] == {"usage.limit_reached": 2}, "a look at the source")
    said = "skipped, because the idempotency key was used before: 2 usage.limit_reached"
    assert said in world.command("status")
    world.command("prune")
    assert source.value("select count from outbox.suppressed") == 2


def test_a_halted_bridge_is_not_ready_and_names_what_mends_it(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    running = bridge()
    target.execute("alter table events.usage_limits rename to elsewhere")
    emit(source, usage())
    running.wait_halted("table_missing")
    said = world.command("status", code=1)
    assert said.startswith("not ready\n")
    assert "table_missing" in said
    assert "fix: " in said


def test_without_a_bridge_the_servers_tell_how_far_the_stream_is(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    running = bridge()
    emit(source, usage(), usage(metric="no-such"))
    until(lambda: rows(target) == 1 and letters(target) == 1, "a row and a letter")
    running.wait_log("streaming")
    told = world.json("status")
    running.terminate()
    emit(source, usage(), usage(), usage())
    state = world.json("status", code=1)
    assert (state["running"], state["ready"]) == (False, False)
    [stream] = state["streams"]
    assert (stream["mode"], stream["registered"], stream["pending_events"]) == ("stream", True, 3)
    assert stream["slot"]["active"] is False
    assert state["pipelines"][0]["dead_letters"] == 1
    assert _shape(state) == _shape(told), "one shape for programs"
    said = world.command("status", code=1)
    assert "fix: bridge run" in said
    assert "3 events wait" in said


def _shape(state: dict[str, Any]) -> list[set[str]]:
    [stream], [pipeline] = state["streams"], state["pipelines"]
    return [set(one) for one in (state, stream, stream["slot"], pipeline, state["unmatched"])]


def test_servers_that_are_away_are_exit_code_3(world: World) -> None:
    world.environment["WAREHOUSE_DSN"] = "host=127.0.0.1 port=1 dbname=x"
    ran = world.run("status")
    assert ran.returncode == 3
    assert "fix: nothing listens there: correct `host` and `port`" in ran.stderr


def test_a_target_without_a_ledger_is_told_what_to_run(world: World, target: Database) -> None:
    target.execute("drop schema bridge cascade")
    for command in (["status"], ["dead", "list"], ["dead", "retry", "--all"]):
        ran = world.run(*command)
        assert ran.returncode == 1
        assert "bridge schema target | psql" in ran.stderr


def test_types_of_repeats_are_told_briefly_and_without_terminal_controls() -> None:
    counts = {f"type.{number:02}": 100 - number for number in range(12)} | {"a\x1b[2Jb": 1000}
    state = {"ready": True, "problems": [], "streams": [], "pipelines": [], "suppressed": counts}
    [_, line] = lines(state)
    assert line.endswith(
        ": 1000 a?[2Jb, 100 type.00, 99 type.01, 98 type.02, 97 type.03, 96 type.04, 95 type.05, 94 type.06,"
        " 93 type.07, 92 type.08, 270 of 3 other types"
    )


def test_what_waits_for_a_sink_is_told_beside_what_was_sent() -> None:
    state = {"ready": True, "problems": [], "streams": [], "pipelines": []} | {
        "deliveries": {"nudge": {"sent": 3, "retry": 2}},
        "waiting_deliveries": {"crm": {"messages": 1, "oldest_seconds": 0.4}}
        | {"nudge": {"messages": 2, "oldest_seconds": 1800.2}},
    }
    assert lines(state)[1:] == [
        "sink crm: 1 wait, the oldest for 0 s",
        "sink nudge: 3 sent, 2 retry, 2 wait, the oldest for 1800 s",
    ]


def test_what_waits_is_not_told_before_it_is_known_at_a_halted_start(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    assert bridge().terminate() == 0
    target.execute("alter table events.usage_limits rename to elsewhere")
    emit(source, usage())
    running = world.bridge().start()
    running.wait_halted("table_missing")
    state = world.json("status", code=1)
    assert state["streams"][0]["oldest_pending_event_age_seconds"] != 0.0
    said = world.command("status", code=1)
    assert "nothing waits" not in said
    assert "what is applied is not known yet" in said, "its ledger was not read"
    until(lambda: "oldest event waits" in world.command("status", code=1), "a look at the source")
