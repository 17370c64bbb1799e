"""Durations, sizes, addresses and starts read as people write them, and nothing else does."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.quantity import (
    Listen,
    format_duration,
    parse_boolean,
    parse_duration,
    parse_integer,
    parse_listen,
    parse_size,
    parse_start,
)

MILLISECOND = timedelta(milliseconds=1)


@given(st.integers(min_value=0, max_value=10**12))
def test_a_duration_printed_reads_back_as_the_same(milliseconds: int) -> None:
    duration = milliseconds * MILLISECOND
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("1.5h", 5400),
        ("24h", 86400),
        ("7d", 604800),
        ("1h30m", 5400),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize(
    "text", [7, 7.5, True, None, "", "7", "d", "-5m", "5 m", "5M", "1e3s", "5mm", "9" * 15 + "w"]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.text(max_size=12))
def test_no_text_breaks_the_readers(text: str) -> None:
    for reader in (parse_duration, parse_size, parse_listen, parse_start, parse_boolean, parse_integer):
        with suppress(ValueError):
            reader(text)


@given(
    st.integers(min_value=0, max_value=2**40),
    st.sampled_from([("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("kB", 1000), ("MB", 10**6)]),
)
def test_sizes_are_exact_in_bytes(number: int, unit: tuple[str, int]) -> None:
    assert parse_size(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize("text", [8, "8", "8G", "8gib", "-1B", "", None, "9" * 15 + "TiB"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_addresses_are_host_and_port() -> None:
    assert parse_listen("127.0.0.1:8377") == Listen("127.0.0.1", 8377)
    assert parse_listen("[::1]:0") == Listen("::1", 0)
    assert str(Listen("::1", 80)) == "[::1]:80"
    assert [parse_listen(text).is_loopback for text in ("localhost:1", "127.8.8.8:1", "0.0.0.0:1")] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("text", [8377, "8377", ":8377", "host", "host:65536", "::1:80", "http://h:1"])
def test_what_is_no_address_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_listen(text)


def test_a_start_in_time_has_its_zone() -> None:
    assert parse_start("now") == "now"
    assert parse_start("2027-03-01T00:00:00Z") == datetime(2027, 3, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="time zone"):
        parse_start("2027-03-01")


@pytest.mark.parametrize("word", ["yes", "on", "True", "1", 1, "", None])
def test_only_true_and_false_are_booleans(word: object) -> None:
    with pytest.raises(ValueError, match="true or false"):
        parse_boolean(word)


@pytest.mark.parametrize("word", ["012", "1_000", "0x1F", "1.0", True, None, 1.0, " 1"])
def test_only_decimal_numbers_are_whole_numbers(word: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_integer(word)
