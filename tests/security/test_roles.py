"""What each role can do is what was printed, no more, and that is enough for a whole life of the bridge."""

from __future__ import annotations

import re
import signal
import uuid

import psycopg
import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database, EmbeddedServer
from tests.support.world import Document, World, until

CANARY = "zebra-canary-9127"
_DDL = re.compile(
    r"statement: \s*(create|alter|drop|truncate|grant|revoke|comment|reindex|cluster|refresh)\b", re.I
)


def _poll(document: Document) -> None:
    document["source"] |= {"capture": "poll", "poll_interval": "200ms"}


def _bad(world: World) -> None:
    """One event that becomes a dead letter."""
    with psycopg.connect(world.source.dsn, autocommit=True) as connection:
        connection.execute(
            "insert into outbox.event (type, payload) values ('usage.limit_reached', %s)", ['{"a": 1}']
        )


@pytest.mark.security(1)
def test_a_producer_can_emit_and_nothing_else(source: Database) -> None:
    with source.connect(user="app") as producer:
        producer.execute("select outbox.emit('a.b', '{}')")
        producer.execute("insert into outbox.event (type, payload) values ('a.b', '{}')")
        for statement in (
            "select * from outbox.event",
            "delete from outbox.event",
            "update outbox.event set payload = '{}'",
            "truncate outbox.event",
            "insert into outbox.event (type, payload, xid) values ('a', '{}', '1')",
            "select * from outbox.stream",
            "update outbox.pruned set xid = '1'",
            "create table outbox.t ()",
            "create table public.t ()",
            "select pg_create_logical_replication_slot('x', 'pgoutput')",
            "alter table outbox.event disable trigger all",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                producer.execute(statement.encode())


@pytest.mark.security(2)
def test_the_bridges_role_can_create_nothing(target: Database) -> None:
    with target.connect(user="outbox_bridge") as connection:
        for statement in (
            "create table public.t ()",
            "create table events.t ()",
            "create table bridge.t ()",
            "create schema s",
            "alter table events.usage_limits add column x int",
            "drop table bridge.checkpoint",
            "truncate events.usage_limits",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
                connection.execute(statement.encode())
            assert refused.value.sqlstate == "42501"


@pytest.mark.security(1)
def test_polling_needs_no_replication(source_cluster: EmbeddedServer, source: Database, world: World) -> None:
    source.execute("alter role outbox_bridge noreplication")
    world.configure(_poll)
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.burst(500)
    world.law()
    assert source.value("select count(*) from pg_replication_slots") == 0


@pytest.mark.security(2)
def test_a_whole_run_does_no_ddl_on_the_target(
    target_cluster: EmbeddedServer, target: Database, world: World
) -> None:
    """Catch-up, stream, dead letters, a reload, polling, a crash: the server logs every statement of DDL."""
    with world.producer() as producer:
        producer.burst(1500)
        bridge = world.bridge().start().wait_ready()
        producer.transaction(3)
        _bad(world)
        world.caught_up()
        bridge.signal(signal.SIGHUP)
        bridge.wait_log("reloaded")
        world.configure(_poll)
        bridge.signal(signal.SIGHUP)
        bridge.wait_log('"phase":"polling"')
        producer.transaction(3)
        world.caught_up()
        bridge.kill()
        bridge.start().wait_ready()
    world.law()
    assert len(world.dead_letters()) == 1
    log = target_cluster.log.read_text()
    assert _DDL.search(log), "the customer's own DDL is not in the log: it would not show ours"
    ours = [line for line in log.splitlines() if " outbox_bridge@" in line and _DDL.search(line)]
    assert ours == []


@pytest.mark.security(3)
@pytest.mark.parametrize(
    ("grant", "says"),
    [
        ("alter role outbox_bridge superuser", "is a superuser"),
        ("alter role outbox_bridge bypassrls", "has BYPASSRLS"),
        ("alter table events.usage_limits owner to outbox_bridge", "owns events.usage_limits"),
    ],
)
def test_a_role_that_may_too_much_is_warned_of_and_refused_under_strict(
    target_cluster: EmbeddedServer, target: Database, world: World, grant: str, says: str
) -> None:
    target.execute(grant)
    bridge = world.bridge().start().wait_ready()
    assert says in bridge.wait_log("the role has more privileges than the bridge needs")
    world.law()
    bridge.terminate()
    world.configure(lambda document: document.update(strict=True))
    strict = world.bridge().start()
    assert says in strict.wait_halted("role_too_powerful")


@pytest.mark.security(4)
def test_every_missing_privilege_is_listed_with_its_grant_and_mended_by_it(world: World) -> None:
    world.target.execute(
        "revoke insert, update, select on events.usage_limits from outbox_bridge;"
        "revoke all on bridge.dead_letter from outbox_bridge"
    )
    bridge = world.bridge().start()
    body = bridge.wait_halted("privilege_missing")
    for privilege in ("insert", "update", "select"):
        assert f'grant {privilege} on \\"events\\".\\"usage_limits\\" to outbox_bridge;' in body, body
    assert "grant usage on schema bridge to outbox_bridge;" in body
    world.target.execute(
        "grant insert, update, select on events.usage_limits to outbox_bridge;"
        "grant select, insert, update, delete on all tables in schema bridge to outbox_bridge"
    )
    bridge.wait_ready()
    world.law()


@pytest.mark.security(4)
def test_a_missing_privilege_at_the_source_halts_and_goes_on_after_the_grant(world: World) -> None:
    world.configure(_poll)
    world.source.execute("revoke select on outbox.event from outbox_bridge")
    bridge = world.bridge().start()
    bridge.wait_halted("privilege_missing")
    world.source.execute("grant select on outbox.event to outbox_bridge")
    bridge.wait_ready()
    world.law()


@pytest.mark.security(3, 4)
def test_row_security_of_the_table_halts(world: World) -> None:
    world.target.execute("alter table events.usage_limits enable row level security")
    bridge = world.bridge().start()
    assert "row level security" in bridge.wait_halted("row_security")
    world.target.execute("alter table events.usage_limits disable row level security")
    bridge.wait_ready()
    world.law()


@pytest.mark.security(7)
def test_nothing_is_found_through_a_search_path(world: World) -> None:
    """Tables of the same names stand first in the role's own search_path, on both sides."""
    for database, names in (
        (world.source, ("event", "stream", "customer")),
        (world.target, ("checkpoint", "applied")),
    ):
        made = "".join(f"create table trap.{name} (id int);" for name in names)
        database.execute(
            f"create schema trap; {made} grant usage on schema trap to outbox_bridge;"
            "grant all on all tables in schema trap to outbox_bridge;"
            f'alter role outbox_bridge in database "{database.name}" set search_path = trap, public'
        )
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.burst(100)
    world.law()


@pytest.mark.security(8)
def test_values_of_rows_are_nowhere_to_be_read(world: World) -> None:
    """A canary in every field, a trigger that raises with it, at debug level: not in logs, pages or causes."""
    world.target.execute(
        """
        create function events.complain() returns trigger language plpgsql as $$
        begin
            if new.plan like 'trigger%' then raise exception 'no % here: %', new.plan, new; end if;
            return new;
        end $$;
        create trigger complain before insert on events.usage_limits for each row execute function events.complain();
        alter table events.usage_limits add constraint plan_is_short check (plan not like 'check%');
        create unique index one_metric on events.usage_limits (metric) where metric like 'zebra%';
        """
    )
    world.configure(
        lambda document: document["events"]["usage.limit_reached"].update(metric="string", limit="string")
    )
    bridge = _debug(world).start().wait_ready()
    good = {"customer_id": CANARY, "metric": "m", "limit": "1", "used": 1, "plan": CANARY}
    changes = (
        {},
        {"plan": f"trigger {CANARY}"},
        {"plan": f"check {CANARY}"},
        {"limit": CANARY},
        {"metric": CANARY},
    )
    with psycopg.connect(world.source.dsn, autocommit=True) as connection:
        for change in (*changes, {"metric": CANARY, "customer_id": None}, {"used": CANARY}):
            connection.execute(
                "insert into outbox.event (id, type, key, payload, headers)"
                " values (%s, 'usage.limit_reached', %s, %s, %s)",
                [
                    uuid.uuid4(),
                    CANARY,
                    psycopg.types.json.Jsonb({**good, **change}),
                    psycopg.types.json.Jsonb({"h": CANARY}),
                ],
            )
    _until_dead(world, 5)
    for path in ("/readyz", "/status", "/metrics", "/"):
        assert CANARY not in bridge.get(path)[1], path
    for event, code, cause in world.dead_letters():
        assert CANARY not in cause, f"{event} {code}: {cause}"
    doctor = bridge.command("doctor")
    assert CANARY not in doctor.stdout + doctor.stderr
    bridge.terminate()
    assert CANARY not in "".join(bridge.lines)
    assert any('"level":"debug"' in line for line in bridge.lines)


def _until_dead(world: World, count: int) -> None:
    until(lambda: len(world.dead_letters()) >= count, f"{count} dead letters; {world.dead_letters()}")


def _debug(world: World) -> BridgeProcess:
    """A bridge at debug level."""
    return world.bridge(BRIDGE_LOG_LEVEL="debug")


@pytest.mark.security(9)
def test_secrets_are_in_no_argument_and_no_line(world: World) -> None:
    secret = "pass-9c2f-w0rd"  # trusted servers take any
    source = psycopg.conninfo.make_conninfo(world.source.bridge_dsn, password=secret)
    target = psycopg.conninfo.make_conninfo(world.target.bridge_dsn, password=secret)
    bridge = world.bridge(source=source, target=target).start().wait_ready()
    with open(f"/proc/{bridge.pid}/cmdline", "rb") as file:
        assert secret.encode() not in file.read()
    world.law()
    seen = [bridge.get(path)[1] for path in ("/readyz", "/status", "/metrics", "/")]
    bridge.terminate()
    broken = world.bridge(source=source, target=f"{target} port=1").start()
    broken.wait_log("cannot_connect")
    broken.kill()
    assert secret not in "".join([*seen, *bridge.lines, *broken.lines])
