"""Event contracts: what passes, what is said when something does not."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.expressions.document import json_text
from bridge.planning.contract import Contract, is_timestamp
from bridge.planning.spec import ContractSpec, FieldSpec
from tests.unit.pipeline.samples import CONTRACT, USAGE


def verdict(contract: Contract, payload: bytes) -> str:
    """What the two stages say together: '' or the cause."""
    document = orjson.loads(payload)
    violation = contract.violation(document, payload)
    if violation is not None:
        assert contract.check([document]) == [0], "a violation that the first look lets through"
    return violation.cause if violation is not None else ""


def one(field: FieldSpec, value: Any) -> str:
    return verdict(Contract(ContractSpec("t", (field,))), json_text({"f": value}))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({}, ""),
        ({"extra": 1}, ""),
        ({"used": "many"}, 'field "used": expected number, got string'),
        ({"used": True}, 'field "used": expected number, got boolean'),
        ({"used": None}, 'field "used": expected number, got null'),
        ({"used": 1.5}, ""),
        ({"metric": "emails"}, 'field "metric": not one of seats, api-calls, storage'),
        ({"metric": ["seats"]}, 'field "metric": not one of seats, api-calls, storage'),
        ({"customer_id": 7}, 'field "customer_id": expected string, got number'),
    ],
)
def test_a_violation_names_field_and_rule_but_no_value(change: dict[str, Any], cause: str) -> None:
    assert verdict(Contract(CONTRACT), orjson.dumps({**USAGE, **change})) == cause


def test_a_missing_field_is_named() -> None:
    payload = orjson.dumps({name: value for name, value in USAGE.items() if name != "plan"})
    assert verdict(Contract(CONTRACT), payload) == 'field "plan": missing'


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("string", ["", "x"], [1, True, {}, []]),
        ("number", [1, 1.5, Decimal("1.10"), 2**70], ["1", True]),
        ("integer", [1, 2**70, 100.0, Decimal("5.000")], [1.5, "1", True]),
        ("boolean", [True, False], [0, 1, "true"]),
        ("object", [{}, {"a": 1}], [[], "x"]),
        ("array", [[], [1]], [{}, "x"]),
        (
            "timestamp",
            ["2027-03-01T12:00:00Z", "2024-02-29t00:00:00.1+05:30"],
            ["2027-02-29T00:00:00Z", "now", 1],
        ),
        ("any", [1, "x", True, {}, [], None], []),
    ],
)
def test_types(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert one(FieldSpec("f", kind), value) == "", value
    for value in bad:
        assert one(FieldSpec("f", kind), value) != "", value


def test_optional_and_nullable_are_two_things() -> None:
    optional, nullable = FieldSpec("f", required=False), FieldSpec("f", nullable=True)
    assert verdict(Contract(ContractSpec("t", (optional,))), b"{}") == ""
    assert one(optional, None) == 'field "f": expected string, got null'
    assert one(nullable, None) == ""
    assert verdict(Contract(ContractSpec("t", (nullable,))), b"{}") == 'field "f": missing'


def test_members_are_compared_by_value_and_kind() -> None:
    numbers = FieldSpec("f", "integer", enum=(1, 2))
    assert [one(numbers, value) == "" for value in (1, 1.0, 2, True, "1", 3)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    mixed = FieldSpec("f", "any", enum=(1, "a", False))
    assert [one(mixed, value) == "" for value in (1, "a", False, True, 0, None)] == [True] * 3 + [False] * 3


def test_unknown_fields_may_be_rejected_without_being_named() -> None:
    contract = Contract(ContractSpec("t", (FieldSpec("f"),), unknown="reject"))
    assert verdict(contract, b'{"f": "x"}') == ""
    assert verdict(contract, b'{"f": "x", "canary": 1}') == "1 unknown field (the contract has f)"


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.sampled_from(["seats", "2027-01-01T00:00:00Z"]),
)
kinds = st.sampled_from(
    ["string", "number", "integer", "boolean", "object", "array", "timestamp", "any"],
)


@given(st.dictionaries(st.sampled_from("fgh"), values), kinds, st.booleans())
def test_the_first_look_never_passes_what_the_second_refuses(
    document: dict[str, Any], kind: Any, reject: bool
) -> None:
    fields = (FieldSpec("f", kind), FieldSpec("g", enum=("seats", "x"), required=False))
    verdict(Contract(ContractSpec("t", fields, "reject" if reject else "payload")), json_text(document))


@pytest.mark.parametrize(
    "text", ["2027-03-01", "2027-03-01T25:00:00Z", "2027-03-01T12:00:00", "2027-13-01T12:00:00Z"]
)
def test_only_rfc_3339_is_a_timestamp(text: str) -> None:
    assert not is_timestamp(text)
