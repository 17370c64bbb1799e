"""What nothing serves any more is told everywhere, with the command that ends it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.support.printed import runbook_line
from tests.support.servers import drop_database
from tests.support.world import STREAM, World, make_database, until

OTHER = "outbox_bridge_other"


def _two_targets(world: World, dsn: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["connections"]["other"] = {"type": "postgres", "dsn": dsn}
        pipeline = next(iter(document["pipelines"].values()))
        pipeline["destinations"]["copies"] = {**pipeline["destinations"]["events"], "connection": "other"}
        for branch in pipeline.get("branches", ()):
            branch["to"] = [*branch["to"], *(["copies"] if "events" in branch["to"] else [])]

    world.configure(change)


@pytest.mark.fault(87)
def test_a_connection_that_was_taken_out_is_told_until_it_is_ended(world: World, tmp_path: Path) -> None:
    """The runbook: docs/operations.md, "A stream that ends"."""
    before = world.text
    other = make_database(world.target.server, f"{world.target.name}_other", "target")
    try:
        _two_targets(world, other.bridge_dsn)
        bridge = world.bridge().start().wait_ready()
        bridge.wait_log("streaming")
        until(
            lambda: len(world.source.execute("select 1 from outbox.stream where slot is not null")) == 2,
            "both",
        )
        assert bridge.terminate() == 0
        world.text = before
        assert OTHER not in world.command("doctor")  # another configuration's, whose bridge is restarted?
        world.source.execute(
            "update outbox.stream set updated_at = now() - interval '11 minutes' where stream = %s", [OTHER]
        )
        bridge = world.bridge().start().wait_ready()
        line = bridge.wait_log('"left behind"')
        assert OTHER in line
        said = world.command("status")
        assert f"slot {OTHER}_1 is read by nothing" in said
        assert f"to end it: bridge decommission {OTHER}" in said
        metrics = bridge.get("/metrics")[1]
        assert f'outbox_bridge_left_behind{{kind="slot",name="{OTHER}_1"}} 1.0' in metrics
        assert f'outbox_bridge_left_behind{{kind="stream",name="{OTHER}"}} 1.0' in metrics
        assert f'outbox_bridge_left_behind_wal_bytes{{name="{OTHER}_1"}}' in metrics
        assert f"bridge decommission {OTHER}" in world.command("doctor")
        assert bridge.terminate() == 0
        offline = json.loads(world.command("status", "--json", code=1))
        assert {one["kind"] for one in offline["left_behind"]} == {"slot", "stream"}
        assert "(--target DSN)" in world.command("decommission", OTHER)
        line = runbook_line("bridge decommission STREAM --yes")
        world.typed(line, "--target", shlex.quote(other.bridge_dsn), fill={"STREAM": OTHER})
        assert json.loads(world.command("status", "--json", code=1))["left_behind"] == []
        assert other.value("select count(*) from bridge.checkpoint") == 0
        assert world.slot is not None
    finally:
        drop_database(other)


@pytest.mark.fault(87)
def test_dead_letters_and_messages_of_what_is_gone_are_told(world: World) -> None:
    world.applied_some()
    world.target.execute(
        "insert into bridge.dead_letter (id, stream, pipeline, destination, event_id, event_seq, event_type, code,"
        " cause) values (gen_random_uuid(), %s, 'gone', 'table', 'e', 1, 't', 'contract', 'c')",
        [STREAM],
    )
    world.target.execute(
        "insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, body)"
        " values (gen_random_uuid(), %s, 'gone', 'sink', 'e', 1, 't', '{}')",
        [STREAM],
    )
    found = {one["kind"]: one for one in world.json("status", code=1)["left_behind"]}
    assert found["dead_letters"]["fix"] == "bridge dead discard --pipeline gone --destination table"
    for one in found.values():
        world.typed(one["fix"])
    assert world.json("status", code=1)["left_behind"] == []


@pytest.mark.fault(87)
def test_an_old_number_of_our_own_slot_is_told_and_its_statement_ends_it(world: World) -> None:
    world.applied_some()
    world.source.execute(f"select pg_create_logical_replication_slot('{STREAM}_7', 'pgoutput')")
    [one] = world.json("status", code=1)["left_behind"]
    assert (one["kind"], one["name"]) == ("slot", f"{STREAM}_7")
    world.source.typed(one["fix"])
    assert world.json("status", code=1)["left_behind"] == []
