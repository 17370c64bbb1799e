"""Values that are the server's text: in expressions, templates, messages and columns."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import ExpressionFailure
from bridge.expressions.document import json_text
from bridge.expressions.expression import compile_expression
from bridge.expressions.markup import Markup
from bridge.expressions.server_text import (
    Date,
    Moment,
    Money,
    ServerText,
    Time,
    Timestamp,
    Timestamptz,
    Timetz,
    ordered,
)
from bridge.expressions.template import compile_template
from bridge.planning.column_text import texts
from bridge.planning.lookup import Unreadable
from bridge.planning.plan import Column
from bridge.planning.rows import classify
from bridge.planning.steps.enrich import EnrichSpec
from bridge.postgres.looked_up import converter
from tests.unit.pipeline.samples import event, pipeline, plan, planner

DAYS = [
    "-infinity",
    "4713-01-01 BC",
    "0044-03-15 BC",
    "0001-01-01",
    "2027-03-01",
    "9999-12-31",
    "10000-01-01",
    "infinity",
]
MOMENTS = [
    "-infinity",
    "0044-03-15 12:00:00 BC",
    "2027-02-28 23:59:59.999999",
    "2027-03-01 00:00:00",
    "10000-01-01 00:00:00.5",
    "infinity",
]
ZONED = [
    "-infinity",
    "0044-03-15 12:00:00+00:57:44 BC",
    "2027-03-01 01:00:00+05:45",
    "2027-02-28 20:00:00+00",
    "2027-03-01 00:00:00+00",
    "20000-01-01 00:00:00-12",
    "infinity",
]
TIMES = ["00:00:00", "23:59:59.999999", "24:00:00"]


@pytest.mark.parametrize(
    ("kind", "ascending"), [(Date, DAYS), (Timestamp, MOMENTS), (Timestamptz, ZONED), (Time, TIMES)]
)
@pytest.mark.parametrize("constant", [True, False])
def test_moments_have_the_servers_order(kind: type[Moment], ascending: list[str], constant: bool) -> None:
    """The other one is a value, too, or its ISO text."""
    for n, one in enumerate(ascending):
        for m, other in enumerate(ascending):
            right = other.replace(" ", "T", 1) if constant and "BC" not in other else kind(other)
            found = {
                word: compile_expression(f"$c.a {word} $c.b").evaluate({"c": {"a": kind(one), "b": right}})
                for word in ("<", "==", ">")
            }
            assert found == {"<": n < m, "==": n == m, ">": n > m}, (one, other)


@given(st.datetimes(), st.datetimes())
def test_moments_that_python_has_are_ordered_as_python_does(one: datetime, other: datetime) -> None:
    pair = ordered(Timestamp(one.isoformat(" ")), other.isoformat())
    assert pair == (one, other)
    far = ordered(Timestamp(one.isoformat(" ")), Timestamp("10000-01-01 00:00:00"))
    assert far is not None
    assert far[0] < far[1]
    near = ordered(Timestamp("0001-12-31 00:00:00 BC"), Timestamp(one.isoformat(" ")))
    assert near is not None
    assert near[0] < near[1]


@pytest.mark.parametrize(
    ("value", "other", "why"),
    [
        (Date("infinity"), "soon", "a date and a string have no order"),
        (Date("infinity"), "2027-03-01T00:00:00", "a date and a string have no order"),
        (Date("infinity"), "2027-02-30", "a date and a string have no order"),
        (Date("2027-03-01"), Timestamp("2027-03-01 00:00:00"), "a date and a timestamp have no order"),
        (Timestamp("infinity"), "2027-03-01T00:00:00Z", "a timestamp and a string have no order"),
        (Timestamptz("infinity"), "2027-03-01T00:00:00", "a timestamp and a string have no order"),
        (Time("24:00:00"), 24, "a time and a number have no order"),
        (ServerText("1 mon"), "30 days", "a value of this type and a string have no order"),
        (
            ServerText("10.0.0.9"),
            ServerText("10.0.0.10"),
            "a value of this type and a value of this type have no order",
        ),
        (Money("$9.00"), "$10.00", "money and a string have no order"),
    ],
)
def test_what_has_no_order_is_refused(value: Any, other: Any, why: str) -> None:
    with pytest.raises(ExpressionFailure) as caught:
        compile_expression("$c.a < $c.b").evaluate({"c": {"a": value, "b": other}})
    assert caught.value.cause.endswith(why)
    assert compile_expression("$c.a == $c.b").evaluate({"c": {"a": value, "b": other}}) is False


def test_numbers_of_a_lookup_compare_exactly() -> None:
    [(jsonb, text)] = [(converter(3802), '{"n": 9007199254740993, "x": 0.12345678901234567890123}')]
    assert jsonb is not None
    context = {"c": {"doc": jsonb(text), "mrr": Decimal("9007199254740993.1")}}
    assert compile_expression("$c.doc.n == 9007199254740993").evaluate(context) is True
    assert compile_expression("$c.doc.n == 9007199254740992").evaluate(context) is False
    assert compile_expression("$c.mrr > 9007199254740993").evaluate(context) is True
    assert json_text(context["c"]["doc"]).decode() == text.replace(" ", "")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Date("2027-03-01"), "2027-03-01"),
        (Date("infinity"), "infinity"),
        (Timestamp("2027-03-01 12:00:00"), "2027-03-01T12:00:00"),
        (Timestamptz("2027-03-01 12:00:00+00"), "2027-03-01T12:00:00+00:00"),
        (Timestamptz("10000-03-01 12:00:00+00"), "10000-03-01T12:00:00+00"),
        (Timestamp("0044-03-15 12:00:00 BC"), "0044-03-15T12:00:00 BC"),
        (Time("24:00:00"), "24:00:00"),
        (Timetz("12:00:00+02"), "12:00:00+02:00"),
        (ServerText("1 mon"), "1 mon"),
        (Money("$1,234.56"), "$1,234.56"),
    ],
)
def test_messages_have_iso_8601_where_it_can_say_the_value(value: Any, said: str) -> None:
    assert json_text({"v": [value]}).decode() == f'{{"v":["{said}"]}}'
    for escape in (None, str):
        for template in (
            "{{ c.v }}",
            "{{ '' ~ c.v }}",
            "{{ [c.v] | join('') }}",
            "{{ c.v | replace('%', '') }}",
        ):
            assert compile_template(template, escape).render({"c": {"v": value}}) == said


def test_a_dates_methods_go_on_working() -> None:
    context = {"c": {"v": Date("2027-03-01"), "at": Timestamp("2027-03-01 12:00:00")}}
    assert compile_template("{{ c.v.strftime('%d.%m.') }} {{ c.v.year }}").render(context) == "01.03. 2027"
    assert compile_expression("$c.at.strftime('%H')").evaluate(context) == "12"
    assert Time("12:00:00").readable() == time(12)
    assert Date("2027-03-01").readable() == date(2027, 3, 1)


def test_money_goes_as_a_number_to_columns_other_than_text() -> None:
    money = [Money.of("1.234,56 €", Decimal("1234.56")), None]
    assert texts(Column("v", "money", "other"), money) == [b"1234.56", None]
    assert texts(Column("v", "numeric", "other"), money) == [b"1234.56", None]
    assert texts(Column("v", "text", "text"), money) == ["1.234,56 €".encode(), None]


@pytest.mark.parametrize(
    ("oid", "text", "elements"),
    [
        (1007, "{1,NULL,3}", [1, None, 3]),
        (1007, "[2:3]={1,2}", [1, 2]),
        (1007, "{{1,2},{3,4}}", [[1, 2], [3, 4]]),
        (1007, "{}", []),
        (1000, "{t,f,NULL}", [True, False, None]),
        (
            1009,
            '{"",NULL,"NULL","a,b","q\\"\\\\","{x}",plain}',
            ["", None, "NULL", "a,b", 'q"\\', "{x}", "plain"],
        ),
        (1009, "{a b,c}", ["a b", "c"]),
        (1182, "{infinity,2027-01-01}", ["infinity", "2027-01-01"]),
        (3807, '{"[1, 2.50]",NULL}', [[1, Decimal("2.50")], None]),
    ],
)
def test_an_array_has_its_elements_and_its_text(oid: int, text: str, elements: list[Any]) -> None:
    convert = converter(oid)
    assert convert is not None
    array = convert(text)
    assert array == elements
    kind = array.type_sql
    assert texts(Column("v", kind, "array"), [array]) == [text.encode()]
    assert json_text(array) == json_text([*elements])
    assert compile_expression("$c.v|length").evaluate({"c": {"v": array}}) == len(elements)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("1E-7", "0.0000001"),
        ("0E-20", "0.00000000000000000000"),
        ("1E+22", "1" + "0" * 22),
        ("NaN", "NaN"),
        ("1.50", "1.50"),
    ],
)
def test_a_number_has_the_servers_digits_in_a_text(number: str, text: str) -> None:
    for values in ([Decimal(number)], [Decimal(number), "x"]):
        assert texts(Column("v", "text", "text"), values)[0] == text.encode()


def test_an_array_of_another_type_goes_by_its_elements() -> None:
    convert = converter(1000)
    assert convert is not None
    assert texts(Column("v", "text[]", "array"), [convert("{t,f}")]) == [b"{true,false}"]


def test_a_json_column_keeps_the_text_of_json() -> None:
    convert = converter(114)
    assert convert is not None
    for text in ('{"a": 1,  "a": 1e400}', "[1,  2]"):
        value = convert(text)
        assert texts(Column("v", "json", "json"), [value]) == [text.encode()]
    assert texts(Column("v", "jsonb", "json"), [convert('{"a": 1,  "a": 1.50}')]) == [b'{"a":1.50}']
    assert compile_expression("$c.v.a").evaluate({"c": {"v": convert('{"a": 5}')}}) == 5


@pytest.mark.parametrize("missing", ["continue", "retry", "dead"])
def test_a_row_that_cannot_be_read_is_a_dead_letter_whatever_missing_says(missing: Any) -> None:
    step = EnrichSpec("customer", "$event.customer_id", "source", "...", missing=missing)
    rows: Any = {"cus_1": Unreadable("column x cannot be read")}
    who = planner(pipeline(step), contract=False)
    planned, _ = plan(who, [event(b'{"customer_id": "cus_1"}')], rows)
    assert [(letter.code, letter.cause, letter.retry_for_seconds) for letter in planned.dead_letters] == [
        ("unreadable_entity", "enrich.entity customer: column x cannot be read", None)
    ]


def test_a_value_in_markup_is_escaped_as_text() -> None:
    source: Any = classify("$c.v", Markup(lambda text: f"<{text}>"))
    assert source.made_inert(Timestamp("2027-03-01 12:00:00")) == "<2027-03-01T12:00:00>"
