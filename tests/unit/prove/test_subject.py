"""What depends on a lookup is neither compared nor called lost; what a replay may fill again, and what not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bridge.errors import BridgeError
from bridge.planning.spec import (
    BranchSpec,
    EnrichSpec,
    FilterSpec,
    PipelineSpec,
    SetSpec,
    SinkSpec,
    StepSpec,
    TableSpec,
)
from bridge.prove.digest import Window, _prefix
from bridge.prove.subject import _offline
from bridge.repair.history import way_of
from tests.unit.pipeline.samples import shape

ENRICH = EnrichSpec("customer", "$event.c", "source", "select 1", missing="dead")


def pipeline(*steps: StepSpec, branches: tuple[BranchSpec, ...] | None = None) -> PipelineSpec:
    return PipelineSpec("p", ("t",), steps, branches, {})


def test_a_name_that_is_set_from_a_lookup_depends_on_it() -> None:
    steps = (ENRICH, SetSpec({"ratio": "$event.a / $event.b", "rich": "$customer.mrr > 5"}))
    spec, certain, tainted = _offline(pipeline(*steps))
    assert (certain, tainted) == (True, {"customer", "rich"})
    assert [step.missing for step in spec.steps if isinstance(step, EnrichSpec)] == ["continue"]


@pytest.mark.parametrize(
    ("expression", "certain"), [("$event.a > 1", True), ("$customer.mrr > 1", False), ("$rich", False)]
)
def test_a_filter_is_applied_where_no_lookup_decides_it(expression: str, certain: bool) -> None:
    steps = (ENRICH, SetSpec({"rich": "$customer.mrr > 5"}), FilterSpec(expression))
    spec, is_certain, _ = _offline(pipeline(*steps))
    assert is_certain is certain
    assert any(isinstance(step, FilterSpec) for step in spec.steps) is certain


def test_branches_that_a_lookup_decides_leave_every_destination_open() -> None:
    branches = (BranchSpec("a", "$event.x > 1", ("one",)), BranchSpec("b", "$customer.y", ("two",)))
    assert _offline(pipeline(ENRICH, branches=branches))[0].branches is None
    assert _offline(pipeline(ENRICH, branches=branches[:1]))[0].branches == branches[:1]


def test_a_version_7_id_of_a_moment_begins_as_postgres_makes_it() -> None:
    assert _prefix(datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)) == "017f22e2-79b0"  # RFC 9562, A.6
    assert Window().since is None


SHAPE = shape(id="text", k="text", v="other")


def table(mode: str, key: tuple[str, ...], version: str | None = None, *, identity: bool = True) -> TableSpec:
    columns = {"k": "$event.k", **({"id": "$meta.id"} if identity else {})}
    return TableSpec("d", "w", "events", "t", mode, key, version, columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        (table("upsert", ("id",)), "upsert"),
        (table("upsert", ("k",), "$meta.seq"), "upsert"),
        (table("insert", ("k",)), "upsert"),
        (table("insert", ()), "absent"),
        (table("insert", (), identity=False), "empty"),
    ],
)
def test_a_replay_finds_its_way(spec: TableSpec, way: str) -> None:
    assert way_of(spec, SHAPE, force=False, deliver=False) == way


def test_a_replay_that_could_harm_asks_first() -> None:
    by_key = table("upsert", ("k",))
    sink = SinkSpec("s", "c", "slack", {})
    for spec, reason in ((by_key, "older_over_newer"), (sink, "sink")):
        try:
            way_of(spec, SHAPE, force=False, deliver=False)
        except BridgeError as error:
            found = error.reason
        assert found == reason
    assert way_of(by_key, SHAPE, force=True, deliver=False) == "upsert"
    assert way_of(sink, None, force=False, deliver=True) == "deliver"
