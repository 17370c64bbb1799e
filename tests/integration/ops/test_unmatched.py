"""Events that no pipeline takes: named everywhere, counted once, and delivered by the printed fix."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.ops.conftest import emit, letters, rows, usage
from tests.support.bridge_process import BridgeProcess
from tests.support.fixes import line_in
from tests.support.servers import Database, drop_database, free_port
from tests.support.world import World, make_database, until

Start = Callable[[], BridgeProcess]
MISSPELT = "usage.limit_reachd"


def put(source: Database, event_type: str, **changes: Any) -> str:
    payload = json.dumps(usage(**changes))
    return str(source.value("select outbox.emit(%s, %s::jsonb)::text", [event_type, payload]))


def counted(bridge: BridgeProcess) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bridge.get("/status")[1])["unmatched"]
    return found


def test_a_misspelt_type_is_named_everywhere_and_the_fix_delivers_it(
    world: World, source: Database, target: Database
) -> None:
    """Two connections, so each event is read twice; a contract without a pipeline; a type that may be ignored."""
    other = make_database(target.server, f"{target.name}_other", "target")

    def change(document: dict[str, Any]) -> None:
        document["source"]["ignore_types"] = ["audit.*"]
        document["events"]["trial.ended"] = {"customer_id": "string"}
        document["connections"]["other"] = {"type": "postgres", "dsn": other.bridge_dsn}
        pipeline = document["pipelines"]["usage-limit-hits"]
        pipeline["destinations"]["copies"] = {**pipeline["destinations"]["events"], "connection": "other"}

    try:
        world.configure(change)
        lost = put(source, MISSPELT)
        said = world.command("status", code=1)
        assert f"1 {MISSPELT}; did you mean usage.limit_reached?" in said  # no bridge has run yet
        assert MISSPELT in world.command("doctor")
        bridge = world.bridge().start().wait_ready()
        emit(source, usage())
        alone, audit = put(source, "trial.ended"), put(source, "audit.login")
        put(source, MISSPELT)
        until(lambda: counted(bridge)["events"] == 3, "three events of two types")
        until(lambda: rows(target) == 1 and rows(other) == 1, "both rows")
        found = counted(bridge)
        assert [(one["type"], one["events"], one["near"]) for one in found["types"]] == [
            (MISSPELT, 2, "usage.limit_reached"),
            ("trial.ended", 1, ""),
        ]
        said = world.command("status")
        assert "no pipeline takes 3 events since " in said
        assert f"2 {MISSPELT}; the last at" in said
        assert f"fix: {found['fix']}" in said
        assert MISSPELT in world.command("top")
        assert MISSPELT in bridge.get("/")[1]
        metrics = bridge.get("/metrics")[1]
        assert 'outbox_bridge_events_total{outcome="unmatched",pipeline=""} 3.0' in metrics
        assert 'outbox_bridge_events_total{outcome="ignored",pipeline=""} 1.0' in metrics
        assert MISSPELT not in metrics  # producers choose types: they are no labels
        logged = [one for one in bridge.logs if one["event"] == "no pipeline takes this type"]
        assert [(one["type"], one["near"]) for one in logged] == [
            (MISSPELT, "usage.limit_reached"),
            ("trial.ended", ""),
        ]

        fates = {line.split()[2]: line for line in world.command("tail", "--no-follow").splitlines()}
        assert fates[lost].endswith(f"{MISSPELT}  no pipeline takes it; did you mean usage.limit_reached?")
        assert fates[alone].endswith("trial.ended  no pipeline takes it")
        assert fates[audit].endswith("audit.login  no pipeline takes it; ignored (source.ignore_types)")
        assert "no pipeline takes it; did you mean usage.limit_reached?" in world.command("explain", lost)
        assert "source.ignore_types" in world.command("explain", audit)
        ran = world.run("emit", MISSPELT, json.dumps(usage()))
        assert "did you mean usage.limit_reached?" in ran.stderr
        assert world.run("emit", "audit.login", "{}").stderr == ""

        def take(document: dict[str, Any]) -> None:
            document["pipelines"]["usage-limit-hits"]["event"] = ["usage.limit_reached", MISSPELT]

        world.configure(take)
        bridge.signal(signal.SIGHUP)
        bridge.wait_log('"reloaded"')
        assert [one["type"] for one in counted(bridge)["types"]] == ["trial.ended"]
        replay = line_in(found["fix"], "bridge replay --destination PIPELINE/DESTINATION --since TIME")
        world.typed(replay, fill={"PIPELINE/DESTINATION": "usage-limit-hits/events", "TIME": "1h"})
        until(lambda: rows(target) == 4, "the three that were passed over")
    finally:
        drop_database(other)


def test_a_million_types_take_no_room(world: World, source: Database) -> None:
    """Polled in several batches; a restart begins anew, and says since when it counts."""
    world.text = world.text.replace("capture: slot", "capture: poll")
    bridge = world.bridge().start().wait_ready()
    for _ in range(3):
        put(source, "usage.limit_reachd")
        source.execute(
            "insert into outbox.event (type, payload) select 'made.up_' || i, '{}' from generate_series(1, 2000) i"
        )
    source.execute(
        "insert into outbox.event (type, payload) values (repeat('x', 200), '{}'), (E'a b\\n\\x1b[31m', '{}')"
    )
    until(lambda: counted(bridge)["events"] == 6005, "all of them, once")
    found = counted(bridge)
    assert len(found["types"]) == 50
    assert found["others"] + sum(one["events"] for one in found["types"]) == 6005
    assert max(len(one["type"]) for one in found["types"]) == 120
    logged = [one for one in bridge.logs if str(one["event"]).startswith("no pipeline takes")]
    assert len(logged) == 51
    assert logged[-1]["event"] == "no pipeline takes more types than the log names"
    said = world.command("status")
    assert r'"a b\n\u001b[31m"' in said
    assert "\x1b" not in said
    assert bridge.terminate() == 0
    again = world.bridge().start().wait_ready()
    assert counted(again)["events"] == 0
    assert counted(again)["since"] > found["since"]


def test_types_beside_a_glob_that_the_ingress_takes_are_named_after_a_kill(
    world: World, source: Database, target: Database
) -> None:
    """A pipeline that takes a glob, and a bridge that is killed."""
    port = free_port()

    def change(document: dict[str, Any]) -> None:
        document["pipelines"]["usage-limit-hits"]["event"] = "usage.*"
        document["events"]["trial.ended"] = {"customer_id": "string"}
        document["ingress"] = {"listen": f"127.0.0.1:{port}", "api_keys": ["k" * 32]}

    def post(event_type: str) -> tuple[int, str]:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        headers = {"authorization": f"Bearer {'k' * 32}", "content-type": "application/json"}
        link.request("POST", f"/v1/events/{event_type}", json.dumps(usage()), headers)
        answer = link.getresponse()
        said = answer.status, answer.read().decode()
        link.close()
        return said

    world.configure(change)
    bridge = world.bridge().start().wait_ready()
    code, said = post("usge.limit_reached")  # neither a contract nor a pipeline: not even accepted
    assert (code, "usage.limit_reached" in said) == (404, True), said
    assert post("trial.ended")[0] == post("usage.limit_reached")[0] == 202
    put(source, "usge.limit_reached")
    until(lambda: counted(bridge)["events"] == 2 and rows(target) == 1, "two that nothing takes, and a row")
    near = {one["type"]: one["near"] for one in counted(bridge)["types"]}
    assert near == {"trial.ended": "", "usge.limit_reached": "usage.limit_reached"}
    bridge.kill()
    bridge = world.bridge().start().wait_ready()
    assert post("trial.ended")[0] == 202
    until(lambda: [one["type"] for one in counted(bridge)["types"]] == ["trial.ended"], "counted anew")
    looked = world.command("doctor")  # at the outbox, whatever was restarted
    assert "2 trial.ended, 1 usge.limit_reached (did you mean usage.limit_reached?)" in looked


@pytest.mark.parametrize("fate", ["filtered out", "branch rest has no destination"])
def test_tail_says_where_an_event_ended_that_reached_nothing(
    world: World, bridge: Start, source: Database, target: Database, fate: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        pipeline = document["pipelines"]["usage-limit-hits"]
        if fate == "filtered out":
            pipeline["steps"].append({"filter": "$event.used > 5"})
        else:
            pipeline["branches"] = [
                {"name": "much", "when": "$event.used > 5", "to": ["events"]},
                {"name": "rest", "to": []},
            ]

    world.configure(change)
    bridge()
    little, much, bad = emit(source, usage(used=1), usage(), usage(plan=7))
    until(lambda: rows(target) == 1 and letters(target) == 1, "a row and a letter")
    fates = {line.split()[2]: line for line in world.command("tail", "--no-follow").splitlines()}
    assert fates[little].endswith(f"usage.limit_reached  usage-limit-hits: {fate}")
    assert fates[much].endswith("usage.limit_reached  applied")
    assert fates[bad].endswith("applied, usage-limit-hits -> events: dead letter open (contract)")
    outcome = "filtered" if fate == "filtered out" else "unrouted"
    assert f"1 {outcome}" in world.command("status")


def test_unmatched_dead_is_told_as_a_dead_letter(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    world.text = world.text.replace(
        "  capture: slot", "  capture: slot\n  unmatched: dead\n  ignore_types: audit.*"
    )
    bridge()
    lost, audit = put(source, MISSPELT), put(source, "audit.login")
    until(lambda: letters(target) == 1, "a letter")
    fates = {line.split()[2]: line for line in world.command("tail", "--no-follow").splitlines()}
    assert fates[lost].endswith("dead letter open (unmatched)")
    assert fates[audit].endswith("ignored (source.ignore_types)")
    assert "dead letter, open: unmatched" in world.command("explain", lost)
