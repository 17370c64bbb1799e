"""The outbox goes to another cluster: by dump and restore, by native replication. The runbooks of docs/operations.md
("Move the source", "Blue/green"), step by step; each ends in the conservation law."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from bridge.postgres.schema import install_source
from tests.integration.test_foreign_xids import burn
from tests.support.fixes import line_in
from tests.support.servers import Database, EmbeddedServer, Servers, Workspace, drop_database
from tests.support.variants import first_fast
from tests.support.world import World, make_database, until

pytestmark = [pytest.mark.data_directory, pytest.mark.timeout(600)]


@pytest.fixture
def elsewhere() -> Iterator[EmbeddedServer]:
    """Another cluster, with the roles and nothing else. The rig's other clusters are copies of one initdb."""
    with Workspace() as workspace:
        server = EmbeddedServer(workspace, "elsewhere").init().start()
        drop_database(make_database(server, "roles", "source"))
        yield server


@pytest.fixture
def twin(servers: Servers) -> Iterator[EmbeddedServer]:
    """Another cluster with the same system identifier, as of containers made from one image."""
    server = servers.private("twin")
    assert isinstance(server, EmbeddedServer)
    drop_database(make_database(server, "roles", "source"))
    yield server
    server.discard()


def next_xid(database: Database) -> int:
    return int(database.value("select pg_snapshot_xmax(pg_current_snapshot())::text"))


def restored(database: Database, server: EmbeddedServer, *options: str) -> Database:
    """The database as pg_dump brings it to that server."""
    assert isinstance(database.server, EmbeddedServer)
    copy = Database(server, database.name)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f'create database "{database.name}"'.encode())
    server.load(database.name, database.server.dump(database.name, *options))
    return copy


def overtake(database: Database, xid: int) -> None:
    """Give out xids until this one is past."""
    with database.connect() as connection:
        burn(connection, max(0, xid - next_xid(database)) + 100)


@pytest.mark.fault(79)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.parametrize("counter", first_fast("ahead", "behind"))
def test_a_new_stream_on_a_restored_outbox_applies_every_row_once(
    world: World, source_cluster: EmbeddedServer, elsewhere: EmbeddedServer, capture: str, counter: str
) -> None:
    old = world.source
    with old.connect() as owner:
        burn(owner, 3000)
    with world.producer() as producer:
        producer.transaction(10)
    world.source = restored(old, elsewhere)
    if counter == "ahead":
        overtake(world.source, next_xid(old))
    else:
        assert next_xid(world.source) + 1000 < next_xid(old)
    world.configure(lambda document: document["source"].update(capture=capture))
    world.command("doctor")
    world.bridge().start().wait_ready()
    with world.producer("two") as producer:
        producer.transaction(3)
    world.law()
    goes_on(world, old, capture)
    world.command("prune")


@pytest.mark.fault(79)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.parametrize("counter", first_fast("ahead", "behind"))
def test_an_outbox_that_moves_by_dump_and_restore_goes_on_exactly(
    world: World, source_cluster: EmbeddedServer, elsewhere: EmbeddedServer, capture: str, counter: str
) -> None:
    moves(world, elsewhere, capture, counter, "other_system")


@pytest.mark.slow
@pytest.mark.fault(79)
@pytest.mark.parametrize("counter", first_fast("ahead", "behind"))
def test_an_outbox_that_moves_to_a_cluster_of_the_same_image_goes_on_exactly(
    world: World, source_cluster: EmbeddedServer, twin: EmbeddedServer, counter: str
) -> None:
    moves(world, twin, "slot", counter, "other_system")  # the database is another one of it


@pytest.mark.slow
@pytest.mark.fault(79)
def test_an_outbox_that_moves_twice_goes_on_exactly(
    world: World, source_cluster: EmbeddedServer, elsewhere: EmbeddedServer, twin: EmbeddedServer
) -> None:
    """The second move finds every row by the xid that it was placed by in the first."""
    moves(world, elsewhere, "slot", "behind", "other_system")
    for bridge in world.bridges:
        bridge.kill()
    moves(world, twin, "slot", "ahead", "other_system")


def moves(world: World, there: EmbeddedServer, capture: str, counter: str, reason: str) -> None:
    """docs/operations.md, "Move the source to another cluster"."""
    world.configure(lambda document: document["source"].update(capture=capture))
    old = world.source
    with old.connect() as owner:
        burn(owner, 3000)
    bridge = world.bridge().start()
    bridge.wait_ready()
    with world.producer() as producer:
        producer.transaction(7)
        world.caught_up()
        bridge.kill()  # it need not end in peace: what is applied and above the floor is listed
        producer.transaction(2)
        producer.transaction(2)
    world.source = restored(old, there)
    if counter == "ahead":
        overtake(world.source, next_xid(old))
    with world.producer("two") as producer, world.source.connect() as owner:
        producer.transaction(3)
        # Changed since: the version of the row is younger than its xid, restored or not, applied or not.
        owner.execute("update outbox.event set headers = '{}' where seq % 2 = 0")
        producer.transaction(2)
    bridge = world.bridge().start()
    adopt = line_in(bridge.wait_halted(reason), "bridge recover --adopt-outbox")
    bridge.terminate()
    assert "outbox_restored" in world.command("doctor", code=1)
    assert "another cluster" in world.command("prune")
    assert "will be applied       9" in world.command("recover", "--adopt-outbox", "--dry-run")
    said = world.typed(adopt)
    assert "will be applied       9" in said
    _, owners, statement = said.partition("before the next move, as the outbox's owner:\n")
    if owners:  # rows are ahead of this cluster's counter
        world.source.execute(statement)
    world.bridge().start().wait_ready()
    world.law()
    goes_on(world, old, capture)
    world.command("doctor")


def goes_on(world: World, old: Database, capture: str) -> None:
    """Also once the old cluster's xids are this one's own as well, and by the table."""
    overtake(world.source, next_xid(old))
    with world.producer("three") as producer:
        producer.transaction(3)
    if capture == "slot":
        world.drop_slot()
    world.law()
    world.command("prove")


@pytest.mark.fault(79)
def test_accepting_a_restored_source_from_now_applies_nothing_twice(
    world: World, source_cluster: EmbeddedServer, elsewhere: EmbeddedServer
) -> None:
    old = world.source
    with old.connect() as owner:
        burn(owner, 3000)
    world.applied_some(5)
    world.source = restored(old, elsewhere)
    world.command("recover", "--accept-source")
    world.bridge().start().wait_ready()
    with world.producer("two") as producer:
        producer.transaction(3)
    world.law()
    overtake(world.source, next_xid(old))
    world.drop_slot()
    with world.producer("three") as producer:
        producer.transaction(3)
    world.law()


@pytest.mark.fault(80)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.slow
def test_blue_green_by_native_replication_goes_on_exactly(
    world: World, source_cluster: EmbeddedServer, elsewhere: EmbeddedServer, capture: str
) -> None:
    world.configure(lambda document: document["source"].update(capture=capture))
    blue = world.source
    with blue.connect() as owner:
        burn(owner, 3000)
        owner.execute("create publication green for table outbox.event, rig.truth, crm.customer")
    bridge = world.bridge().start()
    bridge.wait_ready()
    with world.producer() as producer:
        producer.transaction(6)
        world.caught_up()
        green = restored(blue, elsewhere, "--schema-only", "--no-publications")
        with green.connect() as owner:
            # --schema-only brings no rows of schema outbox: bridge install writes where the xids are from.
            install_source(owner)
            subscription = psycopg.sql.SQL(
                "create subscription green connection {} publication green"
            ).format(psycopg.sql.Literal(blue.dsn))
            owner.execute(subscription)
        producer.transaction(4)
        world.caught_up()
        bridge.terminate()
        producer.transaction(5)  # nobody has applied these
    count = "select count(*) from outbox.event"
    until(lambda: green.value(count) == blue.value(count), "green has every row")
    green.execute("drop subscription green")
    # The customer's other sequences: replication does not bring them.
    green.execute("select setval(pg_get_serial_sequence('rig.truth', 'n'), max(n)) from rig.truth")
    world.source = green
    with world.producer("two") as producer:
        producer.transaction(3)
    assert green.value(
        "select min(seq) from (select seq from outbox.event order by xid desc limit 3) as e"
    ) > (blue.value("select max(seq) from outbox.event"))
    bridge = world.bridge().start()
    body = bridge.wait_halted("stream_name_taken")  # replication brings no registration
    bridge.terminate()
    old = line_in(body, "bridge recover --adopt-outbox --old-source")
    unnamed = world.run("recover", "--adopt-outbox")
    assert (unnamed.returncode, old in unnamed.stderr) == (1, True), unnamed.stderr
    wrong = world.run("recover", "--adopt-outbox", "--old-source", green.bridge_dsn)
    assert "belongs to another source" in wrong.stderr
    said = world.typed(old, fill={"DSN": f"'{blue.bridge_dsn}'"})
    assert "will be applied       8" in said
    world.bridge().start().wait_ready()
    world.law()
    world.command("prove")


@pytest.mark.fault(80)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
def test_a_bridge_on_the_subscriber_applies_what_the_publisher_writes(
    world: World, source_cluster: EmbeddedServer, elsewhere: EmbeddedServer, capture: str
) -> None:
    """Rows of the first copy, rows that follow, and updates of the publisher, which are no events."""
    world.configure(lambda document: document["source"].update(capture=capture))
    publisher = world.source
    with world.producer() as producer, publisher.connect() as owner:
        producer.transaction(3)
        burn(owner, 2000)
        owner.execute("create publication green for table outbox.event, rig.truth, crm.customer")
        subscriber = restored(publisher, elsewhere, "--schema-only", "--no-publications")
        with subscriber.connect() as own:
            install_source(own)
        world.source = subscriber
        world.bridge().start().wait_ready()
        subscription = psycopg.sql.SQL("create subscription green connection {} publication green")
        with subscriber.connect() as own:
            own.execute(subscription.format(psycopg.sql.Literal(publisher.dsn)))
        count = "select count(*) from events.usage_limits"
        until(lambda: world.target.value(count) == 3, "the copy arrives")
        producer.transaction(4)
        until(lambda: world.target.value(count) == 7, "what follows arrives")
        own_xids = "select array_agg(xid order by seq) from outbox.event"
        before = subscriber.value(own_xids)
        owner.execute("update outbox.event set headers = '{}'")
        changed = "select count(*) from outbox.event where headers = '{}'"
        until(lambda: subscriber.value(changed) == 7, "the update arrives")
        assert subscriber.value(own_xids) == before
        if capture == "slot":
            world.drop_slot()
        producer.transaction(2)
        until(lambda: world.target.value(count) == 9, "what comes later arrives")
        assert world.target.value("select count(*) from rig.effects") == 9
        subscriber.execute("drop subscription green")


@pytest.mark.fault(80)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.slow
def test_an_own_outbox_that_is_replicated_needs_the_trigger(
    world: World, source_cluster: EmbeddedServer, elsewhere: EmbeddedServer, capture: str
) -> None:
    publisher = world.source
    publisher.execute(
        "create table public.orders (id uuid primary key default gen_random_uuid(), type text not null,"
        " payload jsonb not null, seq bigint not null generated always as identity,"
        " xid xid8 not null default pg_current_xact_id())"
    )
    publisher.execute("grant select on public.orders to outbox_bridge")
    publisher.execute("create publication green for table public.orders")
    with publisher.connect() as owner:
        burn(owner, 3000)
    world.source = restored(publisher, elsewhere, "--schema-only", "--no-publications")
    with world.source.connect() as owner:
        install_source(owner, "own", "public.orders")
        owner.execute(
            psycopg.sql.SQL("create subscription green connection {} publication green").format(
                psycopg.sql.Literal(publisher.dsn)
            )
        )
    columns = {name: name for name in ("id", "type", "payload", "seq", "xid")}
    world.configure(
        lambda document: document["source"].update(
            capture=capture, slot="own", table="public.orders", columns=columns
        )
    )
    bridge = world.bridge().start()
    bridge.wait_halted("foreign_xids")
    [finding] = [one for one in world.json("doctor", code=1)["checks"] if one["check"] == "foreign_xids"]
    world.source.typed(finding["fix"])
    bridge.wait_ready()
    event = "insert into public.orders (type, payload) values ('usage.limit_reached', '{}')"
    for _ in range(3):
        publisher.execute(event)
    came = "select count(*) from bridge.dead_letter"  # the contract wants more of its payload
    until(lambda: world.target.value(came) == 3, "what is replicated arrives")
    world.source.execute("drop subscription green")
    world.source.execute(event)  # its seq is behind theirs
    until(lambda: world.target.value(came) == 4, "what follows arrives")
    assert world.target.value("select count(distinct event_seq) from bridge.dead_letter") == 4
