"""Doctor finds what is wrong on real servers, and what it prints mends it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta

import psycopg
import pytest

from bridge.config.load import load
from bridge.doctor.check import Check
from bridge.doctor.examine import examine
from bridge.doctor.source import history
from bridge.postgres.login import try_again
from bridge.postgres.replication import command, open_replication
from tests.support.bridge_process import BridgeProcess
from tests.support.fixes import line_in, not_here
from tests.support.servers import Database, EmbeddedServer
from tests.support.world import World, until

_ROLE = "alter role outbox_bridge nosuperuser nobypassrls replication login"
_SERVER = ("max_slot_wal_keep_size", "idle_replication_slot_timeout", "synchronous_commit", "wal_level")


@pytest.fixture(autouse=True)
def _put_back(source: Database, target: Database) -> Iterator[None]:
    """What belongs to the whole server outlives a test's database."""
    source.execute("alter system set max_slot_wal_keep_size = '16GB'")
    source.execute("select pg_reload_conf()")
    until(lambda: source.value("show max_slot_wal_keep_size") == "16GB", "the reload")
    yield
    for database in (source, target):
        database.execute(_ROLE)
    known = {row[0] for row in source.execute("select name from pg_settings")}
    for name in known & set(_SERVER):
        source.execute(f"alter system reset {name}")
    source.execute("select pg_reload_conf()")


def checks(world: World) -> list[Check]:
    environment = {
        "SOURCE_DSN": world.source.bridge_dsn,
        "WAREHOUSE_DSN": world.target.bridge_dsn,
        **world.environment,
    }
    return list(examine(load(world.config, environment)))


def findings(world: World) -> list[Check]:
    return [one for one in checks(world) if one.level != "ok"]


def mend(world: World, finding: Check) -> None:
    """Do what is printed, as the customer's superuser."""
    database = world.source if finding.where == "source" else world.target
    if finding.kind == "sql":
        database.typed(finding.fix)
    else:
        world.typed(finding.fix, owner=finding.fix == "bridge install")
        if finding.fix.startswith("bridge decommission "):
            world.typed(finding.fix, "--yes")  # it says what it would do, and then this


def mend_all(world: World) -> None:
    for _ in range(6):
        found = findings(world)
        if not found:
            return
        for finding in found:
            mend(world, finding)
    raise AssertionError(f"still: {found}")


@pytest.mark.matrix
def test_nothing_is_wrong_where_everything_is_as_printed(world: World) -> None:
    assert findings(world) == []
    said = world.command("doctor")
    assert "0 errors, 0 warnings" in said


@pytest.mark.matrix
def test_a_slot_that_a_promotion_leaves_behind_is_told_under_failover(
    world: World, source: Database, target: Database, bridge_process: Callable[..., BridgeProcess]
) -> None:
    failover = world.text.replace("capture: slot", "capture: slot\n  failover: true")
    bridge = bridge_process(source=source.bridge_dsn, target=target.bridge_dsn, config=world.config)
    bridge.start().wait_log("streaming")
    assert findings(world) == []
    bridge.terminate()
    world.text = failover
    [finding] = findings(world)
    assert finding.check == "slot_failover"
    if source.value("show server_version_num") < "170000":
        assert "PostgreSQL 17" in finding.message
        source.execute("select pg_drop_replication_slot(slot) from outbox.stream")
        bridge = bridge_process(source=source.bridge_dsn, target=target.bridge_dsn, config=world.config)
        bridge.start().wait_log("streaming")  # with a slot as this server makes them
        return
    statement = finding.fix.splitlines()[1].rstrip(";")
    assert statement.startswith("ALTER_REPLICATION_SLOT")
    connection = open_replication(source.bridge_dsn, "test")
    connection.nonblocking = 0
    command(connection, statement, "mending")
    connection.finish()
    assert findings(world) == []


def each_is_mended(world: World, database: Database, cases: list[tuple[str, str]]) -> None:
    """(what breaks it, the check that tells it): one after the other, each mended by what is printed."""
    for broken, check in cases:
        database.execute(broken)
        found = findings(world)
        assert check in {one.check for one in found}, (broken, found)
        mend_all(world)


_AT_SOURCE = [
    ("drop publication outbox_bridge", "publication"),
    ("alter publication outbox_bridge set (publish = 'insert, update')", "publication"),
    ("alter publication outbox_bridge set (publish = 'update')", "publication"),
    ("alter publication outbox_bridge set table crm.customer", "publication"),
    ("revoke usage on schema outbox from outbox_bridge", "privilege_missing"),
    ("revoke select on outbox.event from outbox_bridge", "privilege_missing"),
    ("revoke delete on outbox.event from outbox_bridge", "privilege_missing"),
    ("revoke update (payload, headers) on outbox.event from outbox_bridge", "privilege_missing"),
    ("revoke all on outbox.stream from outbox_bridge", "privilege_missing"),
    ("revoke update on outbox.pruned from outbox_bridge", "privilege_missing"),
    ("revoke select on outbox.migration from outbox_bridge", "privilege_missing"),
    ("drop schema outbox cascade", "outbox"),
    ("drop table outbox.stream", "outbox"),
    ("delete from outbox.migration", "migrations"),
    ("alter role outbox_bridge noreplication", "replication"),
    (
        "insert into outbox.event (type, payload) select 'usage.limit_reached', '{}' from generate_series(1, 9);"
        " select setval('outbox.event_seq_seq', 3)",
        "seq_behind",
    ),
    ("alter role outbox_bridge bypassrls", "role_bypassrls"),
    ("alter table outbox.event owner to outbox_bridge", "role_owner"),
    ("revoke select on crm.customer from outbox_bridge", "privilege_missing"),
    ("revoke usage on schema crm from outbox_bridge", "privilege_missing"),
    (
        "insert into outbox.stream (stream, floor, updated_at)"
        " values ('outbox_bridge_gone', '3:3:', now() - interval '11 minutes')",
        "stream_left_over",
    ),
    ("select pg_create_logical_replication_slot('outbox_bridge_gone_1', 'pgoutput')", "slot_left_over"),
]


@pytest.mark.matrix
def test_what_is_wrong_at_the_source_is_mended_by_what_is_printed(world: World, source: Database) -> None:
    each_is_mended(world, source, _AT_SOURCE)


_AT_TARGET = [
    ("drop schema bridge cascade", "ledger_schema_missing"),
    ("revoke usage on schema bridge from outbox_bridge", "privilege_missing"),
    ("revoke update on bridge.checkpoint from outbox_bridge", "privilege_missing"),
    ("revoke select on bridge.migration from outbox_bridge", "privilege_missing"),
    ("revoke usage on schema events from outbox_bridge", "privilege_missing"),
    ("revoke insert on events.usage_limits from outbox_bridge", "privilege_missing"),
    ("revoke update on events.usage_limits from outbox_bridge", "privilege_missing"),
    ("revoke select on events.usage_limits from outbox_bridge", "privilege_missing"),
    ("alter table events.usage_limits drop constraint usage_limits_pkey", "key_not_unique"),
    ("alter table events.usage_limits owner to outbox_bridge", "role_owner"),
    ("alter role outbox_bridge bypassrls", "role_bypassrls"),
]


@pytest.mark.matrix
def test_what_is_wrong_at_the_target_is_mended_by_what_is_printed(world: World, target: Database) -> None:
    each_is_mended(world, target, _AT_TARGET)


@pytest.mark.parametrize(
    ("broken", "check", "mended"),
    [
        (
            "alter table events.usage_limits drop column mrr",
            "column_missing",
            "alter table events.usage_limits add column mrr numeric",
        ),
        (
            "alter table events.usage_limits rename to other",
            "table_missing",
            "alter table events.other rename to usage_limits",
        ),
        (
            "alter table events.usage_limits add column needed int not null",
            "column_required",
            "alter table events.usage_limits alter column needed drop not null",
        ),
        (
            "alter table events.usage_limits enable row level security",
            "row_security",
            "alter table events.usage_limits disable row level security",
        ),
        (
            "alter table events.usage_limits alter column used type timestamptz using now()",
            "column_type",
            "alter table events.usage_limits alter column used type int using 1",
        ),
    ],
)
def test_what_only_the_owner_of_a_table_can_decide_is_told(
    world: World, target: Database, broken: str, check: str, mended: str
) -> None:
    target.execute(broken)
    [finding] = findings(world)
    assert (finding.check, finding.level) == (check, "error")
    assert finding.fix
    target.execute(mended)
    assert findings(world) == []


_SETTINGS = [
    ("max_slot_wal_keep_size", "-1", "max_slot_wal_keep_size"),
    ("max_slot_wal_keep_size", "1GB", "max_slot_wal_keep_size"),
    ("idle_replication_slot_timeout", "1h", "idle_replication_slot_timeout"),
    ("synchronous_commit", "off", "synchronous_commit"),
]


def test_settings_of_the_source_that_cost_safety_are_warned_of(world: World, source: Database) -> None:
    for setting, value, check in _SETTINGS:
        if not source.execute("select 1 from pg_settings where name = %s", [setting]):
            assert setting == "idle_replication_slot_timeout"  # from 18 on
            not_here("alter system set idle_replication_slot_timeout = 0")
            continue
        source.execute(f"alter system set {setting} = '{value}'")
        source.execute("select pg_reload_conf()")
        until(lambda: [one.check for one in findings(world)] == [check], f"{check} is told")  # noqa: B023
        [finding] = findings(world)
        assert finding.level == "warn"
        mend(world, finding)
        until(lambda: findings(world) == [], "the reload")


def test_a_superuser_is_a_warning_and_under_strict_an_error(world: World, source: Database) -> None:
    source.execute("alter role outbox_bridge superuser")
    [finding] = findings(world)
    assert (finding.check, finding.level) == ("role_superuser", "warn")
    world.command("doctor")
    world.text += "strict: true\n"
    assert "error  source: role_superuser" in world.command("doctor", code=1)


def test_old_transactions_are_named_with_what_ends_them(source: Database) -> None:
    with source.connect() as writer, source.connect(user="outbox_bridge") as doctor:
        writer.autocommit = False
        writer.execute("select pg_current_xact_id()")
        found = [one for one in history(doctor, session=timedelta(0)) if one.level == "warn"]
        assert any(f"pg_terminate_backend({writer.info.backend_pid})" in one.fix for one in found), found
        writer.execute("prepare transaction 'forgotten'")
        found = [one for one in history(doctor, prepared=timedelta(0)) if one.level == "warn"]
        [finding] = found
        assert "forgotten" in finding.message
        source.execute(finding.fix)
        assert [one.level for one in history(doctor, prepared=timedelta(0))] == ["ok"]


@pytest.mark.parametrize(
    ("sql", "check"),
    [
        (
            "select customer_id, mrr, csm, renewal from crm.customers where customer_id = any(%(keys)s)",
            "enrichment_table",
        ),
        ("select customer_id, mrrr from crm.customer where customer_id = any(%(keys)s)", "enrichment_sql"),
        ("select mrr, customer_id from crm.customer where customer_id = any(%(keys)s)", "enrichment_key"),
    ],
)
def test_an_enrichment_that_cannot_work_is_told(world: World, sql: str, check: str) -> None:
    world.text = re.sub(r"sql: select .*", f"sql: {sql}", world.text)
    [finding] = findings(world)
    assert (finding.check, finding.level, finding.kind) == (check, "error", "config")


def test_an_enrichment_whose_key_is_of_another_type_is_told_the_cast(world: World) -> None:
    world.text = world.text.replace("key: $event.customer_id", "key: $event.used")
    [finding] = findings(world)
    assert finding.check == "enrichment_type"
    assert "any(%(keys)s::" in finding.fix


_OWN = """
create table public.outboxevent (
    id uuid primary key, type text not null, aggregateid text, payload jsonb not null,
    seq bigint generated always as identity
);
grant select on public.outboxevent to outbox_bridge;
drop publication outbox_bridge;
create publication outbox_bridge for table public.outboxevent with (publish = 'insert');
"""


def test_an_outbox_of_ones_own_without_xid_is_told_how_to_add_it(world: World, source: Database) -> None:
    source.execute(_OWN)
    values = "(gen_random_uuid(), 'usage.limit_reached', '{}')"
    insert = f"insert into public.outboxevent (id, type, payload) values {values}"
    source.execute(insert)
    columns = "columns: { key: aggregateid, seq: seq }"
    world.text = world.text.replace(
        "  capture: slot", f"  capture: slot\n  table: public.outboxevent\n  {columns}"
    )
    [finding] = findings(world)
    assert finding.check == "xid_missing"
    assert finding.fix.count("alter table") == 1  # it has a seq already
    mend(world, finding)
    assert source.value("select count(*) from public.outboxevent where xid is null") == 0
    world.text = world.text.replace("seq: seq }", "seq: seq, xid: xid }")
    assert findings(world) == []
    source.execute(insert)
    assert source.value("select count(distinct xid) from public.outboxevent") == 2
    world.text = world.text.replace("key: aggregateid", "key: agregateid")
    [finding] = findings(world)
    assert "source.columns.key" in finding.message


def test_a_stream_that_the_ledger_does_not_know_is_told(
    world: World, source: Database, target: Database, bridge: Callable[[], BridgeProcess]
) -> None:
    bridge().terminate()
    assert findings(world) == []
    target.execute("delete from bridge.checkpoint")
    assert [one.check for one in findings(world)] == ["ledger_missing"]
    source.execute("update outbox.stream set target_database = 'another'")
    assert [one.check for one in findings(world)] == ["other_target"]


def test_a_server_without_logical_wal_is_told_what_to_set(
    world: World, source: Database, source_cluster: EmbeddedServer
) -> None:
    source.execute("alter system set wal_level = 'replica'")
    source_cluster.restart()
    [finding] = [one for one in findings(world) if one.check == "wal_level"]
    assert finding.level == "error"
    world.text = world.text.replace("capture: slot", "capture: poll")
    assert not [one for one in findings(world) if one.level == "error"]
    mend(world, finding)
    source_cluster.restart()
    world.text = world.text.replace("capture: poll", "capture: slot")
    assert not [one for one in findings(world) if one.level == "error"]
    source.execute("alter system set max_replication_slots = 1")
    source_cluster.restart()
    source.execute("select pg_create_physical_replication_slot('of_a_standby')")
    [finding] = [one for one in findings(world) if one.check == "max_replication_slots"]
    mend(world, finding)
    source_cluster.restart()
    assert not [one for one in findings(world) if one.level == "error"]


@pytest.mark.parametrize(
    ("change", "check", "advice"),
    [
        ({"host": "no-such-host.invalid"}, "reach_name", "no-such-host.invalid"),
        ({"port": "1"}, "reach_port", "nothing listens there"),
        ({"dbname": "nowhere"}, "reach_database", "psql -l"),
        ({"user": "nobody_such"}, "reach_role", "bridge schema source"),
        ({"sslmode": "verify-full", "sslrootcert": "/nonexistent/ca.pem"}, "reach_tls", "sslrootcert"),
    ],
)
def test_each_way_not_to_reach_a_server_has_its_own_advice(
    world: World, source: Database, change: dict[str, str], check: str, advice: str
) -> None:
    world.environment["SOURCE_DSN"] = psycopg.conninfo.make_conninfo(source.bridge_dsn, **change)
    found = world.json("doctor", code=3)
    [finding] = [one for one in found["checks"] if one["level"] == "error"]
    assert finding["check"] == check
    assert advice in finding["fix"]
    assert any(one["where"] == "warehouse" and one["check"] == "table" for one in found["checks"])


@pytest.mark.data_directory
def test_a_wrong_password_and_a_host_that_pg_hba_refuses_are_told_apart(
    world: World, source: Database, source_cluster: EmbeddedServer
) -> None:
    rules = source_cluster.data / "pg_hba.conf"
    trusted = "host all postgres all trust\n"
    rules.write_text(trusted + "host all all all scram-sha-256\n")
    source.execute("select pg_reload_conf()")
    world.environment["SOURCE_DSN"] = psycopg.conninfo.make_conninfo(source.bridge_dsn, password="canary")
    until(lambda: [one.check for one in findings(world)] == ["reach_password"], "the wrong password")
    assert "canary" not in str(findings(world))
    world.environment["SOURCE_DSN"] = psycopg.conninfo.make_conninfo(source.bridge_dsn, password="bridge")
    assert findings(world) == []
    rules.write_text(trusted)
    source.execute("select pg_reload_conf()")
    until(lambda: [one.check for one in findings(world)] == ["reach_pg_hba"], "the rule that is missing")


def test_a_server_that_never_answers_is_told_as_such(world: World, source: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        world.environment["SOURCE_DSN"] = f"host=127.0.0.1 port={port} dbname=app connect_timeout=2"
        found = findings(world)
        network = line_in(found[0].fix, "bridge doctor --network")
        assert f"port: 127.0.0.1:{port} answers" in world.typed(network.removesuffix(" shows which"), code=3)
    assert [one.check for one in found] == ["reach_timeout"]
    assert f"no answer from 127.0.0.1:{port} within 2 s" in found[0].message


def test_a_role_that_may_not_log_in_is_told_the_statement(world: World, source: Database) -> None:
    source.execute("alter role outbox_bridge nologin")
    [finding] = findings(world)
    assert finding.check == "reach_login"
    mend(world, finding)
    try_again()  # what a process was refused, it does not ask again at once; here it is the same process
    assert findings(world) == []


def test_the_network_is_measured_when_asked(world: World) -> None:
    said = world.command("doctor", "--network")
    for where in ("source", "warehouse"):
        assert f"{where}: addresses: 127.0.0.1 is 127.0.0.1" in said
        assert re.search(rf"{where}: port: 127\.0\.0\.1:\d+ answers", said)
        assert f"{where}: tls_session: none" in said
        assert f"{where}: egress: 127.0.0.1, also as the server sees us" in said
        assert re.search(rf"{where}: round_trip: round trip \d+\.\d\d ms", said)


def test_an_ingress_needs_rights_of_its_own_and_its_port(world: World, source: Database) -> None:
    source.execute("revoke insert (payload) on outbox.event from outbox_bridge")
    source.execute("revoke execute on function outbox.first_id(text, text) from outbox_bridge")
    source.execute("revoke insert on outbox.webhook_delivery from outbox_bridge")
    assert findings(world) == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        world.text += f'ingress: {{ listen: "127.0.0.1:{port}", api_keys: [k] }}\n'
        found = findings(world)
        assert {one.check for one in found} == {"ingress.listen", "privilege_missing"}
    mend_all(world)


def test_entities_that_events_keep_need_rights_of_their_own(world: World, source: Database) -> None:
    source.execute("revoke insert, update on outbox.entity from outbox_bridge")
    assert findings(world) == []
    upsert = "upsert.entity: { entity: kept, key: $event.customer_id }"
    world.text = world.text.replace("pipelines:\n", "entities: { kept: { kept_by: events } }\npipelines:\n")
    world.text = world.text.replace("    steps:\n", f"    steps:\n      - {upsert}\n")
    found = findings(world)
    assert [one.fix for one in found] == [
        'grant insert on "outbox"."entity" to outbox_bridge;',
        'grant update on "outbox"."entity" to outbox_bridge;',
    ]
    mend_all(world)
    source.execute("drop table outbox.entity")
    source.execute("delete from outbox.migration where version >= 4")  # it, and what came after it
    assert [one.fix for one in findings(world)] == ["bridge install"]
    mend_all(world)


def test_the_servers_of_sinks_are_tried_when_the_network_is_measured(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        hook = f'"http://127.0.0.1:{port}/canary"'
        world.text = world.text.replace(
            "connections:", f"connections:\n  hook: {{ type: slack, webhook_url: {hook} }}", 1
        )
        said = world.command("doctor", "--network")
        assert f"hook: port: 127.0.0.1:{port} answers" in said
        assert "hook: egress: 127.0.0.1 on this machine" in said
    said = world.command("doctor", "--network", code=3)
    assert f"127.0.0.1:{port} cannot be reached" in said
    assert "canary" not in said


def test_a_configuration_that_is_wrong_is_exit_code_2(world: World) -> None:
    world.text = world.text.replace("pipelines:", "pipeline:")
    ran = world.run("doctor")
    assert ran.returncode == 2
    assert "pipelines" in ran.stderr
