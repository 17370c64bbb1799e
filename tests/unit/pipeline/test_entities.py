"""Entities that events keep: what a batch says of them, in which order it is seen, and what a failure costs."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from bridge.planning.entity import EntityRow, Keep, folded
from bridge.planning.pipeline import entity_units
from bridge.planning.spec import EnrichSpec, FilterSpec, RedactSpec, SetSpec, UpsertSpec
from bridge.protocol.events import Event
from tests.unit.pipeline.samples import CUSTOMER, USAGE, event, pipeline, plan, planner, records

KEPT = EnrichSpec("customer", "$event.customer_id", "source", "select 1", kept="customer")
SAID = {"mrr": "$event.mrr", "csm": "$event.csm"}
UPSERT = UpsertSpec("customer", "$event.customer_id", SAID)
UPDATES = pipeline(UPSERT, name="customers", events=("customer.*",), destinations=())
HOME = entity_units(UPDATES)


def update(number: int, customer: Any = "cus_1", **fields: Any) -> Event:
    return event({"customer_id": customer, **fields}, number, type=b"customer.updated")


def usage(number: int) -> Event:
    return event(USAGE, number)


def stored(seq: int = 0, **fields: str) -> dict[str, dict[str, str]]:
    """What a lookup answers for cus_1; values are JSON."""
    body = ", ".join(f'"{name}": {value}' for name, value in fields.items())
    seqs = ", ".join(f'"{name}": {seq}' for name in fields)
    return {"cus_1": {"key": "cus_1", "fields": f"{{{body}}}", "seqs": f"{{{seqs}}}"}}


def seen(events: list[Event], rows: Any = None, *pipelines: Any) -> list[tuple[Any, Any]]:
    """(mrr, csm) of each row that goes to the table."""
    planned, _ = plan(planner(*(pipelines or (pipeline(KEPT), UPDATES)), entities=HOME), events, rows)
    return [(row["mrr"], row["csm"]) for write in planned.writes for row in records(write)]


def test_an_event_sees_what_earlier_ones_in_its_batch_said_in_any_file_order() -> None:
    events = [usage(1), update(2, csm="ada"), usage(3), update(4, mrr=10), update(5, csm="eve"), usage(6)]
    wanted = [(None, None), (None, b"ada"), (b"10", b"eve")]
    assert seen(events) == wanted
    assert seen(events, None, UPDATES, pipeline(KEPT)) == wanted


def test_what_the_batch_says_is_merged_into_what_was_kept() -> None:
    rows = stored(1, mrr="19.99", csm='"bob"')
    assert seen([usage(2), update(3, csm="ada"), usage(4)], rows) == [(b"19.99", b"bob"), (b"19.99", b"ada")]


def test_a_batch_that_is_planned_again_does_not_go_back_to_what_it_said() -> None:
    rows = stored(9, mrr="20", csm='"eve"')
    assert seen([update(2, mrr=10), usage(3), update(10, csm="zoe"), usage(11)], rows) == [
        (b"20", b"eve"),
        (b"20", b"zoe"),
    ]


def test_an_event_sees_its_own_word() -> None:
    both = pipeline(replace(UPSERT, fields={"csm": "$event.plan"}), KEPT)
    assert seen([usage(1)], None, both) == [(None, b"pro")]


def test_a_field_that_is_not_there_says_nothing_and_null_says_null() -> None:
    planned, _ = plan(planner(UPDATES), [update(1, mrr=1), update(2, csm=None), update(3, other=1)])
    assert [(keep.seq, keep.fields) for keep in planned.keeps] == [(1, {"mrr": 1}), (2, {"csm": None})]
    assert folded(planned.keeps) == [
        (("customer", "cus_1"), EntityRow({"mrr": 1, "csm": None}, {"mrr": 1, "csm": 2}))
    ]


def test_without_fields_the_whole_event_is_kept_exact_and_redacted() -> None:
    all_of_it = pipeline(
        RedactSpec(("email",)), replace(UPSERT, fields=None), events=("customer.*",), destinations=()
    )
    payload = (
        b'{"customer_id": "cus_1", "email": "x", "mrr": 0.1000000000000000000001, "big": 9007199254740993}'
    )
    planned, _ = plan(planner(all_of_it), [event(payload, type=b"customer.updated")])
    assert planned.keeps[0].fields == {
        "customer_id": "cus_1",
        "mrr": Decimal("0.1000000000000000000001"),
        "big": 9007199254740993,
    }


def test_values_may_be_expressions_templates_and_what_a_lookup_found() -> None:
    fields = {
        "double": "$twice",
        "who": "{{ customer.csm }} of {{ event.customer_id }}",
        "mrr": "$customer.mrr",
    }
    steps = (CUSTOMER, SetSpec({"twice": "$event.mrr * 2"}), replace(UPSERT, fields=fields))
    rows = {"cus_1": {"mrr": Decimal("19.90"), "csm": "ada"}}
    planned, _ = plan(
        planner(pipeline(*steps, events=("customer.*",), destinations=())), [update(1, mrr=2)], rows
    )
    assert planned.keeps[0].fields == {"double": 4, "who": "ada of cus_1", "mrr": Decimal("19.90")}


def test_what_a_filter_holds_back_is_not_kept() -> None:
    held = pipeline(FilterSpec("$event.mrr > 5"), UPSERT, events=("customer.*",), destinations=())
    planned, _ = plan(planner(held), [update(1, mrr=1), update(2, mrr=9)])
    assert [keep.seq for keep in planned.keeps] == [2]


def test_keys_may_be_texts_and_integers_and_mean_the_same() -> None:
    rows = [update(1, 7, csm="ada"), event({**USAGE, "customer_id": "7"}, 2)]
    assert seen(rows) == [(None, b"ada")]


@pytest.mark.parametrize("key", [None, "", "x" * 501, "a\0b", 1.5, {"a": 1}])
def test_an_event_that_names_no_entity_is_a_dead_letter_by_itself(
    key: Any,
) -> None:
    events = [update(1, csm="ada"), update(2, key, csm="eve"), update(3, mrr=1)]
    planned, _ = plan(planner(UPDATES, entities=HOME), events)
    assert [keep.seq for keep in planned.keeps] == [1, 3]
    [letter] = planned.dead_letters
    assert (letter.pipeline, letter.destination) == HOME[0]
    assert letter.code in ("entity", "expression")
    assert "customer" in letter.cause
    assert dict(planned.outcomes) == {("customers", "dead"): 1, ("customers", "applied"): 2}


def test_a_failure_costs_the_units_that_it_kept_from_happening_and_no_others() -> None:
    late = pipeline(UPSERT, SetSpec({"x": "$event.mrr * 2"}), name="late", events=("customer.*",))
    early = pipeline(SetSpec({"x": "$event.mrr * 2"}), UPSERT, name="early", events=("customer.*",))
    units = [*entity_units(late), *entity_units(early)]
    planned, _ = plan(planner(late, early, entities=units), [update(1, csm="ada")])
    assert [keep.pipeline for keep in planned.keeps] == ["late"]
    assert [(letter.pipeline, letter.destination) for letter in planned.dead_letters] == [
        ("early", "entity:customer"),
        ("early", "events"),
        ("late", "events"),
    ]


def test_only_an_entitys_own_stream_makes_dead_letters_of_it() -> None:
    planned, _ = plan(planner(UPDATES), [update(1, csm="ada"), update(2, None)])
    assert [keep.seq for keep in planned.keeps] == [1]
    assert planned.dead_letters == []
    assert not planned.outcomes


def test_other_units_alone_keep_nothing() -> None:
    both = pipeline(UPSERT, events=("customer.*",), name="both")
    planned, _ = plan(
        planner(both, entities=entity_units(both), only={("both", "events")}), [update(1, None)]
    )
    assert (planned.keeps, planned.dead_letters, len(planned.writes)) == ([], [], 1)
    planned, _ = plan(
        planner(both, entities=entity_units(both), only={*entity_units(both)}), [update(1, csm="ada")]
    )
    assert (len(planned.keeps), planned.writes) == (1, [])


def test_an_entity_that_was_never_kept_is_missing() -> None:
    strict = pipeline(replace(KEPT, missing="dead"))
    planned, lookups = plan(planner(strict, UPDATES), [usage(1), update(2, csm="ada"), usage(3)])
    assert [letter.code for letter in planned.dead_letters] == ["missing_entity"]
    assert len(planned.writes[0].events) == 1
    assert len(lookups) == 1


def test_the_newest_word_on_each_field_counts_in_any_order_and_however_often() -> None:
    chance = random.Random(7)
    for _ in range(200):
        keeps = [
            Keep(
                "p", "customer", chance.choice("ab"), update(seq), seq, {chance.choice("xyz"): seq, "w": -seq}
            )
            for seq in range(1, 9)
        ]
        wanted = folded(keeps)
        again = keeps + chance.choices(keeps, k=4)
        chance.shuffle(again)
        assert folded(again) == wanted


def test_of_two_words_of_one_event_on_a_field_the_first_counts_everywhere() -> None:
    """postgres/entities.py writes a greater seq only: what was written is not changed by the same event again."""
    first, second = (
        Keep(name, "customer", "cus_1", update(4), 0, {"mrr": value})
        for name, value in (("one", 1), ("two", 2))
    )
    [(_, row)] = folded([first, second])
    assert row == EntityRow({"mrr": 1}, {"mrr": 4})
    assert row.with_(first) == row.with_(second) == row
