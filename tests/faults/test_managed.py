"""Managed Postgres: what the server allows decides, not what its catalog says; and the fix is one that works there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.servers import RestartableServer
from tests.support.world import World

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"

_AS_RDS_SHOWS_IT = """
    create or replace view pg_catalog.pg_roles as select rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb,
        rolcanlogin, rolreplication and rolname <> 'outbox_bridge' as rolreplication, rolconnlimit,
        '********'::text as rolpassword, rolvaliduntil, rolbypassrls, setconfig as rolconfig, pg_authid.oid
    from pg_authid left join pg_db_role_setting s on (pg_authid.oid = setrole and setdatabase = 0)"""


def _as_rds(world: World) -> None:
    """The catalog of Amazon RDS: a role that may replicate and is shown as if it might not."""
    with world.source.connect() as owner:
        owner.execute("create role rds_replication")
        owner.execute("set allow_system_table_mods = on")
        owner.execute(_AS_RDS_SHOWS_IT.encode())


@pytest.mark.fault(88)
def test_a_role_that_replicates_by_membership_streams(
    world: World, source_cluster: RestartableServer
) -> None:
    """The runbook: docs/operations.md, "Amazon RDS and Aurora". This server gives the right by the attribute, so that
    the membership of the runbook is what the catalog shows of it."""
    _as_rds(world)
    section = OPERATIONS.read_text().partition("### Amazon RDS and Aurora")[2].partition("\n### ")[0]
    [statements] = re.findall(r"```sql\n(.+?)```", section, re.DOTALL)
    for statement in statements.splitlines():
        world.source.execute(statement)
    assert "role outbox_bridge may use slots" in world.command("doctor")
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(3)
        world.drop_slot()
        producer.transaction(3)
        world.law()


@pytest.mark.fault(88)
def test_a_role_that_may_not_replicate_gets_a_fix_that_works_there(
    world: World, source_cluster: RestartableServer
) -> None:
    _as_rds(world)
    world.source.execute("alter role outbox_bridge noreplication")
    bridge = world.bridge().start()
    body = bridge.wait_halted("replication")
    said = world.command("doctor", code=1)
    for text in (body, said):
        assert "grant rds_replication to outbox_bridge;" in text
        assert "alter role" not in text
    world.source.execute("alter role outbox_bridge replication")
    bridge.wait_ready()
    world.law()


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    ("administrators", "fix"),
    [
        ("cloudsqlsuperuser", "cloudsql.logical_decoding = on"),
        ("azure_pg_admin", "server parameter wal_level to logical"),
        ("neon_superuser", "project's settings"),
        ("rds_replication", "rds.logical_replication = 1"),
    ],
)
def test_how_logical_decoding_is_turned_on_is_said_for_the_service(
    world: World, source_cluster: RestartableServer, administrators: str, fix: str
) -> None:
    world.source.execute(f"create role {administrators}")
    world.source.execute("alter system set wal_level = replica")
    source_cluster.restart()
    assert fix in world.command("doctor", code=1)
    assert fix in world.bridge().start().wait_halted("wal_level")
    world.configure(lambda c: c["source"].update(capture="auto"))
    bridge = world.bridge().start()
    bridge.wait_log("polling")
    world.law()


@pytest.mark.fault(88)
def test_a_server_that_does_not_trust_pgoutput_says_so(
    world: World, source_cluster: RestartableServer
) -> None:
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    world.caught_up()
    assert bridge.terminate() == 0
    world.source.execute("alter system set output_plugin_libraries = 'test_decoding'")
    world.source.execute("select pg_reload_conf()")
    [wrong] = [
        one for one in world.json("doctor", code=1)["checks"] if one["check"] == "output_plugin_libraries"
    ]
    assert wrong["level"] == "error"
    body = bridge.start().wait_halted("output_plugin_libraries")
    assert "add pgoutput" in body
    world.source.typed(wrong["fix"])
    bridge.wait_ready()
    world.law()
    world.source.execute("alter system reset output_plugin_libraries")
    world.source.execute("select pg_reload_conf()")
