"""What a producer's payload becomes: exact numbers, and nothing that jsonb would refuse."""

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import IntEnum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.producer import MAX_DEPTH, strict_json


def exact(text: str) -> object:
    return json.loads(text, parse_float=Decimal)


@pytest.mark.parametrize(
    "number",
    [2**64, -(10**30), Decimal("0.1"), Decimal("12345678901234567890.123456789"), Decimal("1E+5"), 0.5],
)
def test_numbers_keep_their_exact_value(number: object) -> None:
    assert exact(strict_json({"n": number})) == {"n": number}


def test_a_decimal_keeps_its_trailing_zeros() -> None:
    assert strict_json({"price": Decimal("1.50")}) == '{"price":1.50}'


def test_enumerations_dates_and_uuids_are_written_as_their_values() -> None:
    class Seats(IntEnum):
        MANY = 9

    id_ = UUID("01a206d7-7b28-7b24-99a9-3db4c2865683")
    value = {
        "seats": Seats.MANY,
        "on": date(2027, 3, 1),
        "at": datetime(2027, 3, 1, 12, tzinfo=UTC),
        "id": id_,
    }
    assert exact(strict_json(value)) == {
        "seats": 9,
        "on": "2027-03-01",
        "at": "2027-03-01T12:00:00+00:00",
        "id": str(id_),
    }


@pytest.mark.parametrize(
    "number",
    [math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("sNaN"), Decimal("NaN12"), Decimal("-Infinity")],
)
def test_a_number_that_json_does_not_have_is_refused_by_its_place(number: object) -> None:
    with pytest.raises(ValueError, match=r"^payload\.items\[1\]\.price is (NaN|an infinity): "):
        strict_json({"items": [{}, {"price": number}]})


def test_a_very_large_decimal_is_not_taken_for_infinite() -> None:
    assert strict_json({"n": Decimal("1E+1000")}) == '{"n":1E+1000}'


@pytest.mark.parametrize(("text", "why"), [("a\x00b", "NUL"), ("a\ud83d", "surrogate")])
def test_text_that_jsonb_cannot_hold_is_refused_as_value_and_as_key(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^payload\.name contains .*{why}"):
        strict_json({"name": text})
    with pytest.raises(ValueError, match=rf"^a key of payload contains .*{why}"):
        strict_json({text: 1})


def test_a_refusal_never_shows_the_value() -> None:
    with pytest.raises(ValueError, match="surrogate") as caught:
        strict_json({"note": "secret-canary \ud83d"})
    assert "canary" not in str(caught.value)


def test_other_types_and_keys_are_refused_by_their_place() -> None:
    with pytest.raises(TypeError, match=r"^payload\.tags is a set, which has no JSON form$"):
        strict_json({"tags": {1}})
    with pytest.raises(TypeError, match=r"^payload\.by_id has a key of type int; JSON's keys are text$"):
        strict_json({"by_id": {1: 2}})


def test_nesting_ends_at_a_depth_that_every_server_takes() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert strict_json(value).count("[") == MAX_DEPTH
    with pytest.raises(ValueError, match=f"nested deeper than {MAX_DEPTH} levels"):
        strict_json([value])


text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
scalars = (
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | text
)


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20))
def test_what_is_written_reads_back_the_same(value: object) -> None:
    assert exact(strict_json(value)) == value
