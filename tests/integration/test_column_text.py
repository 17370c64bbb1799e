"""Column text against a real server: what the planner writes is what Postgres reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from bridge.planning.column_text import texts
from bridge.planning.plan import Column, ColumnKind
from tests.support.servers import Database

characters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)
numbers = st.one_of(
    st.integers(-(10**35), 10**35),
    st.decimals(min_value=-(10**30), max_value=10**30, places=9),
    st.sampled_from([Decimal("1E+400"), Decimal("-0"), 2**53 + 1, 2**64, Decimal("1E-12")]),
)
exactly = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def connection(target: Database) -> Iterator[Connection[Any]]:
    """One connection for all examples of a test."""
    with target.connect() as opened:
        yield opened


def ask(connection: Connection[Any], query: str, text: bytes | None) -> Any:
    row = connection.execute(query, [None if text is None else text.decode()]).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def through(connection: Connection[Any], kind: ColumnKind, type_sql: str, value: Any) -> Any:
    """The value as the server gives it back after reading our text as this type."""
    (text,) = texts(Column("c", type_sql, kind), [value])
    return ask(connection, f"select %s::text::{type_sql}", text)


@exactly
@given(value=numbers)
def test_numbers_are_read_as_they_were(connection: Connection[Any], value: int | Decimal) -> None:
    assert through(connection, "other", "numeric", value) == value


@exactly
@given(items=st.lists(st.one_of(st.none(), characters), max_size=4))
def test_text_arrays_are_read_as_they_were(connection: Connection[Any], items: list[str | None]) -> None:
    assert through(connection, "array", "text[]", items) == items


@exactly
@given(items=st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=3))
def test_nested_arrays_of_numbers_are_read_as_they_were(
    connection: Connection[Any], items: list[list[Any]]
) -> None:
    assert through(connection, "array", "numeric[]", items) == items


@exactly
@given(
    items=st.lists(st.dictionaries(characters, st.one_of(st.none(), st.booleans(), characters)), max_size=3)
)
def test_json_arrays_are_read_as_they_were(connection: Connection[Any], items: list[Any]) -> None:
    assert through(connection, "array", "jsonb[]", items) == items


@exactly
@given(value=st.dictionaries(characters, st.one_of(numbers, st.lists(characters, max_size=2)), max_size=3))
def test_json_keeps_every_digit(connection: Connection[Any], value: dict[str, Any]) -> None:
    (text,) = texts(Column("c", "jsonb", "json"), [value])
    printed = ask(connection, "select %s::text::jsonb::text", text)
    assert json.loads(printed, parse_float=Decimal) == value


@pytest.mark.parametrize(
    ("kind", "type_sql", "value", "expected"),
    [
        ("other", "bigint", Decimal("100.0"), 100),
        ("other", "boolean", True, True),
        ("other", "integer", 2.0, 2),
        ("text", "text", {"a": [1, None]}, '{"a":[1,null]}'),
        ("json", "jsonb", "a \"quoted\" text", 'a "quoted" text'),
        ("bytea", "bytea", "\\x0102", b"\x01\x02"),
        ("array", "integer[]", "{1,2}", [1, 2]),
        ("array", "boolean[]", [True, None], [True, None]),
    ],
)  # fmt: skip
def test_kinds_of_columns(
    connection: Connection[Any], kind: ColumnKind, type_sql: str, value: Any, expected: Any
) -> None:
    assert through(connection, kind, type_sql, value) == expected
