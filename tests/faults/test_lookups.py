"""The database that events are enriched from is one of its own: it is down, silent, or behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bridge.demo.world import CRM
from tests.support.proxy import FaultProxy
from tests.support.servers import Database, create_database, drop_database
from tests.support.world import IMPATIENT, World, until

GOOD = {"metric": "seats", "limit": 10, "used": 5, "plan": "pro"}


@pytest.fixture
def replica(world: World) -> Iterator[Database]:
    """A copy of the customers, elsewhere."""
    made = create_database(world.target.server, f"{world.target.name}_crm")
    with made.connect() as connection:
        connection.execute(CRM)
    yield made
    for bridge in world.bridges:
        bridge.close()
    drop_database(made)


@pytest.fixture
def crm(world: World, replica: Database, proxy_to: Callable[[str], FaultProxy]) -> FaultProxy:
    """The link to it; the configuration looks customers up over it and waits for those that are not there."""
    proxy = proxy_to(replica.bridge_dsn)

    def change(document: dict[str, dict[str, object]]) -> None:
        document["connections"]["crm"] = {"type": "postgres", "dsn": "${CRM_DSN}"}
        [step] = document["pipelines"]["usage-limit-hits"]["steps"]  # type: ignore[index]
        step["enrich.entity"].update({"from": "crm", "missing": "retry", "cache": "1s"})

    world.configure(change)
    return proxy


def _of(customer_id: str) -> dict[str, object]:
    return {**GOOD, "customer_id": customer_id}


@pytest.mark.fault(69)
def test_a_lookup_database_that_is_down_or_silent_is_waited_for_in_order(
    world: World, crm: FaultProxy
) -> None:
    bridge = world.bridge(CRM_DSN=crm.dsn).start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
        for number, fault in enumerate((crm.refuse, crm.blackhole)):
            fault()
            crm.reset_all()
            before, lines = world.applied(), len(bridge.lines)
            for used in range(3):
                producer.transaction(payloads=[{**_of(f"cus_{300 + number}"), "used": used}], key="one")
            bridge.wait_log("enrich_failed", since=lines, deadline=60)
            assert world.applied() == before
            assert world.dead_letters() == []
            crm.clear()
            world.caught_up(deadline=60)
    assert world.dead_letters() == []
    world.law()


@pytest.mark.fault(69)
def test_a_lookup_database_that_lags_is_asked_until_it_has_the_row(
    world: World, replica: Database, crm: FaultProxy
) -> None:
    """A replica: the customer is at the source, and comes there later. Its event is parked, others go on."""
    replica.execute("delete from crm.customer where customer_id = 'cus_400'")
    bridge = world.bridge(CRM_DSN=crm.dsn).start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        [parked] = producer.transaction(payloads=[_of("cus_400")], key="parked")
        producer.transaction(5)
        world.caught_up()
        assert [(event, code) for event, code, _ in world.dead_letters()] == [(str(parked), "missing_entity")]
        world.law()
        row = world.source.value("select to_jsonb(c) from crm.customer c where customer_id = 'cus_400'")
        replica.execute(
            "insert into crm.customer select * from jsonb_populate_record(null::crm.customer, %s::jsonb)",
            [json.dumps(row)],
        )
        until(lambda: not world.dead_letters(), "the parked event is applied by itself", 60)
    world.law()


@pytest.mark.fault(69)
def test_a_row_that_changed_is_seen_once_its_time_in_the_cache_is_over(
    world: World, replica: Database, crm: FaultProxy
) -> None:
    world.bridge(CRM_DSN=crm.dsn).start().wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(payloads=[_of("cus_410")])
        world.caught_up()
        replica.execute("update crm.customer set csm = 'renamed' where customer_id = 'cus_410'")

        def seen() -> bool:
            producer.transaction(payloads=[_of("cus_410")])
            world.caught_up()
            return bool(world.target.value("select count(*) from events.usage_limits where csm = 'renamed'"))

        until(seen, "the new value")
    assert world.dead_letters() == []


def _columns(document: dict[str, Any]) -> dict[str, object]:
    found: dict[str, object] = document["pipelines"]["usage-limit-hits"]["destinations"]["events"]["columns"]
    return found


@pytest.mark.fault(69)
def test_a_column_that_the_lookup_does_not_have_is_never_written_as_null(world: World) -> None:
    """Misspelt before the first event, and lost by the view behind `select *` while the bridge runs."""
    with world.source.connect() as owner:
        owner.execute(
            "create view crm.known as select * from crm.customer; grant select on crm.known to outbox_bridge"
        )

        def change(document: dict[str, dict[str, object]]) -> None:
            pipeline = document["pipelines"]["usage-limit-hits"]
            query = "select * from crm.known where customer_id = any(%(keys)s)"
            pipeline["steps"][0]["enrich.entity"].update(sql=query, cache="0s")  # type: ignore[index]
            _columns(document)["csm"] = "$customer.cms"

        world.configure(change)
        bridge = world.bridge(options=IMPATIENT).start()
        body = bridge.wait_halted("lookup_column")
        assert "$customer.cms would be NULL for every event" in body
        assert "did you mean csm?" in body
        with world.producer() as producer:
            producer.transaction(3)
            bridge.wait_halted("lookup_column")
            assert world.applied() == 0
            world.configure(lambda document: _columns(document).update(csm="$customer.csm"))
            bridge.signal(signal.SIGHUP)
            bridge.wait_ready()
            world.caught_up()
            world.configure(lambda document: _columns(document).update(csm="$customer.cms"))
            bridge.signal(signal.SIGHUP)
            refused = bridge.wait_log("reload refused")
            assert "did you mean csm?" in refused
            status = world.json("status", code=1)
            assert "$customer.cms would be NULL" in status["reload_refused"]["message"]
            producer.transaction(3)
            world.caught_up()  # by the old configuration
            world.configure(lambda document: _columns(document).update(csm="$customer.csm"))
            owner.execute(
                "drop view crm.known; create view crm.known as select customer_id, mrr, renewal from crm.customer;"
                " grant select on crm.known to outbox_bridge"
            )
            producer.transaction(3)
            bridge.wait_halted("lookup_column")
            owner.execute(
                "create or replace view crm.known as select customer_id, mrr, renewal, csm from crm.customer"
            )
            bridge.wait_ready()
            world.caught_up()
    assert world.target.value("select count(*) from events.usage_limits where csm is null") == 0
    assert world.dead_letters() == []
    world.law()
