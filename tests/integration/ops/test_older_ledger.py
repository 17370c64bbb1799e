"""Every command on a ledger of an older release: it works, or says with which SQL it would."""

from __future__ import annotations

from typing import Any

from tests.integration.ops.conftest import emit, usage
from tests.integration.sinks.conftest import SECRET
from tests.support.fixes import line_in
from tests.support.world import STREAM, World, until

_VERSION_1 = """
begin;
drop table bridge.sink, bridge.sink_hold, bridge.audit, bridge.sample;
alter table bridge.delivery drop column history;
alter table bridge.dead_letter drop column settled_by, drop column edited;
alter table bridge.checkpoint drop column source_database, drop column source_database_oid;
alter table bridge.migration drop column compatible_from;
delete from bridge.migration where version > 1;
commit"""
_UPGRADE = "bridge schema target | psql <target>"


def test_commands_on_an_older_ledger_work_or_say_which_sql_upgrades_it(world: World) -> None:
    def with_a_sink(document: dict[str, Any]) -> None:
        document["connections"]["hook"] = {
            "type": "webhook",
            "url": "http://127.0.0.1:1/",
            "allow": ["127.0.0.0/8"],
            "secret": SECRET,
        }
        document["pipelines"]["usage-limit-hits"]["destinations"]["told"] = {"connection": "hook"}

    world.configure(with_a_sink)
    bridge = world.bridge().start().wait_ready()
    event, _ = emit(world.source, usage(), {"customer_id": 1})
    until(lambda: world.applied() == 1 and len(world.dead_letters()) == 2, "a row and dead letters")
    assert bridge.terminate() == 0
    world.target.execute(_VERSION_1)
    letter, *_ = [one["ids"][0] for one in world.json("dead", "list")]

    works: dict[tuple[str, ...], tuple[int, str]] = {
        ("status",): (1, f"stream {STREAM}: stopped"),
        ("top",): (0, STREAM[:15]),  # of 80 columns it gets what is left
        ("tail", "--no-follow"): (0, event),
        ("explain", event): (0, 'customer_id = "cus_1"'),
        ("dead", "list"): (0, "usage-limit-hits -> events"),
        ("dead", "show", letter): (0, "customer_id"),
        ("dead", "retry", "--all"): (1, "2  failed"),
        ("dead", "discard", letter): (0, "1 discarded"),
        ("dead", "restore", letter): (0, "1 "),
        ("sink", "list"): (0, "usage-limit-hits/told"),
        ("sink", "pause", "told"): (0, "paused"),
        ("sink", "resume", "told"): (0, "resumed"),
        ("prove",): (0, "lost 0"),
        ("replay", "--destination", "usage-limit-hits/events", "--since", "1h"): (1, "1 written"),
        ("prune",): (0, "0 events deleted"),
    }
    for command, (code, words) in works.items():
        ran = world.run(*command)
        assert (ran.returncode, words in ran.stdout) == (code, True), f"{command}: {ran.stdout}{ran.stderr}"
        assert "Traceback" not in ran.stderr, command
    for command in (
        ("sink", "pause", "told", "--cause", "connect"),
        ("sink", "retry", "--all"),
        ("sink", "discard", "told", "--all"),
        ("recover", "--accept-source", "--since", "now"),
        ("recover", "--accept-target"),
        ("recover", "--accept-gap"),
        ("recover", "--restart-stream"),
        ("recover", "--adopt-outbox", "--dry-run"),
    ):
        ran = world.run(*command)
        assert (ran.returncode, _UPGRADE in ran.stderr) == (1, True), f"{command}: {ran.stdout}{ran.stderr}"
    doctor = world.command("doctor", code=1)
    assert "bridge schema target --after 1 | psql <target>" in doctor
    # -- a stream that is renamed, and one that ends
    world.configure(
        lambda document: document["connections"].update(store=document["connections"].pop("warehouse"))
    )
    world.text = world.text.replace("connection: warehouse", "connection: store")
    world.command("rename-stream", STREAM, "outbox_bridge_store")
    world.configure(
        lambda document: document["connections"].update(other=document["connections"].pop("store"))
    )
    world.text = world.text.replace("connection: store", "connection: other")
    ended = world.command(
        "decommission", "outbox_bridge_store", "--yes", "--messages", "discard", "--dead-letters", "discard"
    )
    assert "stream outbox_bridge_store has ended" in ended
    printed = line_in(ran.stderr, "bridge schema target").partition("   (")[0]
    world.typed(printed, fill={"<target>": f"'{world.target.dsn}'"})
    assert "bridge doctor" in world.run("sink", "list").stderr  # its new tables need the grants
    checks = world.json("doctor", code=1)["checks"]
    [finding] = [one for one in checks if one["check"] == "privilege_missing"]
    world.target.typed(finding["fix"])
    world.command("doctor")
    world.command("sink", "list")
