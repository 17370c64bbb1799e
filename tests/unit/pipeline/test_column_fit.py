"""What a column's type never takes, told from names: as the server's input functions answer (PostgreSQL manual, 8)."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.planning.column_fit import ColumnType, fit_of, refused


@pytest.mark.parametrize(
    ("base", "taken", "never"),
    [
        ("int2", ["1", " -32768 ", 32767, "0x1F", "1_000", "5.0"], ["seats", "", "32768", 40000, "5.5", "1e9"]),
        ("int8", ["9223372036854775807"], ["9223372036854775808", "NaN"]),
        ("numeric", ["1.5", "NaN", "-1e9", 0.1], ["seats", "1,5"]),
        ("bool", ["t", "yes", "OFF", "1", True], ["o", "ja", "2", ""]),
        ("uuid", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}"], ["a0ee", "seats"]),
        ("timestamptz", ["now", "infinity", "2027-01-01"], ["seats", ""]),
        ("date", ["1 May 2027"], ["soon"]),
        ("text", ["anything", "", 5], []),
        ("jsonb", ["anything"], []),
        ("ltree", ["anything"], []),
    ],
)  # fmt: skip
def test_words_that_a_type_takes_and_never_takes(base: str, taken: list[Any], never: list[Any]) -> None:
    assert refused([*taken, *never], ColumnType(base)) == never


def test_labels_and_lengths_decide() -> None:
    assert refused(["seats", "seat"], ColumnType("metric", "public.metric", ("seats",))) == ["seat"]
    assert refused(["abc", "abcd", "abc  "], ColumnType("varchar", "character varying(3)")) == ["abcd"]


def test_kinds() -> None:
    assert fit_of("boolean", ColumnType("int8")) == "never"
    assert fit_of("moment", ColumnType("numeric")) == "never"
    assert fit_of("object", ColumnType("_text")) == "never"
    assert fit_of("text", ColumnType("int8")) == "perhaps"
    assert fit_of("number", ColumnType("date")) == "perhaps"  # 20270101
    for given in ("text", "number", "boolean", "moment", "object", "array", "json", ""):
        assert fit_of(given, ColumnType("text")) == "fits"  # type: ignore[arg-type]  # of the words of Group
        assert fit_of(given, ColumnType("jsonb")) == "fits"  # type: ignore[arg-type]
