"""Whatever producers send, planning never fails and every event has exactly one fate in each pipeline."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.planning.plan import Column
from bridge.planning.spec import BranchSpec, FilterSpec, RedactSpec, SetSpec, TableSpec
from bridge.protocol.events import Event
from tests.unit.pipeline.samples import (
    BRANCHES,
    CUSTOMER,
    EVENTS,
    NUDGE,
    event,
    pipeline,
    plan,
    planner,
    records,
    shape,
)

scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["cus_1", "cus_2", "seats", "api-calls", "95", "\x00", "é"]),
    st.lists(st.integers(-9, 9), max_size=2),
    st.dictionaries(st.sampled_from(["id", "email"]), st.text(max_size=3), max_size=2),
)
sane = st.fixed_dictionaries(
    {
        "customer_id": st.sampled_from(["cus_1", "cus_2", "cus_3"]),
        "metric": st.sampled_from(["seats", "api-calls"]),
        "limit": st.integers(0, 3),
        "used": st.integers(-1, 3),
        "plan": st.just("pro"),
    }
)
wild = st.dictionaries(st.sampled_from(["customer_id", "metric", "limit", "used", "plan", "user"]), scalars)
broken = st.sampled_from(
    [b"", b"{", b"\xff", b"[]", b"1", b'{"used": 1e400, "limit": 1}', b'{"a":"\\ud800"}', b'{"used": NaN}']
)
payloads = st.one_of(sane.map(orjson.dumps), wild.map(orjson.dumps), broken)
metas = st.fixed_dictionaries(
    {
        "type": st.sampled_from([b"usage.limit_reached", b"usage.other", b"usage.\xff"]),
        "key": st.sampled_from([None, b"k", b"\xfe"]),
        "headers": st.sampled_from([None, b'{"a": 1}', b"{"]),
    }
)
STEPS = (
    CUSTOMER,
    FilterSpec("$event.used != 0"),
    SetSpec({"ratio": "$event.used / $event.limit", "who": "$meta.key"}),
    RedactSpec(("user.email",)),
)
LAST = BranchSpec("never", "$meta.headers.a == 2", ("events",))
ROWS = {"cus_1": {"mrr": 1, "csm": "ada"}, "cus_2": {"mrr": None, "csm": None}}


@settings(max_examples=300)
@given(
    st.lists(st.tuples(payloads, metas), max_size=12),
    st.sampled_from(["continue", "retry", "dead"]),
    st.booleans(),
)
def test_every_event_has_one_fate_in_each_pipeline(
    given_events: list[tuple[bytes, dict[str, Any]]], missing: Any, branched: bool
) -> None:
    batch: list[Event] = [event(p, n, **meta) for n, (p, meta) in enumerate(given_events)]
    steps = (replace(CUSTOMER, missing=missing), *STEPS[1:])
    first = pipeline(
        *steps,
        branches=(*BRANCHES[:2], LAST) if branched else None,
        destinations=(EVENTS, NUDGE),
        name="first",
    )
    second = pipeline(destinations=(TableSpec("copy", "warehouse", "events", "copy"),), name="second")
    planned, _ = plan(planner(first, second), batch, ROWS)

    fates: Counter[str] = Counter()
    for (name, _), events in planned.outcomes.items():
        fates[name] += events
    assert all(fates[name] == len(batch) for name in ("first", "second") if batch)

    units: Counter[tuple[str, str, bytes]] = Counter()
    for write in planned.writes:
        assert all(len(column) == len(write.events) == len(write.places) for column in write.columns)
        units.update((write.pipeline, write.spec.name, e.id) for e in write.events)
    units.update((d.pipeline, d.destination, d.event.id) for d in planned.deliveries)
    units.update((d.pipeline, d.destination, d.event.id) for d in planned.dead_letters)
    assert not units or max(units.values()) == 1, "one unit, one effect or one dead letter"
    assert all(units["second", "copy", e.id] == 1 for e in batch)


@settings(max_examples=150)
@given(st.lists(st.tuples(payloads, metas), min_size=2, max_size=8))
def test_an_event_fares_in_a_batch_as_it_does_alone(
    given_events: list[tuple[bytes, dict[str, Any]]],
) -> None:
    batch = [event(p, n, **meta) for n, (p, meta) in enumerate(given_events)]
    who = planner(pipeline(*STEPS, branches=(*BRANCHES[:2], LAST), destinations=(EVENTS, NUDGE)))

    def effects(events: list[Event]) -> set[Any]:
        planned, _ = plan(who, events, ROWS)
        rows = {
            (write.spec.name, tuple(sorted(row.items(), key=repr)))
            for write in planned.writes
            for row in records(write)
        }
        rows |= {(d.destination, d.event.id, d.body) for d in planned.deliveries}
        return rows | {(d.destination, d.event.id, d.code, d.cause) for d in planned.dead_letters}

    alone: set[Any] = set().union(*(effects([e]) for e in batch))
    assert effects(batch) == alone


def test_columns_with_a_default_are_left_out_where_the_event_is_silent() -> None:
    table = TableSpec("copy", "warehouse", "events", "copy")
    columns = shape(event_id="text", plan=Column("plan", "text", "text", has_default=True), made=Column(
        "made", "text", "text", writable=False))  # fmt: skip
    batch = [event({"plan": "pro", "made": "x"}, 1), event({}, 2), event({"plan": None}, 3)]
    planned, _ = plan(planner(pipeline(destinations=(table,)), contract=False, table=columns), batch)
    assert [(write.names, [e.seq for e in write.events]) for write in planned.writes] == [
        (("event_id", "plan"), [b"1", b"3"]),
        (("event_id",), [b"2"]),
    ]


def test_a_version_is_written_beside_the_mapping() -> None:
    table = TableSpec(
        "t",
        "warehouse",
        "events",
        "t",
        "upsert",
        ("customer_id",),
        "$meta.seq",
        {"customer_id": "$event.customer_id"},
    )
    columns = shape(customer_id="text", version="other")
    planned, _ = plan(
        planner(pipeline(destinations=(table,)), contract=False, table=columns),
        [event({"customer_id": "c"}, 7)],
    )
    assert records(planned.writes[0]) == [{"customer_id": b"c", "version": b"7"}]
    assert table.version_column == "version"
    assert replace(table, columns={"at": "$meta.seq"}).version_column == "at"


def test_nothing_of_the_payload_is_parsed_when_nothing_reads_it() -> None:
    table = TableSpec("t", "warehouse", "events", "t", columns={"event_id": "$meta.id", "payload": "$event"})
    planned, _ = plan(planner(pipeline(destinations=(table,)), contract=False), [event(b"not json")])
    assert records(planned.writes[0])[0]["payload"] == b"not json"
