"""Fixes that errors and doctor print, run as they are printed; those of unit/test_printed_fixes.py that no other test
runs."""

from __future__ import annotations

import json

from tests.integration.ops.conftest import emit, usage
from tests.integration.ops.test_doctor import findings
from tests.support.printed import statements_in
from tests.support.world import World, until

_TABLE = "events.usage_limits"


def test_what_is_printed_for_a_target_is_run_as_printed(world: World) -> None:
    target = world.target
    for broken, check, which in (
        (f"alter table {_TABLE} drop column mrr", "column_missing", 0),
        (f"alter table {_TABLE} add column needed int not null", "column_required", 0),
        (f"alter table {_TABLE} enable row level security", "row_security", 1),
        (f"alter table {_TABLE} enable row level security", "row_security", 0),
    ):
        target.execute(broken)
        [finding] = [one for one in findings(world) if one.check == check]
        target.execute(list(statements_in(finding.fix.replace("<type>", "numeric")))[which])
        assert check not in {one.check for one in findings(world)}, finding
    target.execute(f"alter role outbox_bridge nobypassrls; alter table {_TABLE} disable row level security")
    for broken in (
        "alter role outbox_bridge nologin",
        f'revoke connect on database "{target.name}" from public',
    ):
        target.execute(broken)
        refused = world.run("dead", "list")
        assert refused.returncode == 3, refused.stderr
        [statement] = statements_in(refused.stderr.partition("fix: ")[2])
        target.execute(statement)
        assert world.command("dead", "list") == "no open dead letters\n"


def test_commands_that_are_printed_are_run_as_printed(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    [lost] = emit(world.source, usage(used="many"))
    until(lambda: world.target.value("select count(*) from bridge.dead_letter"), "a dead letter")
    listed = world.command("dead", "list")
    assert (
        "bridge dead show ID; after you fixed the cause: bridge dead retry --cause CODE --dry-run" in listed
    )
    letter = json.loads(world.command("dead", "list", "--json"))[0]["ids"][0]
    assert lost in world.command("dead", "show", letter)
    assert "1  failed (dry run" in world.command("dead", "retry", "--cause", "contract", "--dry-run", code=1)
    assert "dead letter" in world.command("explain", lost)
    assert "--accept-gap" in world.command("recover", "--help")
    refused = world.run("recover", "--accept-gap")
    assert refused.returncode == 1
    [statement] = statements_in(refused.stderr)  # of a session that a bridge, which is gone, left behind
    assert bridge.terminate() == 0
    assert world.target.value(statement) is False
    assert '"customer_id"' in world.command("schema", "event", "usage.limit_reached")
