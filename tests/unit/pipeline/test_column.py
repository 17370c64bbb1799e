"""Numbers and arrays on their way from the payload to a column: nothing may be lost."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.expressions.document import json_text, parse_exact
from bridge.planning.column_text import array_literal, texts
from bridge.planning.plan import Column
from bridge.planning.spec import TableSpec
from bridge.planning.steps.set import SetSpec
from tests.unit.pipeline.samples import event, pipeline, plan, planner, records, shape

SHAPE = shape(n="other", text="text", inner="json", made="other", whole=Column("whole", "bigint", "other"))
MAPPING = {
    "n": "$event.n",
    "text": "$event.deep.n",
    "inner": "$event.deep",
    "made": "$same",
    "whole": "$event.n",
}
TABLE = TableSpec("events", "warehouse", "events", "t", columns=MAPPING)

integers = st.integers(-(10**40), 10**40).map(str)
decimals = st.decimals(
    allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=9
).map(lambda d: format(d, "f"))
floats = st.floats(allow_nan=False, allow_infinity=False).map(repr)


def carried(number: str, other: str) -> dict[str, bytes | None]:
    payload = f'{{"other": {other}, "n": {number}, "deep": {{"n": {number}, "list": [{number}, "x"]}}}}'
    spec = pipeline(SetSpec({"same": "$event.n"}), destinations=(TABLE,))
    planned, _ = plan(planner(spec, contract=False, table=SHAPE), [event(payload.encode())])
    assert planned.dead_letters == []
    return records(planned.writes[0])[0]


@settings(max_examples=300)
@given(st.one_of(integers, decimals, floats), st.one_of(integers, decimals))
@example("9007199254740993", "0")
@example("19.99", "19.990000000000000000000000000001")
@example("19.990000000000000000000000000001", "19.99")
@example("123456789012345678901234567890.123456789", "1")
@example("1e400", "1")
@example("-0", "1")
@example("-0.0", "1")
@example("18446744073709551616", "1")
@example("1E-7", "1")
@example("1.50", "1.5")
def test_a_number_reaches_its_column_exactly(number: str, other: str) -> None:
    row = carried(number, other)
    for name in ("n", "text", "made", "whole"):
        text = row[name]
        assert text is not None
        assert Decimal(text.decode()) == Decimal(number), name
    inner = row["inner"]
    assert inner is not None
    read = json.loads(inner, parse_float=Decimal)
    assert Decimal(read["n"]) == Decimal(read["list"][0]) == Decimal(number)


def test_a_trailing_zero_stays_where_the_column_is_text() -> None:
    assert carried("1.50", "1")["text"] == b"1.50"


def test_a_whole_decimal_fits_an_integer_column() -> None:
    assert carried("100.0", "1")["whole"] == b"100"


def test_an_integer_of_five_thousand_digits_passes() -> None:
    assert carried("9" * 5000, "1")["n"] is not None


def test_a_float_that_arithmetic_made_prints_as_postgres_does() -> None:
    column = Column("c", "numeric", "other")
    assert texts(column, [2.0, 0.5, 1e22]) == [b"2", b"0.5", b"1e+22"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", b"a"),
        (True, b"true"),
        (None, None),
        ({"a": [1]}, b'{"a":[1]}'),
        (Decimal("1490.00"), b"1490.00"),
        (date(2027, 3, 1), b"2027-03-01"),
        (datetime(2027, 3, 1, 12, tzinfo=UTC), b"2027-03-01T12:00:00+00:00"),
        (UUID(int=1), b"00000000-0000-0000-0000-000000000001"),
        (b"\x01", b"\\x01"),
    ],
)
def test_what_enrichment_brings_is_written_as_postgres_reads_it(value: Any, text: bytes | None) -> None:
    assert texts(Column("c", "text", "text"), [value]) == [text]


def test_json_columns_get_json_and_null() -> None:
    column = Column("c", "jsonb", "json")
    assert texts(column, ["a", 1, None, True, {"n": Decimal("1.10")}]) == [
        b'"a"',
        b"1",
        None,
        b"true",
        b'{"n":1.10}',
    ]


characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**80), 2**80),
        st.decimals(allow_nan=False, allow_infinity=False, places=5, min_value=-(10**25), max_value=10**25),
        characters,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(json_values)
def test_json_text_is_read_back_as_it_was(value: Any) -> None:
    text = json_text({"v": value})
    orjson.loads(text)
    assert parse_exact(text)["v"] == value


def read_array(text: str) -> Any:
    """An independent reader of array literals (PostgreSQL manual, 8.15.6), all elements as text."""
    position = 0

    def element() -> Any:
        nonlocal position
        if text[position] == "{":
            position += 1
            items = []
            while text[position] != "}":
                items.append(element())
                if text[position] == ",":
                    position += 1
            position += 1
            return items
        if text[position] == '"':
            position += 1
            out = ""
            while text[position] != '"':
                position += text[position] == "\\"
                out += text[position]
                position += 1
            position += 1
            return out
        start = position
        while text[position] not in ",}":
            position += 1
        word = text[start:position]
        return None if word == "NULL" else word

    return element()


elements = st.one_of(
    st.none(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)
)


@given(st.one_of(st.lists(elements), st.lists(st.lists(elements, min_size=2, max_size=2))))
def test_array_literals_are_read_back_as_they_were(items: list[Any]) -> None:
    assert read_array(array_literal(items).decode()) == items


def test_arrays_of_numbers_and_of_json_have_their_own_forms() -> None:
    assert array_literal([1, Decimal("1.50"), True, None]) == b"{1,1.50,true,NULL}"
    assert texts(Column("c", "jsonb[]", "array"), [[{"a": 1}, "x", None]]) == [
        b'{"{\\"a\\":1}","\\"x\\"",NULL}'
    ]
