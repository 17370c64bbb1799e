"""Columns as binary arrays: what the server reads out of them is what went in."""

from __future__ import annotations

import re
from struct import unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.postgres.target import text_array, uuid_array

_PRINTED = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def elements(array: bytes) -> tuple[int, list[bytes | None]]:
    """(type oid, elements) as array_recv reads them."""
    dimensions, _, oid = unpack_from("!iiI", array)
    if not dimensions:
        return oid, []
    count, lower = unpack_from("!ii", array, 12)
    assert (dimensions, lower) == (1, 1)
    at, found = 20, []
    for _ in range(count):
        (length,) = unpack_from("!i", array, at)
        at += 4
        found.append(None if length < 0 else array[at : at + length])
        at += max(0, length)
    assert at == len(array)
    return oid, found


@given(st.lists(st.none() | st.binary(max_size=5) | st.binary(min_size=4090, max_size=4100), max_size=6))
def test_a_text_array_holds_its_values(values: list[bytes | None]) -> None:
    assert elements(text_array(values)) == (25, values)


uuids = st.uuids().map(lambda value: str(value).encode())
mangled = st.one_of(
    st.tuples(uuids, st.integers(0, 35), st.sampled_from([b"", b"-", b"x", b"A", b"00"])).map(
        lambda some: some[0][: some[1]] + some[2] + some[0][some[1] + 1 :]
    ),
    uuids.map(lambda value: b"{" + value + b"}"),
    uuids.map(lambda value: value.replace(b"-", b"") + b"----"),
    uuids.map(bytes.upper),
    st.none(),
    st.binary(min_size=36, max_size=36),
)


@given(st.lists(uuids, min_size=1, max_size=5))
def test_a_uuid_array_holds_its_values(values: list[bytes]) -> None:
    array = uuid_array(values)
    assert array is not None
    assert elements(array) == (2950, [bytes.fromhex(value.replace(b"-", b"").decode()) for value in values])


@given(st.lists(uuids | mangled, max_size=4))
def test_only_what_postgres_prints_becomes_a_uuid_array(values: list[bytes | None]) -> None:
    printed = bool(values) and all(value is not None and _PRINTED.fullmatch(value) for value in values)
    assert (uuid_array(values) is not None) == printed


@pytest.mark.parametrize("cut", [35, 1, 8])
def test_digits_do_not_move_from_one_value_to_the_next(cut: int) -> None:
    both = b"0190f1c2-0000-7000-8000-0000000000010190f1c2-0000-7000-8000-000000000002"
    assert uuid_array([both[:cut], both[cut:]]) is None
