"""The planner, from events to writes, deliveries and dead letters."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import orjson

from bridge.planning.spec import FilterSpec, RedactSpec, SetSpec, TableSpec
from tests.unit.pipeline.samples import (
    BRANCHES,
    CUSTOMER,
    EVENTS,
    NUDGE,
    USAGE,
    event,
    pipeline,
    plan,
    planner,
    records,
    shape,
)

ADA = {"cus_1": {"customer_id": "cus_1", "mrr": Decimal("1490.00"), "csm": "ada"}}


def test_an_event_becomes_a_row_with_what_enrichment_knows() -> None:
    e = event(USAGE)
    planned, lookups = plan(planner(pipeline(CUSTOMER)), [e], ADA)
    assert [lookup.keys for lookup in lookups] == [["cus_1"]]
    (write,) = planned.writes
    assert records(write) == [
        {
            "event_id": e.id,
            "customer_id": b"cus_1",
            "used": b"95210",
            "mrr": b"1490.00",
            "csm": b"ada",
            "payload": e.payload,
        }
    ]
    assert planned.outcomes == {("usage", "applied"): 1}


def test_one_lookup_asks_for_each_key_once() -> None:
    batch = [event({**USAGE, "customer_id": f"cus_{n % 3}"}, n) for n in range(30)]
    _, lookups = plan(planner(pipeline(CUSTOMER), pipeline(CUSTOMER, name="second")), batch, ADA)
    assert [sorted(lookup.keys) for lookup in lookups] == [["cus_0", "cus_1", "cus_2"]]


def test_a_missing_entity_goes_on_with_nulls() -> None:
    spec = pipeline(CUSTOMER, FilterSpec("$customer.mrr is none"))
    planned, _ = plan(planner(spec), [event(USAGE)], {})
    assert records(planned.writes[0])[0]["mrr"] is None
    assert planned.outcomes == {("usage", "applied"): 1}


def test_a_missing_entity_parks_or_kills_its_unit_only() -> None:
    for missing, seconds in (("retry", 600.0), ("dead", None)):
        spec = pipeline(replace(CUSTOMER, missing=missing))
        batch = [event(USAGE, 1), event({**USAGE, "customer_id": "cus_9"}, 2)]
        planned, _ = plan(planner(spec), batch, ADA)
        (dead,) = planned.dead_letters
        assert (dead.code, dead.event, dead.retry_for_seconds) == ("missing_entity", batch[1], seconds)
        assert "cus_9" not in dead.cause
        assert planned.writes[0].events == [batch[0]]
        assert planned.outcomes == {("usage", "applied"): 1, ("usage", "dead"): 1}


def test_the_first_branch_that_matches_decides() -> None:
    spec = pipeline(CUSTOMER, branches=BRANCHES, destinations=(EVENTS, NUDGE))
    batch = [
        event({**USAGE, "used": 100000}, 1),
        event(USAGE, 2),
        event({**USAGE, "used": 5}, 3),
        event({**USAGE, "metric": "seats"}, 4),
    ]
    planned, _ = plan(planner(spec), batch, ADA)
    assert planned.writes[0].events == batch[:2]
    assert [(d.event, d.body) for d in planned.deliveries] == [(batch[0], b'{"text":"ada: cus_1"}')]
    assert planned.outcomes == {("usage", "applied"): 2, ("usage", "unrouted"): 2}


def test_a_filter_counts_what_it_stops() -> None:
    planned, _ = plan(planner(pipeline(FilterSpec("$event.used > 100000"))), [event(USAGE)])
    assert planned.writes == []
    assert planned.outcomes == {("usage", "filtered"): 1}


def test_a_broken_contract_is_a_dead_letter_for_each_owned_destination() -> None:
    spec = pipeline(destinations=(EVENTS, replace(EVENTS, name="copy"), NUDGE))
    bad = event({**USAGE, "used": "many"}, 2)
    planned, _ = plan(planner(spec, sinks=()), [event(USAGE, 1), bad])
    assert [(d.destination, d.code, d.cause) for d in planned.dead_letters] == [
        ("events", "contract", 'field "used": expected number, got string'),
        ("copy", "contract", 'field "used": expected number, got string'),
    ]
    assert [len(write.events) for write in planned.writes] == [1, 1]
    assert planned.outcomes == {("usage", "applied"): 1, ("usage", "dead"): 1}


def test_an_expression_without_an_answer_costs_only_its_own_unit() -> None:
    batch = [event({**USAGE, "limit": n}, n + 1) for n in range(5)]
    spec = pipeline(SetSpec({"ratio": "$event.used / $event.limit"}))
    planned, _ = plan(planner(spec), batch)
    (dead,) = planned.dead_letters
    assert (dead.event, dead.code) == (batch[0], "expression")
    assert dead.cause == (
        "expression '$event.used / $event.limit': $event.used and $event.limit: division by zero"
    )
    assert planned.writes[0].events == batch[1:]


def test_a_mapping_that_fails_leaves_the_other_destination_alone() -> None:
    twice = TableSpec("twice", "warehouse", "events", "twice", columns={"used": "$event.limit * 2"})
    spec = pipeline(destinations=(EVENTS, twice))
    e = event({"limit": "no number", "customer_id": "x"})
    planned, _ = plan(planner(spec, contract=False), [e])
    assert [d.destination for d in planned.dead_letters] == ["twice"]
    assert [write.spec.name for write in planned.writes] == ["events"]
    assert planned.outcomes == {("usage", "dead"): 1}


def test_unreadable_payloads_are_dead_and_their_neighbours_live() -> None:
    payloads = [
        b"{",
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b"[1]",
        b"\xff",
        b'{"a":' * 20000 + b"1" + b"}" * 20000,
    ]
    batch = [event(p, n) for n, p in enumerate(payloads)] + [event(USAGE, 99)]
    planned, _ = plan(planner(pipeline()), batch)
    assert {d.code for d in planned.dead_letters} == {"payload"}
    assert [d.event for d in planned.dead_letters] == batch[:-1]
    assert planned.writes[0].events == batch[-1:]


def test_redacted_fields_leave_the_payload_and_numbers_stay_exact() -> None:
    payload = (
        b'{"email": "a@b.c", "n": 12345678901234567890.12345678901234567890, "user": {"email": "x", "id": 1}}'
    )
    spec = pipeline(RedactSpec(("email", "user.email")))
    planned, _ = plan(planner(spec, contract=False), [event(payload)])
    assert records(planned.writes[0])[0]["payload"] == (
        b'{"n":12345678901234567890.12345678901234567890,"user":{"id":1}}'
    )


def test_an_unmatched_type_is_counted_or_dead() -> None:
    stranger = event({}, type=b"stranger")
    planned, _ = plan(planner(pipeline()), [stranger])
    assert planned.outcomes == {("", "unmatched"): 1}
    planned, _ = plan(planner(pipeline(), unmatched="dead"), [stranger])
    assert [(d.pipeline, d.destination, d.code) for d in planned.dead_letters] == [("", "", "unmatched")]


def test_several_types_keep_event_order_within_a_pipeline() -> None:
    batch = [event(USAGE, n, type=b"usage.a" if n % 3 else b"usage.b") for n in range(20)]
    planned, _ = plan(planner(pipeline(), contract=False), batch)
    assert planned.writes[0].events == batch
    assert planned.writes[0].places == list(range(20))


def test_a_type_that_is_not_utf8_costs_nothing_but_itself() -> None:
    batch = [event(USAGE, 1), event(USAGE, 2, type=b"usage.\xff")]
    spec = pipeline(SetSpec({"t": "$meta.type"}))
    planned, _ = plan(planner(spec, contract=False), batch)
    assert [d.event for d in planned.dead_letters] == batch[1:]
    assert planned.writes[0].events == batch[:1]


def test_destinations_of_other_streams_are_not_planned() -> None:
    spec = pipeline(destinations=(EVENTS, NUDGE))
    planned, _ = plan(planner(spec, sinks=()), [event(USAGE)])
    assert planned.deliveries == []
    planned, _ = plan(planner(spec, only=[("usage", "nudge")]), [event({"customer_id": "x"})])
    assert planned.writes == []
    assert [d.destination for d in planned.dead_letters] == ["nudge"]


def test_the_default_mapping_takes_columns_that_exist() -> None:
    table = TableSpec("events", "warehouse", "events", "usage_limits")
    columns = shape(
        event_id="text", customer_id="text", used="other", mrr="other", payload="json", occurred_at="other",
        idempotency_key="text", elsewhere="text",
    )  # fmt: skip
    e = event({**USAGE, "new": 1}, idempotency_key=b"k")
    planned, _ = plan(planner(pipeline(CUSTOMER, destinations=(table,)), table=columns), [e], ADA)
    assert records(planned.writes[0]) == [
        {
            "event_id": e.id,
            "customer_id": b"cus_1",
            "used": b"95210",
            "mrr": b"1490.00",
            "payload": e.payload,
            "occurred_at": e.occurred_at,
            "idempotency_key": b"k",
        }
    ]


def test_a_sink_body_carries_exact_numbers() -> None:
    sink = replace(NUDGE, fields={"n": "$event.n", "all": "$event", "list": ["$event.n", "x"], "five": 5})
    payload = b'{"n": 18446744073709551617.10}'
    planned, _ = plan(planner(pipeline(destinations=(sink,)), contract=False), [event(payload)])
    body = planned.deliveries[0].body
    assert body == (
        b'{"n":18446744073709551617.10,"all":{"n": 18446744073709551617.10},'
        b'"list":[18446744073709551617.10,"x"],"five":5}'
    )
    assert orjson.loads(body)
