"""The checker sees every kind of tampering: a check that cannot fail proves nothing."""

from __future__ import annotations

import time
from uuid import UUID

import psycopg
import pytest

from tests.support.producers import Producer, Traffic
from tests.support.servers import Database, RestartableServer
from tests.support.truth import Unit, conservation, settle

# What a correct bridge would do, done by hand: rows of the truth with the customer's columns.
_ROWS = """
select t.event_id, t.payload->>'customer_id', t.payload->>'metric', (t.payload->>'limit')::numeric,
    (t.payload->>'used')::numeric, t.payload->>'plan', c.mrr, c.csm, c.renewal, t.payload::text
from rig.truth t left join crm.customer c on c.customer_id = t.payload->>'customer_id' order by t.n
"""
_INSERT = """
insert into events.usage_limits
    (event_id, customer_id, metric, "limit", used, plan, mrr, csm, renewal, payload)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def carry(source: Database, target: Database) -> list[UUID]:
    rows = source.execute(_ROWS)
    with target.connect() as connection, connection.transaction():
        connection.cursor().executemany(_INSERT, rows)
    return [row[0] for row in rows]


@pytest.fixture
def carried(source: Database, target: Database) -> list[UUID]:
    with Producer(source.dsn) as producer:
        producer.transaction(20)
        producer.transaction(3, rollback=True)
        producer.transaction(3, via="emit")
        producer.duplicate()
        producer.burst(10)
    return carry(source, target)


@pytest.mark.matrix
def test_a_faithful_copy_conserves(source: Database, target: Database, carried: list[UUID]) -> None:
    verdict = conservation(source.dsn, target.dsn)
    assert verdict.holds, verdict
    assert verdict.expected == verdict.applied == len(carried) == 34
    assert source.value("select count(*) from outbox.event") == 34


def test_a_lost_event_is_seen(source: Database, target: Database, carried: list[UUID]) -> None:
    target.execute("delete from rig.effects where row->>'event_id' = %s", [str(carried[5])])
    assert conservation(source.dsn, target.dsn).lost == [carried[5]]


def test_an_upsert_that_hides_a_second_effect_is_seen(
    source: Database, target: Database, carried: list[UUID]
) -> None:
    target.execute("update events.usage_limits set csm = csm where event_id = %s", [carried[6]])
    verdict = conservation(source.dsn, target.dsn)
    assert verdict.duplicated == [carried[6]]
    assert not verdict.lost


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ("mrr = mrr + 0.01", "mrr"),
        ("csm = null", "csm"),
        ("used = used + 1", "used"),
        ("renewal = renewal + 1", "renewal"),
        ("customer_id = customer_id || ' '", "customer_id"),
        ("payload = payload || '{\"exact\": 9223372036854775808}'", "sha256"),
    ],
)
def test_an_altered_field_is_seen(
    source: Database, target: Database, change: str, column: str, carried: list[UUID]
) -> None:
    event = carried[0]
    target.execute("truncate rig.effects")
    target.execute(f"update events.usage_limits set {change} where event_id = %s", [event])
    target.execute("delete from rig.effects")
    target.execute(
        "insert into rig.effects (table_name, operation, row)"
        " select 'events.usage_limits', 'INSERT', to_jsonb(u) from events.usage_limits u"
    )
    assert (event, column) in conservation(source.dsn, target.dsn).wrong


def test_an_effect_of_a_rolled_back_event_is_seen(
    source: Database, target: Database, carried: list[UUID]
) -> None:
    target.execute(
        "insert into events.usage_limits (event_id, customer_id, payload) values (%s, 'x', '{}')",
        [UUID(int=7)],
    )
    assert conservation(source.dsn, target.dsn).unexpected == [str(UUID(int=7))]


def dead_letter(target: Database, event: UUID, state: str = "open") -> None:
    target.execute(
        "insert into bridge.dead_letter (id, stream, pipeline, destination, event_id, event_seq, event_type,"
        " code, cause, state)"
        " values (gen_random_uuid(), 's', 'usage-limit-hits', 'events', %s, 1, 't', '23502', 'a cause', %s)",
        [str(event), state],
    )


def test_a_dead_letter_conserves_and_being_in_both_does_not(
    source: Database, target: Database, carried: list[UUID]
) -> None:
    target.execute("delete from rig.effects where row->>'event_id' = %s", [str(carried[1])])
    dead_letter(target, carried[1])
    verdict = conservation(source.dsn, target.dsn)
    assert verdict.holds, verdict
    assert verdict.in_dead_letters == 1
    dead_letter(target, carried[2])
    assert conservation(source.dsn, target.dsn).in_both == [carried[2]]


def test_a_discarded_dead_letter_does_not_excuse_a_loss(
    source: Database, target: Database, carried: list[UUID]
) -> None:
    target.execute("delete from rig.effects where row->>'event_id' = %s", [str(carried[1])])
    dead_letter(target, carried[1], "discarded")
    assert conservation(source.dsn, target.dsn).lost == [carried[1]]


def test_effects_of_one_key_out_of_order_are_seen(source: Database, target: Database) -> None:
    with Producer(source.dsn) as producer:
        producer.transaction(5, key="same")
    carried = carry(source, target)
    assert conservation(source.dsn, target.dsn).holds
    target.execute(
        "with first as (delete from rig.effects where row->>'event_id' = %s returning *)"
        " insert into rig.effects (table_name, operation, row) select table_name, operation, row from first",
        [str(carried[0])],
    )
    verdict = conservation(source.dsn, target.dsn)
    assert verdict.out_of_order == [carried[0]]
    assert conservation(source.dsn, target.dsn, Unit(ordered=False)).holds


def test_rows_keyed_by_customer_must_hold_the_last_event(source: Database, target: Database) -> None:
    unit = Unit(latest_of="t.key")
    with Producer(source.dsn) as producer:
        producer.transaction(3, key="same")
    carried = carry(source, target)
    target.execute("delete from rig.effects where row->>'event_id' = %s", [str(carried[0])])
    assert conservation(source.dsn, target.dsn, unit).holds
    target.execute("delete from rig.effects where row->>'event_id' = %s", [str(carried[2])])
    assert conservation(source.dsn, target.dsn, unit).lost == [carried[2]]


def test_settle_names_what_is_missing(source: Database, target: Database) -> None:
    with Producer(source.dsn) as producer:
        producer.transaction(2)
    with pytest.raises(AssertionError, match=r"expected 3, applied 0.*lost 3"):
        settle(source.dsn, target.dsn, deadline=0.2)


def test_traffic_writes_truth_and_outbox_alike_even_across_a_crash(
    source_cluster: RestartableServer, source: Database
) -> None:
    with Traffic(source.dsn) as traffic:
        _until(traffic, 20)
        source_cluster.crash()
        source_cluster.start()
        _until(traffic, traffic.transactions + 20)
    with psycopg.connect(source.dsn) as connection:
        [(in_truth, in_outbox, in_both)] = connection.execute(
            "select (select count(*) from rig.truth), (select count(*) from outbox.event),"
            " (select count(*) from rig.truth join outbox.event on id = event_id)"
        ).fetchall()
    assert in_truth == in_outbox == in_both >= 40


def _until(traffic: Traffic, transactions: int) -> None:
    deadline = time.monotonic() + 30
    while traffic.transactions < transactions:
        assert time.monotonic() < deadline, f"only {traffic.transactions} transactions: {traffic.failures}"
        time.sleep(0.01)
