"""Entities that events keep, on real servers: merged, in order, over crashes, with dead letters of their own."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from bridge.planning.entity import Keep, folded
from bridge.planning.lookup import Lookup, LookupSpec
from bridge.postgres.entities import Enricher, EntityStore
from bridge.protocol.events import Event
from tests.integration.ops.conftest import letters, rows
from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database, drop_database
from tests.support.world import World, make_database, until

Start = Callable[[], BridgeProcess]
Said = tuple[str, dict[str, Any]]

CONFIG = """
version: 1
source: { dsn: "${SOURCE_DSN}", capture: slot, poll_interval: 50ms }
connections:
  warehouse: { type: postgres, dsn: "${WAREHOUSE_DSN}" }
events:
  customer.updated: { customer_id: string, mrr: "number?", csm: "string?", renewal: "string?" }
entities:
  customer: { kept_by: events, cache: 1h }
pipelines:
  usage:
    event: usage.limit_reached
    steps:
      - enrich.entity: { entity: customer, key: $event.customer_id }
    destinations:
      events:
        connection: warehouse
        table: events.usage_limits
        mode: upsert
        key: [event_id]
        columns:
          event_id: $meta.id
          customer_id: $event.customer_id
          used: $event.used
          mrr: $customer.mrr
          csm: $customer.csm
          renewal: $customer.renewal
          payload: $event
  customers:
    event: customer.updated
    steps:
      - upsert.entity:
          entity: customer
          key: $event.customer_id
          fields: { mrr: $event.mrr, csm: $event.csm, renewal: $event.renewal }
admin: { listen: "${BRIDGE_ADMIN:-127.0.0.1:8377}" }
"""


@pytest.fixture
def kept(world: World) -> World:
    """The world, with a configuration in which events keep customers, and usage is enriched with them."""
    world.text = CONFIG
    return world


@pytest.fixture
def second(target: Database) -> Iterator[Database]:
    """Another warehouse, with a ledger and a stream of its own."""
    database = make_database(target.server, "second_warehouse", "target")
    yield database
    drop_database(database)


def customer(customer_id: str | None = "cus_1", **fields: Any) -> Said:
    return "customer.updated", {"customer_id": customer_id, **fields}


def usage(used: int) -> Said:
    return "usage.limit_reached", {"customer_id": "cus_1", "used": used}


def say(source: Database, *events: Said) -> list[str]:
    """These events in one transaction, and so in one batch; their ids."""
    with source.connect() as connection:
        found = [
            connection.execute(
                "select outbox.emit(%s, %s::jsonb)::text", [kind, json.dumps(payload)]
            ).fetchone()
            for kind, payload in events
        ]
        connection.commit()
    return [row[0] for row in found if row is not None]


def enriched(target: Database) -> list[tuple[int, str | None, str | None, str | None]]:
    """(used, mrr, csm, renewal) of every row."""
    return [
        (int(used), mrr, csm, renewal)
        for used, mrr, csm, renewal in target.execute(
            "select used, mrr::text, csm, renewal::text from events.usage_limits order by used"
        )
    ]


def entity(source: Database, key: str = "cus_1") -> Any:
    """(fields, row version), None where there is none."""
    found = source.execute(
        "select fields, xmin::text from outbox.entity where entity = 'customer' and key = %s", [key]
    )
    return found[0] if found else None


@pytest.mark.parametrize("capture", ["slot", "poll"])
def test_an_event_is_enriched_with_what_earlier_events_said(
    kept: World, bridge: Start, source: Database, target: Database, capture: str
) -> None:
    kept.text = CONFIG.replace("capture: slot", f"capture: {capture}")
    running = bridge()
    first = customer(mrr=1490.10, csm="ada", renewal="2027-03-01")
    ids = say(source, usage(1), first, usage(2), customer(csm="eve"), usage(3))
    until(lambda: rows(target) == 3, "the first transaction")
    assert enriched(target) == [
        (1, None, None, None),
        (2, "1490.10", "ada", "2027-03-01"),
        (3, "1490.10", "eve", "2027-03-01"),
    ]
    say(source, usage(4))  # now the row is cached for an hour, and still:
    until(lambda: rows(target) == 4, "the cached row")
    say(source, customer(mrr=1500))
    say(source, usage(5))
    until(lambda: rows(target) == 5, "the row that the bridge itself wrote")
    assert enriched(target)[3:] == [
        (4, "1490.10", "eve", "2027-03-01"),
        (5, "1500.00", "eve", "2027-03-01"),
    ]
    assert running.terminate() == 0
    told = kept.command("explain", ids[1])
    assert "upsert.entity customer by $event.customer_id" in told
    assert "the pipeline has no destination: it maintains an entity" in told
    assert '"csm": "eve"' in kept.command("explain", ids[4])


@pytest.mark.parametrize("capture", ["slot", "poll"])
def test_a_bridge_killed_between_entity_and_commit_repeats_nothing(
    kept: World,
    bridge: Start,
    bridge_process: Callable[..., BridgeProcess],
    source: Database,
    capture: str,
) -> None:
    target = kept.target
    kept.text = CONFIG.replace("capture: slot", f"capture: {capture}")
    say(source, customer(mrr=1, csm="ada"), usage(1), customer(csm="eve"), usage(2))
    doomed = bridge_process(
        source=source.bridge_dsn,
        target=target.bridge_dsn,
        directory=kept.directory,
        config=kept.config,
        failpoints="entity.written=kill",
    ).start()
    assert doomed.wait() == -signal.SIGKILL, doomed.log_tail()
    before = entity(source)
    assert before[0] == {"mrr": 1, "csm": "eve"}
    assert rows(target) == 0
    bridge()
    until(lambda: rows(target) == 2, "the batch, planned again")
    assert entity(source) == before, "the batch wrote the row again"
    # Event 1 saw the newest word this time: as from any table, an enrichment is never older than its event.
    assert [row[:3] for row in enriched(target)] == [(1, "1.00", "eve"), (2, "1.00", "eve")]
    say(source, usage(3))
    until(lambda: rows(target) == 3, "the next event")
    assert enriched(target)[2][:3] == (3, "1.00", "eve")
    assert target.value("select count(*) from rig.effects") == 3


def test_rights_on_the_entities_that_are_missing_are_granted_as_printed(
    kept: World, bridge: Start, source: Database
) -> None:
    source.execute("revoke all on outbox.entity from outbox_bridge")
    running = kept.bridge().start()
    running.wait_log("streaming")
    say(source, customer(csm="eve"))
    running.wait_halted("privilege_missing")
    [problem] = kept.json("status", code=1)["problems"]
    source.typed(problem["hint"])
    until(lambda: entity(source) is not None, "the entity is kept")


def test_a_retried_dead_letter_of_an_entity_overwrites_nothing_newer(
    kept: World, bridge: Start, source: Database
) -> None:
    bridge()
    say(source, customer(mrr="oops", csm="bob"), customer(csm="eve"))
    until(lambda: letters(kept.target) == 1 and entity(source) is not None, "a letter and an entity")
    assert entity(source)[0] == {"csm": "eve"}
    assert "1  customers -> entity:customer  contract:" in kept.command("dead", "list")
    kept.text = CONFIG.replace('mrr: "number?"', 'mrr: "any?"')
    kept.command("dead", "retry", "--all", "--dry-run")
    assert (letters(kept.target), entity(source)[0]) == (1, {"csm": "eve"})
    assert "applied" in kept.command("dead", "retry", "--all")
    assert entity(source)[0] == {"mrr": "oops", "csm": "eve"}
    assert letters(kept.target) == 0


def test_what_the_source_refuses_to_keep_costs_that_event_alone(
    kept: World, bridge: Start, source: Database, target: Database
) -> None:
    source.execute("alter table outbox.entity add constraint good check (fields ->> 'csm' <> 'bad')")
    running = bridge()
    say(
        source,
        customer(csm="ada"),
        customer(csm="bad"),
        customer(mrr=1),
        customer("cus_2", csm="eve"),
        usage(1),
    )
    until(lambda: letters(target) == 1 and rows(target) == 1, "one letter, one row")
    assert (entity(source)[0], entity(source, "cus_2")[0]) == ({"csm": "ada", "mrr": 1}, {"csm": "eve"})
    ((destination, code, cause),) = target.execute("select destination, code, cause from bridge.dead_letter")
    assert (destination, code) == ("entity:customer", "23514")
    assert "bad" not in cause
    source.execute("alter table outbox.entity drop constraint good")
    kept.command("dead", "retry", "--all")
    assert entity(source)[0] == {"csm": "bad", "mrr": 1}
    assert running.running


def test_a_missing_right_halts_with_its_grant_and_nothing_is_lost(
    kept: World, bridge: Start, source: Database, target: Database
) -> None:
    source.execute("revoke update on outbox.entity from outbox_bridge")
    running = bridge()
    say(source, customer(csm="ada"), usage(1))
    halt = running.wait_log("halted")
    assert "privilege_missing" in halt
    assert "grant select, insert, update on outbox.entity" in halt
    assert rows(target) == 0
    source.execute("grant update on outbox.entity to outbox_bridge")
    until(lambda: rows(target) == 1, "it goes on by itself")
    assert enriched(target)[0][2] == "ada"


def test_rows_put_in_by_hand_are_older_than_any_event_and_may_be_deleted(
    kept: World, bridge: Start, source: Database, target: Database
) -> None:
    kept.text = CONFIG.replace(", cache: 1h", "")
    source.execute(
        "insert into outbox.entity (entity, key, fields) values ('customer', 'cus_1', %s)",
        ['{"csm": "bob", "mrr": 7}'],
    )
    bridge()
    say(source, usage(1), customer(csm="ada"), usage(2))
    until(lambda: rows(target) == 2, "two rows")
    source.execute("delete from outbox.entity where entity = 'customer' and key = 'cus_1'")
    say(source, usage(3))
    until(lambda: rows(target) == 3, "the third")
    assert [row[:3] for row in enriched(target)] == [(1, "7.00", "bob"), (2, "7.00", "ada"), (3, None, None)]


@pytest.mark.slow
def test_an_event_waits_for_the_one_that_says_who_its_customer_is(
    kept: World, bridge: Start, source: Database, target: Database
) -> None:
    kept.text = CONFIG.replace(
        "{ entity: customer, key: $event.customer_id }",
        "{ entity: customer, key: $event.customer_id, missing: retry }",
    )
    bridge()
    say(source, usage(1))
    until(lambda: letters(target) == 1, "it is parked")
    say(source, customer(csm="ada"), usage(2))
    until(lambda: rows(target) == 2 and letters(target) == 0, "it retried itself", 60)
    assert [row[:3] for row in enriched(target)] == [(1, None, "ada"), (2, None, "ada")]


def test_a_stream_sees_entities_although_their_own_stream_is_halted(
    kept: World, bridge_process: Callable[..., BridgeProcess], source: Database, second: Database
) -> None:
    target = kept.target
    connection = f'  second: {{ type: postgres, dsn: "{second.bridge_dsn}" }}\n'
    there = "      there: { connection: second, table: events.usage_limits, mode: upsert, key: [event_id] }\n"
    kept.text = CONFIG.replace("events:\n", f"{connection}events:\n", 1)
    kept.text = kept.text.replace("  customers:\n", f"{there}  customers:\n", 1)
    target.execute("revoke insert on events.usage_limits from outbox_bridge")
    halted = bridge_process(
        source=source.bridge_dsn, target=target.bridge_dsn, directory=kept.directory, config=kept.config
    ).start()
    halted.wait_log("privilege_missing")
    say(source, customer(mrr=1, csm="ada"), usage(1), customer(csm="eve"), usage(2), customer(None))
    until(lambda: rows(second) == 2, "the other stream's rows")
    assert [row[:3] for row in enriched(second)] == [(1, "1.00", "ada"), (2, "1.00", "eve")]
    before = entity(source)
    assert before[0] == {"mrr": 1, "csm": "eve"}
    assert (letters(target), letters(second)) == (0, 0)
    target.execute("grant insert on events.usage_limits to outbox_bridge")
    until(lambda: rows(target) == 2 and letters(target) == 1, "the entity's own stream")
    assert entity(source) == before
    assert letters(second) == 0


def _keeps(chance: random.Random, count: int) -> list[Keep]:
    blank = Event(b"", b"0", b"0", b"", None, b"{}", None, None, None)
    return [
        Keep(
            "p",
            "customer",
            chance.choice(["cus_1", "cus_2"]),
            blank._replace(seq=b"%d" % seq),
            seq,
            {chance.choice("xyz"): chance.choice([None, seq, "a\"'\\", {"deep": [1.50]}]), "all": seq},
        )
        for seq in range(1, count)
    ]


def _stored(source: Database) -> dict[str, Any]:
    return {
        key: (fields, seqs)
        for key, fields, seqs in source.execute("select key, fields, seqs from outbox.entity")
    }


def test_the_database_merges_entities_as_the_planner_does_in_any_order(
    source: Database,
) -> None:
    chance = random.Random(11)
    store = EntityStore(source.bridge_dsn, "test")
    try:
        for _ in range(20):
            source.execute("delete from outbox.entity")
            keeps = _keeps(chance, 13)
            wanted = {key: (row.fields, row.seqs) for (_, key), row in folded(keeps)}
            shuffled: Sequence[Keep] = chance.sample([*keeps, *keeps], 24)
            for at in range(0, 24, 5):
                assert store.write(shuffled[at : at + 5]) == []
            assert _stored(source) == wanted
    finally:
        store.close()


@pytest.fixture
def customers(source: Database) -> LookupSpec:
    source.execute("create table public.customers (id int primary key, name text)")
    source.execute("grant select on public.customers to outbox_bridge")
    source.execute("insert into public.customers select n, 'c' || n from generate_series(1, 40) as n")
    query = "select id, name from public.customers where id = any(%(keys)s::int[])"
    return LookupSpec("customer", "$event.customer_id", "source", query, cache_seconds=60.0)


def test_keys_that_a_querys_type_cannot_hold_cost_their_neighbours_nothing(
    source: Database, customers: LookupSpec
) -> None:
    counted = Counter[str]()
    wrong = ("", "x", "99999999999")
    keys = [*map(str, range(1, 21)), *wrong, *map(str, range(21, 61))]
    enricher = Enricher(
        {"source": source.bridge_dsn},
        "test",
        lambda _entity, result, n: counted.update({result: n}),
    )
    with closing(enricher):
        assert enricher.answer(Lookup(customers, keys)).keys() == {str(n) for n in range(1, 41)}
        assert counted == {"found": 40, "missing": 23}
        assert enricher.answer(Lookup(customers, ["7", "x"]))["7"]["name"] == "c7"
        assert counted == {"found": 40, "missing": 24, "hit": 1}


def test_missing_rows_are_asked_for_until_the_source_shows_them(
    source: Database, customers: LookupSpec
) -> None:
    """Customer 41 is there from the third look on, customer 42 never: that look is the last."""
    looks: list[bool] = []

    def visible() -> bool:
        looks.append(len(looks) > 1)
        if looks[-1]:
            source.execute("insert into public.customers values (41, 'c41')")
        return looks[-1]

    with closing(Enricher({"source": source.bridge_dsn}, "test")) as enricher:
        lookup = Lookup(customers, ["1", "41", "42"])
        assert enricher.answer(lookup).keys() == {"1"}
        assert enricher.answer(lookup, visible).keys() == {"1", "41"}
        assert looks == [False, False, True]
        elsewhere = Enricher({"source": source.bridge_dsn, "crm": source.bridge_dsn}, "test")
        with closing(elsewhere):  # no other server is waited for: it knows nothing of our transactions
            assert elsewhere.answer(Lookup(replace(customers, source="crm"), ["42"]), visible) == {}
        assert len(looks) == 3
