"""Fixes that errors and doctor print, run as they are printed; those of unit/test_printed_fixes.py that no other test
runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge.doctor.check import Check
from bridge.errors import CannotConnect
from bridge.postgres.connect import connect_pq
from bridge.postgres.profiles import STREAM
from tests.integration.ops.conftest import emit, usage
from tests.integration.ops.test_doctor import findings
from tests.support.bridge_process import REPOSITORY
from tests.support.fixes import line_in
from tests.support.printed import statements_in
from tests.support.servers import Database
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
        statement = list(statements_in(finding.fix.replace("<type>", "numeric")))[which]
        target.typed(statement)
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
        target.typed(statement)
        assert world.command("dead", "list") == "no open dead letters\n"


def test_commands_that_are_printed_are_run_as_printed(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    [lost] = emit(world.source, usage(used="many"))
    until(lambda: world.target.value("select count(*) from bridge.dead_letter"), "a dead letter")
    listed = world.command("dead", "list")
    letter = json.loads(world.command("dead", "list", "--json"))[0]["ids"][0]
    assert lost in world.typed(line_in(listed, "bridge dead show ID"), fill={"ID": letter})
    again = line_in(listed, "bridge dead retry --cause CODE --dry-run")
    assert "1  failed (dry run" in world.typed(again, fill={"CODE": "contract"}, code=1)
    given = json.dumps(usage(used="many"))
    shown = world.run("emit", "usage.limit_reached", given, "--force", "--wait", "20").stderr
    assert 'field "used"' in world.typed(line_in(shown, "bridge dead show"))
    decide = world.run("recover").stderr
    help_ = line_in(decide, "bridge recover --help").removesuffix(" explains each")
    assert "--accept-gap" in world.typed(help_)
    refused = world.run("recover", "--accept-gap")
    assert refused.returncode == 1
    [statement] = statements_in(refused.stderr)  # of a session that a bridge, which is gone, left behind
    assert bridge.terminate() == 0
    waits = world.run("emit", "usage.limit_reached", json.dumps(usage()), "--wait", "0.1")
    explain = line_in(waits.stderr, "bridge explain").removesuffix(" what becomes of it")
    assert waits.stdout.strip() in world.typed(explain)
    world.target.typed(statement)
    wrong = world.run("emit", "usage.limit_reached", given).stderr
    contract = line_in(" ".join(wrong.split()), "bridge schema event TYPE").removesuffix(
        " shows the contract"
    )
    assert '"customer_id"' in world.typed(contract, fill={"TYPE": "usage.limit_reached"})


def others(world: World) -> list[Check]:
    """The findings; but not the limit of WAL, which is the whole server's."""
    return [one for one in findings(world) if one.check != "max_slot_wal_keep_size"]


def test_what_install_leaves_for_an_administrator_is_run_as_printed(world: World) -> None:
    source = world.source

    def left() -> str:
        """The SQL that is left: between what is told of it and what comes next."""
        ran = world.run("install", SOURCE_DSN=deployer)
        assert ran.returncode == 0, ran.stderr
        _, *told = ran.stdout.partition("\nnext:")[0].split("left for an administrator of the source: ")
        return "".join(one.partition("\n")[2] for one in told)

    source.execute("drop role if exists deployer; create role deployer superuser login")
    deployer = source.server.dsn(source.name, user="deployer")
    for broken in ("set (publish = 'insert, update')", "set table crm.customer"):
        source.execute(f"alter publication outbox_bridge {broken}")
        source.typed(left())
        assert left() == "", broken
    # -- on a server of a service
    for administrators in ("azure_pg_admin", "rds_replication"):
        source.execute(f"create role {administrators}; alter role outbox_bridge noreplication")
        try:
            [finding] = [one for one in findings(world) if one.check == "replication"]
            source.typed(finding.fix)
            assert left() == "", administrators
        finally:
            source.execute(f"drop role {administrators}; alter role outbox_bridge replication")
    # -- by a role that may make the outbox, for a table that is another's
    source.execute(
        f'alter role deployer nosuperuser createrole replication; grant create on database "{source.name}" to deployer;'
        " grant usage, create on schema outbox to deployer; grant all on all tables in schema outbox to deployer;"
        " drop publication outbox_bridge; create schema theirs; create table theirs.event (id uuid primary key);"
        " grant usage on schema theirs to deployer; grant select on theirs.event to deployer;"
        " create publication outbox_bridge for table theirs.event with (publish = 'insert')"
    )
    world.configure(lambda document: document["source"].update(table="theirs.event"))
    statements = left()
    assert "grant select on" in statements
    source.typed(statements)
    assert source.value("select has_table_privilege('outbox_bridge', 'theirs.event', 'select')")
    source.execute("drop owned by deployer")


def test_what_a_role_lacks_for_a_command_is_granted_as_printed(world: World) -> None:
    source = world.source
    source.execute("drop role if exists newcomer; create role newcomer login")
    newcomer = source.server.dsn(source.name, user="newcomer")
    event = ("emit", "usage.limit_reached", json.dumps(usage()), "--wait", "0")
    refused = world.run(*event, SOURCE_DSN=newcomer)
    assert refused.returncode != 0
    [grant] = statements_in(refused.stderr)
    source.typed(grant)
    assert world.run(*event, SOURCE_DSN=newcomer).returncode == 0
    source.execute("drop owned by newcomer; revoke outbox_producer from newcomer")
    # -- a role that has it already: it is the role that lost its rights
    source.execute("revoke usage on schema outbox from outbox_producer")
    refused = world.run(*event, SOURCE_DSN=source.producer_dsn)
    world.typed(line_in(refused.stderr, "bridge install"), owner=True)
    assert world.run(*event, SOURCE_DSN=source.producer_dsn).returncode == 0


def test_what_doctor_prints_of_the_ledger_and_of_rows_is_run_as_printed(world: World) -> None:
    source, target = world.source, world.target
    target.execute("drop table bridge.sink_hold; delete from bridge.migration where version > 1")
    [finding] = [one for one in findings(world) if one.check == "ledger_version"]
    world.typed(finding.fix, fill={"<target>": f"'{target.dsn}'"})
    whole = line_in(finding.fix, "bridge schema target").partition(" --after")[0]
    target.typed(world.typed(whole))  # it can be run again
    [finding] = others(world)
    assert (finding.check, "bridge.sink_hold" in finding.message) == ("privilege_missing", True)
    target.typed(finding.fix)
    assert others(world) == []
    # -- a row with an xid that this cluster has not given out
    emit(source, usage())
    source.execute("update outbox.event set xid = '999999999999'::xid8")
    [finding] = others(world)
    assert finding.check == "foreign_xids"
    source.typed(finding.fix)
    assert others(world) == []
    # -- a sequence that a crash sets back
    if target.value("show server_version_num") >= "150000":
        target.execute(
            f"create unlogged sequence events.n; grant usage on sequence events.n to outbox_bridge;"
            f"alter table {_TABLE} add column n bigint default nextval('events.n')"
        )
        [finding] = others(world)
        assert finding.check == "table_unlogged"
        target.typed(finding.fix)
        assert others(world) == []
    # -- a column that keeps no zone
    target.execute(f"alter table {_TABLE} add column at timestamp")

    def moment(document: dict[str, Any]) -> None:
        [step] = document["pipelines"]["usage-limit-hits"]["destinations"].values()
        step["columns"]["at"] = "$meta.occurred_at"

    world.configure(moment)
    [finding] = [one for one in findings(world) if one.check == "column_zone"]
    target.typed(finding.fix.partition("   or ")[0])
    assert others(world) == []


def test_an_outbox_of_ones_own_gets_its_columns_as_printed(world: World) -> None:
    source = world.source
    source.execute(
        "create table public.mine (id uuid primary key, type text not null, payload jsonb not null);"
        "grant select on public.mine to outbox_bridge; drop publication outbox_bridge;"
        "create publication outbox_bridge for table public.mine with (publish = 'insert')"
    )
    world.configure(lambda document: document["source"].update(table="public.mine", columns={}))
    [finding] = [one for one in findings(world) if one.check == "xid_missing"]
    source.typed(finding.fix)
    world.configure(lambda document: document["source"].update(columns={"seq": "seq", "xid": "xid"}))
    assert others(world) == []


def test_recipes_are_begun_and_added_by_the_lines_that_are_printed(world: World) -> None:
    there = world.text
    world.config.unlink()
    missing = world.run("recipe", "add", "signups")
    world.typed(line_in(missing.stderr, "bridge init --recipe"))
    assert "signups" in world.text
    world.text = there
    said = world.command("recipe", "add", "failed-payments").replace(f"{world.config}.", "")
    for line in said.splitlines()[1:]:
        world.typed(line.strip(), owner=True)
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    for line in page.splitlines():
        if line.startswith("bridge init "):
            world.typed(line)
        elif line.startswith("bridge schema recipe "):
            world.typed(line, owner=True)
    assert (world.directory / "my-bridge" / "bridge.yaml").exists()
    assert world.typed(line_in(page, "bridge recipe list --markdown")) == page
    types = world.command("schema", "event", "--typescript")
    assert world.typed(line_in(types, "bridge schema event --typescript")) == types
    world.configure(lambda document: [document.pop(name) for name in ("pipelines", "tests", "events")])
    refused = world.run("status")
    world.typed(line_in(refused.stderr, "bridge recipe add usage-limits"))
    world.command("lint")


def test_a_role_without_replication_gets_it_as_printed(source: Database) -> None:
    source.execute("alter role outbox_bridge noreplication")
    try:
        with pytest.raises(CannotConnect) as refused:
            connect_pq(source.bridge_dsn, STREAM, "test", replication="database")
        source.typed(refused.value.hint)
        connect_pq(source.bridge_dsn, STREAM, "test", replication="database").finish()
    finally:
        source.execute("alter role outbox_bridge replication")
