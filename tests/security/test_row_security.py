"""Row-level security on the source: what the bridge is shown must never be taken for everything that is there."""

from __future__ import annotations

import psycopg
import pytest

from bridge.config.load import load
from bridge.doctor.examine import examine
from tests.support.servers import Database
from tests.support.variants import first_fast
from tests.support.world import Document, World

POLICIES = {
    "no policy": "",
    "some rows": "create policy part on {table} for all using (ctid < '(0,3)')",
    "every row": "create policy full_view on {table} for all using (true)",  # until somebody changes it
}


def _poll(document: Document) -> None:
    document["source"] |= {"capture": "poll", "poll_interval": "200ms"}


def _secure(database: Database, table: str, policy: str = "no policy") -> None:
    """Producers may go on."""
    database.execute(f"alter table {table} enable row level security")
    database.execute(f"create policy producers on {table} for insert with check (true)")
    if POLICIES[policy]:
        database.execute(POLICIES[policy].format(table=table))


def _errors(world: World) -> list[tuple[str, str]]:
    environment = {
        "SOURCE_DSN": world.source.bridge_dsn,
        "WAREHOUSE_DSN": world.target.bridge_dsn,
        **world.environment,
    }
    found = examine(load(world.config, environment))
    return [(one.check, one.message) for one in found if one.level == "error"]


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("table", "capture", "policy"),
    [
        ("outbox.event", "slot", "no policy"),
        pytest.param(*("outbox.event", "slot", "some rows"), marks=pytest.mark.slow),
        ("outbox.event", "poll", "some rows"),
        pytest.param(*("outbox.event", "poll", "every row"), marks=pytest.mark.slow),
        ("outbox.stream", "slot", "no policy"),
        pytest.param(*("outbox.pruned", "poll", "no policy"), marks=pytest.mark.slow),
    ],
)
def test_row_security_of_the_source_halts_and_doctor_says_so(
    world: World, table: str, capture: str, policy: str
) -> None:
    if capture == "poll":
        world.configure(_poll)
    with world.producer() as producer:
        for _ in range(10):
            producer.transaction(1)
    _secure(world.source, table, policy)
    bridge = world.bridge().start()
    body = bridge.wait_halted("row_security")
    assert table in body
    assert "bypassrls" in body
    assert ("row_security", table) in {(check, said.split()[3]) for check, said in _errors(world)}
    assert world.target.value("select count(*) from events.usage_limits") == 0
    world.source.execute(f"alter table {table} disable row level security")
    bridge.wait_ready()
    world.law()


@pytest.mark.parametrize(
    ("table", "capture"),
    [
        ("outbox.event", "slot"),
        pytest.param(*("outbox.event", "poll"), marks=pytest.mark.slow),
        ("outbox.stream", "slot"),
        pytest.param(*("outbox.pruned", "poll"), marks=pytest.mark.slow),
    ],
)
def test_row_security_that_is_switched_on_while_running_halts(world: World, table: str, capture: str) -> None:
    if capture == "poll":
        world.configure(_poll)
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.burst(20)
        world.caught_up()
        _secure(world.source, table)
        producer.burst(20)
        bridge.wait_halted("row_security")
        assert "fenced" not in "".join(bridge.lines)
        producer.burst(20)
        bridge.kill()
        bridge.start().wait_halted("row_security")
        world.source.execute(f"alter table {table} disable row level security")
        bridge.wait_ready()
    world.law()


def test_every_table_of_the_schema_is_refused_unless_the_role_bypasses_it(world: World) -> None:
    """What a script does that obeys a hosted service's advice."""
    tables = [
        row[0] for row in world.source.execute("select tablename from pg_tables where schemaname = 'outbox'")
    ]
    for table in tables:
        _secure(world.source, f"outbox.{table}")
    told = {said.split()[3] for check, said in _errors(world) if check == "row_security"}
    assert told == {f"outbox.{table}" for table in tables}
    bridge = world.bridge().start()
    bridge.wait_halted("row_security")
    world.source.execute("alter role outbox_bridge bypassrls")
    try:
        bridge.wait_ready()
        assert _errors(world) == []
        world.law()
    finally:
        world.source.execute("alter role outbox_bridge nobypassrls")


@pytest.mark.parametrize("arguments", first_fast(("prove",), ("prune",), ("recover", "--accept-source")))
def test_a_command_that_row_security_refuses_does_not_ask_for_a_grant(
    world: World, arguments: tuple[str, ...]
) -> None:
    world.applied_some()
    for table in ("outbox.event", "outbox.pruned", "outbox.stream"):
        _secure(world.source, table)
    ran = world.run(*arguments)
    said = ran.stdout + ran.stderr
    assert ran.returncode not in (0, 2), said
    assert "row-level security" in said, said
    assert "grant" not in said, said


def test_row_security_of_the_ledger_is_told(world: World) -> None:
    _secure(world.target, "bridge.checkpoint")
    assert [check for check, _ in _errors(world)][:1] == ["row_security"]
    bridge = world.bridge().start()
    bridge.wait_halted("row_security")
    world.target.execute("alter table bridge.checkpoint disable row level security")
    bridge.wait_ready()
    world.law()


def test_row_security_behind_a_view_halts(world: World) -> None:
    """A view shows what its owner may see."""
    world.source.execute(
        """
        create role warden nologin;
        grant usage on schema outbox to warden;
        grant select on outbox.event to warden;
        create schema mine authorization warden;
        grant usage on schema mine to outbox_bridge;
        create view mine.events as select * from outbox.event;
        alter view mine.events owner to warden;
        grant select on mine.events to outbox_bridge;
        alter table outbox.event enable row level security;
        create policy producers on outbox.event for insert with check (true);
        create policy part on outbox.event for select to warden using (ctid < '(0,3)');
        """
    )
    names = ["id", "seq", "xid", "type", "key", "payload", "occurred_at"]

    def use_view(document: Document) -> None:
        _poll(document)
        document["source"] |= {"table": "mine.events", "columns": {name: name for name in names}}

    world.configure(use_view)
    try:
        with world.producer() as producer:
            producer.burst(10)
        assert "row_security" in {check for check, _ in _errors(world)}
        bridge = world.bridge().start()
        bridge.wait_halted("row_security")
        world.source.execute("alter table outbox.event disable row level security")
        bridge.wait_ready()
        world.law()
        bridge.terminate()
    finally:
        with psycopg.connect(world.source.dsn, autocommit=True) as owner:
            owner.execute("drop owned by warden cascade")
            owner.execute("drop role warden")
