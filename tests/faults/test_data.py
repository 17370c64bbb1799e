"""Data at its limits: keys, numbers, encodings, and rows to enrich with."""

from __future__ import annotations

import json
import signal
import uuid
from typing import Any

import psycopg
import pytest

from tests.support import truth
from tests.support.servers import Database, drop_database
from tests.support.truth import USAGE_COLUMNS, Unit
from tests.support.world import IMPATIENT, World, fill, until

GOOD = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 5, "plan": "pro"}


@pytest.mark.fault(55, 61, 64, 65)
def test_numbers_ids_and_positions_at_their_limits(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    numbers = [
        "9007199254740993",
        "18446744073709551617",
        "0.12345678901234567890123",
        "1e-30",
        "-0.0",
        "1E+25",
    ]
    with world.producer() as producer:
        ids = []
        for number in numbers:
            text = json.dumps({**GOOD, "used": 0}).replace('"used": 0', f'"used": {number}')
            with producer.connection.transaction():
                ids.append(_insert(producer.connection, text))
        world.caught_up()
        for event, number in zip(ids, numbers, strict=True):
            row = "from events.usage_limits where event_id = %s"
            same = f"select used = %s::numeric and payload->'used' = %s::jsonb {row}"
            assert world.target.value(same, [number, number, event]), number
        producer.burst(1500)  # one transaction: all at one position
        for _ in range(3):
            producer.duplicate()
        world.source.execute("alter table outbox.event alter column seq restart with 9223372036854775000")
        producer.transaction(5)
        world.drop_slot()
        producer.transaction(5)
        world.caught_up()
    assert bridge.running
    world.law()


def _insert(connection: psycopg.Connection[tuple[Any, ...]], payload: str) -> uuid.UUID:
    event = uuid.uuid4()
    for table, column in (("outbox.event", "id"), ("rig.truth", "event_id")):
        connection.execute(
            f"insert into {table} ({column}, type, payload) values (%s, 'usage.limit_reached', %s)".encode(),
            [event, payload],
        )
    return event


LATEST = Unit(
    pipeline="latest",
    destination="latest",
    table="events.latest",
    columns={"used": USAGE_COLUMNS["used"]},
    latest_of="t.payload->>'customer_id'",
    ordered=False,
)


@pytest.mark.fault(56)
def test_many_events_of_one_key_in_a_batch_leave_the_last(world: World) -> None:
    with world.target.connect() as owner:
        owner.execute(
            "create table events.latest (customer_id text primary key, event_id uuid, used numeric, payload jsonb);"
            " grant select, insert, update on events.latest to outbox_bridge"
        )
        truth.watch(owner, "events.latest")
    columns = {
        "customer_id": "$event.customer_id",
        "event_id": "$meta.id",
        "used": "$event.used",
        "payload": "$event",
    }
    latest = {"connection": "warehouse", "table": "events.latest", "mode": "upsert", "key": ["customer_id"]}
    world.configure(
        lambda c: c["pipelines"].update(
            latest={
                "event": "usage.limit_reached",
                "destinations": {"latest": {**latest, "columns": columns}},
            }
        )
    )
    with world.producer() as producer:
        for _ in range(20):
            producer.transaction(
                payloads=[{**GOOD, "customer_id": f"cus_{n % 3}", "used": n} for n in range(10)]
            )
        world.bridge().start().wait_ready()
        world.caught_up()
        for _ in range(20):
            producer.transaction(
                payloads=[{**GOOD, "customer_id": f"cus_{n % 3}", "used": n} for n in range(7)]
            )
        world.caught_up()
        [last] = producer.transaction(payloads=[{**GOOD, "customer_id": "cus_0", "used": 77}])
        world.caught_up()
    assert world.target.value("select event_id = %s from events.latest where customer_id = 'cus_0'", [last])
    world.law(LATEST)
    world.law()


@pytest.mark.fault(59)
def test_json_nested_too_deep_is_refused_at_the_producers_insert(world: World) -> None:
    payload = '{"a":' * 20_000 + "1" + "}" * 20_000
    with (
        psycopg.connect(world.source.producer_dsn) as producer,
        pytest.raises(psycopg.errors.StatementTooComplex),
    ):
        producer.execute("insert into outbox.event (type, payload) values ('t', %s)", [payload])


@pytest.mark.fault(62)
def test_a_source_in_latin1(world: World) -> None:
    made = Database(world.source.server, f"{world.source.name}_l1")
    world.source.execute(f"create database {made.name} template template0 encoding 'LATIN1' locale 'C'")
    try:
        fill(made, "source")
        with psycopg.connect(made.dsn, client_encoding="utf8") as connection:
            world.source = made
            bridge = world.bridge().start().wait_ready()
            for text in ("naïve", "Ærøskøbing ÿ", "plain"):
                with connection.transaction():
                    _insert(connection, json.dumps({**GOOD, "note": text}, ensure_ascii=False))
            connection.commit()
            world.caught_up()
            rows = world.target.execute(
                "select payload->>'note' from events.usage_limits where payload ? 'note'"
            )
            assert {"naïve", "Ærøskøbing ÿ", "plain"} <= {row[0] for row in rows}
            bridge.terminate()
    finally:
        drop_database(made)


@pytest.mark.fault(62)
@pytest.mark.parametrize("capture", ["slot", "poll"])
def test_bytes_that_are_not_utf8_in_an_sql_ascii_source_are_a_dead_letter(world: World, capture: str) -> None:
    """SQL_ASCII: the server stores what it is given, and refuses to send what is invalid as UTF-8."""
    made = Database(world.source.server, f"{world.source.name}_ascii")
    world.source.execute(f"create database {made.name} template template0 encoding 'SQL_ASCII' locale 'C'")
    world.source.execute(f"alter database {made.name} set client_encoding = 'UTF8'")
    world.configure(lambda c: c["source"].update(capture=capture, poll_interval="100ms"))
    try:
        world.source = fill(made, "source")
        with made.connect() as connection:
            bridge = world.bridge().start()
            bridge.wait_log("streaming" if capture == "slot" else "polling")
            _insert(connection, json.dumps({**GOOD, "note": "Ærøskøbing"}, ensure_ascii=False))
            with connection.transaction():
                _insert(connection, json.dumps(GOOD))
                event = uuid.uuid4()
                connection.execute(
                    "insert into outbox.event (id, type, payload)"
                    " values (%s, 'usage.limit_reached', convert_from(%s, 'SQL_ASCII')::jsonb)",
                    [event, json.dumps({**GOOD, "note": "?"}).encode().replace(b"?", b"\xff\xfe")],
                )
                _insert(connection, json.dumps(GOOD))
            world.caught_up()
            assert [(letter, code) for letter, code, _ in world.dead_letters()] == [(str(event), "payload")]
            world.law()
            assert bridge.terminate() == 0
    finally:
        drop_database(made)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault(63)
def test_a_payload_of_100_mb_arrives_and_one_over_the_limit_is_a_dead_letter(
    world: World,
) -> None:
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(3)
        large = _large(world, 100 << 20)
        producer.transaction(3)
        world.caught_up(deadline=120)
        assert [(event, code) for event, code, _ in world.dead_letters()] == [(str(large), "too_large")]
        kept = "select payload is null and raw is null from bridge.dead_letter"
        assert world.target.value(kept)  # the outbox has it, the letter says which event it is
        world.law(deadline=120)
        world.configure(lambda c: c["source"].update(max_payload="128MiB"))
        bridge.signal(signal.SIGHUP)
        bridge.wait_log("reloaded")
        again = _large(world, 100 << 20)
        producer.transaction(3)
        world.caught_up(deadline=240)
    assert len(world.dead_letters()) == 1
    size = "select octet_length(payload ->> 'note') from events.usage_limits where event_id = %s"
    assert world.target.value(size, [again]) == 100 << 20
    world.law(deadline=240)


def _large(world: World, size: int) -> uuid.UUID:
    """One event with a text of so many bytes, made by the server."""
    event = uuid.uuid4()
    with world.source.connect() as app, app.transaction():
        for table, column in (("outbox.event", "id"), ("rig.truth", "event_id")):
            app.execute(
                f"insert into {table} ({column}, type, payload) select %s, 'usage.limit_reached',"
                " %s::jsonb || jsonb_build_object('note', repeat('0123456789abcdef', %s))".encode(),
                [event, json.dumps(GOOD), size // 16],
            )
    return event


@pytest.mark.fault("66b")
@pytest.mark.parametrize("capture", ["slot", "poll"])
def test_a_customer_made_in_the_events_own_transaction_is_found(world: World, capture: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["source"].update(capture=capture, poll_interval="50ms")
        document["pipelines"]["usage-limit-hits"]["steps"][0]["enrich.entity"]["missing"] = "dead"

    world.configure(change)
    world.bridge().start().wait_ready()
    with world.source.connect() as app:
        for n in range(60):
            with app.transaction():
                app.execute("insert into crm.customer values (%s, %s, 'new', '2027-01-01')", [f"new_{n}", n])
                _insert(app, json.dumps({**GOOD, "customer_id": f"new_{n}"}))
    with world.producer() as producer:
        [missing] = producer.transaction(payloads=[{**GOOD, "customer_id": "nobody"}])
    world.caught_up()
    assert [(event, code) for event, code, _ in world.dead_letters()] == [(str(missing), "missing_entity")]
    assert world.target.value("select count(*) from events.usage_limits where csm = 'new'") == 60
    world.law()


@pytest.mark.fault(69)
def test_what_events_are_enriched_with_is_closed_slow_or_broken(world: World) -> None:
    bridge = world.bridge(options=IMPATIENT).start().wait_ready()
    steps = world.document["pipelines"]["usage-limit-hits"]["steps"][0]["enrich.entity"]
    assert steps["cache"] == "5m"
    with world.producer() as producer, world.source.connect() as owner:
        producer.transaction(payloads=[{**GOOD, "customer_id": "cus_1"}])
        world.caught_up()
        owner.execute("revoke select on crm.customer from outbox_bridge")
        producer.transaction(payloads=[{**GOOD, "customer_id": "cus_300"}])
        body = bridge.wait_halted("enrich_failed")
        assert "customer" in body
        owner.execute("grant select on crm.customer to outbox_bridge")
        bridge.wait_ready()
        world.caught_up()
        sender = "select active_pid from pg_replication_slots where slot_name = %s"
        before = world.source.value(sender, [world.slot])
        with owner.transaction():  # longer than the sender's patience
            owner.execute("lock table crm.customer in access exclusive mode")
            producer.transaction(payloads=[{**GOOD, "customer_id": "cus_301"}])
            asked = "select count(*) from pg_locks where not granted and relation = 'crm.customer'::regclass"
            until(lambda: world.source.value(asked), "the lookup waits")
            owner.execute("select pg_sleep(3.5)")
        world.caught_up()
        assert world.source.value(sender, [world.slot]) == before, bridge.log_tail()
        with owner.transaction():  # longer than the lookup's own statement_timeout would be a retry
            owner.execute("alter table crm.customer rename to moved")
        producer.transaction(payloads=[{**GOOD, "customer_id": "cus_302"}])
        bridge.wait_halted("enrich_failed")
        owner.execute("alter table crm.moved rename to customer")
        bridge.wait_ready()
    assert world.dead_letters() == []
    world.law()


@pytest.mark.fault(34)
def test_a_slot_that_timed_out_idle_is_replaced(world: World, source_cluster: Any) -> None:
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer, world.source.connect() as owner:
        producer.transaction(3)
        world.caught_up()
        bridge.kill()
        if owner.info.server_version >= 180000:
            owner.execute("alter system set idle_replication_slot_timeout = '1s'")
            owner.execute("select pg_reload_conf()")
        else:  # before 18 nothing times a slot out: somebody drops it
            world.drop_slot()
        producer.transaction(5)

        def gone() -> bool:
            owner.execute("checkpoint")
            lost = "select count(*) from pg_replication_slots where wal_status <> 'lost'"
            return owner.execute(lost).fetchone() == (0,)

        until(gone, "the slot is invalidated")
        owner.execute("alter system reset all")
        owner.execute("select pg_reload_conf()")
        bridge.start().wait_ready()
        world.caught_up()
    assert int(world.checkpoint("slot_incarnation")) == 2
    world.law()


def test_the_database_of_a_test_is_utf8(source: Database) -> None:
    """Else the LATIN1 test would compare a thing with itself."""
    assert source.value("show server_encoding") == "UTF8"
