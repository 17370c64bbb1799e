"""Filters for people's texts, and moments in ISO 8601; none of them grows a text without limit."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import ExpressionFailure
from bridge.expressions.expression import compile_expression
from bridge.expressions.filters import FILTERS, moment_text
from bridge.expressions.server_text import Date, Timestamptz
from bridge.expressions.template import compile_template

DOCUMENT = Path(__file__).parents[3] / "docs" / "expressions.md"


@pytest.mark.parametrize(
    ("template", "value", "said"),
    [
        ("{{ event.v | date }}", "2027-03-01T23:30:00+00:00", "2027-03-01"),
        (
            '{{ event.v | date("%d.%m.%Y %H:%M", "Europe/Berlin") }}',
            "2027-03-01T23:30:00Z",
            "02.03.2027 00:30",
        ),
        ('{{ event.v | date("%-d %b %Y") }}', "2027-03-01 09:00:00+00", "1 Mar 2027"),
        ('{{ event.v | date("%H:%M %z", "Asia/Kolkata") }}', "2027-03-01 09:00:00", "14:30 +0530"),
        ('{{ event.v | date("%A") }}', "2027-03-01", "Monday"),
        ("{{ event.v | date }}", 1803891600, "2027-03-01"),
        ("{{ event.v | date }}", 1803891600000, "2027-03-01"),
        ("{{ event.v | date }}", "1803891600", "2027-03-01"),
        ('{{ event.v | date("100 %%") }}', "2027-03-01", "100 %"),
        ('{{ event.v | date("%H") }}', Timestamptz("2027-03-01 09:00:00+00"), "09"),
        ('{{ event.v | date("%Y") }}', Date("2027-03-01"), "2027"),
        ("{{ event.v | date }}", None, ""),
        ("{{ event.v | number(2) }}", 1234.5, "1,234.50"),
        ('{{ event.v | number(2, ".", ",") }}', 1234567.891, "1.234.567,89"),
        ('{{ event.v | number(0, " ") }}', 1234.5, "1 235"),
        ("{{ event.v | number }}", 1234567, "1,234,567"),
        ("{{ event.v | number }}", "1234.5", "1,234.5"),
        ("{{ event.v | number }}", Decimal("1490.00"), "1,490"),
        ("{{ event.v | number(1) }}", -0.05, "-0.1"),
        ('{{ event.v | number(2, "") }}', 1234, "1234.00"),
        ("{{ event.v | number }}", None, ""),
        ("{{ event.v | truncate(5) }}", "abcdefgh", "abcd\N{HORIZONTAL ELLIPSIS}"),
        ('{{ event.v | truncate(5, "...") }}', "abcdefgh", "ab..."),
        ("{{ event.v | truncate(8) }}", "abcdefgh", "abcdefgh"),
        ("{{ event.v | truncate }}", "x" * 300, "x" * 254 + "\N{HORIZONTAL ELLIPSIS}"),
        ("{{ event.v | truncate(5) }}", None, ""),
        ("{{ event.v | length }}", "abc", "3"),
    ],
)
def test_what_a_filter_makes(template: str, value: Any, said: str) -> None:
    assert compile_template(template).render({"event": {"v": value}}) == said
    expression = template.removeprefix("{{ ").removesuffix(" }}").replace("event.v", "$event.v")
    made = compile_expression(expression).evaluate({"event": {"v": value}})
    assert ("" if made is None else str(made)) == said


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ('{{ event.v | date("%1000000d") }}', "2027-03-01"),
        ('{{ event.v | date("%c") }}', "2027-03-01"),
        ("{{ event.v | date(event.f) }}", "2027-03-01"),
        ('{{ event.v | date("%Y", "Nowhere/City") }}', "2027-03-01T00:00:00Z"),
        ("{{ event.v | date }}", "CANARY"),
        ("{{ event.v | date }}", True),
        ("{{ event.v | date }}", 10**30),
        ("{{ event.v | number(1000000) }}", 1),
        ("{{ event.v | number(-1) }}", 1),
        ("{{ event.v | number }}", "1e1000000"),
        ("{{ event.v | number }}", "CANARY"),
        ("{{ event.v | number }}", True),
        ("{{ event.v | truncate(-5) }}", "CANARY"),
    ],
)
def test_what_has_no_answer_is_an_error_without_values(template: str, value: Any) -> None:
    with pytest.raises(ExpressionFailure) as caught:
        compile_template(template).render({"event": {"v": value, "f": "%Y" * 10_000}})
    assert "CANARY" not in caught.value.cause


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**15), max_value=10**15))
def test_a_number_can_be_read_back(number: Decimal) -> None:
    shown = FILTERS["number"](number, 3)
    assert Decimal(shown.replace(",", "")) == number


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2027-03-01 09:00:00+00", "2027-03-01T09:00:00+00:00"),
        ("2027-03-01 14:30:00.12+05:30", "2027-03-01T09:00:00.120000+00:00"),
        ("2027-03-01T09:00:00Z", "2027-03-01T09:00:00+00:00"),
        ("2027-03-01 09:00:00", "2027-03-01T09:00:00"),
        ("2027-03-01", "2027-03-01"),
        ("infinity", "infinity"),
        ("0044-03-15 12:00:00+00 BC", "0044-03-15T12:00:00+00 BC"),
        ("10000-03-01 12:00:00+00", "10000-03-01T12:00:00+00"),
        ("0001-01-01 00:00:00+01", "0001-01-01T00:00:00+01"),
    ],
)
def test_a_moment_is_said_in_iso_8601_and_utc(text: str, said: str) -> None:
    assert moment_text(text) == said


def test_every_filter_of_ours_is_documented() -> None:
    for name in FILTERS:
        assert f"| `{name}(" in DOCUMENT.read_text()
