"""Idempotency keys that hold for a calendar period: one event a month, say, in the customer's own time zone."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import errors

import bridge
from bridge.postgres.outbox import suppressed
from tests.support.servers import Database

pytestmark = pytest.mark.matrix
App = psycopg.Connection[tuple[Any, ...]]


def period_key(app: App, period: str | None, zone: str | None, moment: str | None) -> str:
    row = app.execute(
        "select outbox.period_key('k', %s, %s, %s::timestamptz)", [period, zone, moment]
    ).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(
    ("period", "zone", "moment", "key"),
    [
        ("year", "UTC", "2026-12-31 23:59:59.999999Z", "k:2026"),
        ("year", "UTC", "2027-01-01 00:00:00Z", "k:2027"),
        ("year", "Pacific/Auckland", "2026-12-31 11:00:00Z", "k:2027"),  # summer there: UTC+13
        ("month", "UTC", "2028-02-29 23:59:59Z", "k:2028-02"),
        ("month", "UTC", "2026-11-30 23:30:00Z", "k:2026-11"),
        ("month", "Europe/Berlin", "2026-11-30 23:30:00Z", "k:2026-12"),
        ("month", "America/New_York", "2026-12-01 04:59:59Z", "k:2026-11"),
        ("month", "Pacific/Kiritimati", "2026-11-30 10:00:00Z", "k:2026-12"),  # UTC+14
        # ISO weeks begin on Monday and belong to the year of their Thursday
        ("week", "UTC", "2027-01-03 23:59:59Z", "k:2026-W53"),
        ("week", "UTC", "2027-01-04 00:00:00Z", "k:2027-W01"),
        ("week", "Europe/Berlin", "2024-12-29 23:00:00Z", "k:2025-W01"),
        # a day of 25 hours and one of 23
        ("day", "Europe/Berlin", "2026-10-24 22:00:00Z", "k:2026-10-25"),
        ("day", "Europe/Berlin", "2026-10-25 22:59:59Z", "k:2026-10-25"),
        ("day", "Europe/Berlin", "2026-10-25 23:00:00Z", "k:2026-10-26"),
        ("day", "Europe/Berlin", "2026-03-29 21:59:59Z", "k:2026-03-29"),
        ("day", "Europe/Berlin", "2026-03-29 22:00:00Z", "k:2026-03-30"),
        ("day", "Pacific/Apia", "2011-12-30 09:59:59Z", "k:2011-12-29"),  # there was no 30th
        ("day", "Pacific/Apia", "2011-12-30 10:00:00Z", "k:2011-12-31"),
        # 2:30 comes twice in that night, and both hours are hours
        ("hour", "Europe/Berlin", "2026-10-25 00:30:00Z", "k:2026-10-25T00:00Z"),
        ("hour", "Europe/Berlin", "2026-10-25 01:30:00Z", "k:2026-10-25T01:00Z"),
        ("hour", "Asia/Kolkata", "2026-11-23 08:29:59Z", "k:2026-11-23T07:30Z"),
        ("hour", "Asia/Kolkata", "2026-11-23 08:30:00Z", "k:2026-11-23T08:30Z"),
        ("hour", "Etc/GMT+5", "2026-11-23 08:30:00Z", "k:2026-11-23T08:00Z"),
    ],
)
def test_a_period_is_that_of_the_calendar_in_the_zone(
    app: App, period: str, zone: str, moment: str, key: str
) -> None:
    for session_zone in ("UTC", "Asia/Tokyo"):
        app.execute("select set_config('timezone', %s, false)", [session_zone])
        assert period_key(app, period, zone, moment) == key


@pytest.mark.parametrize(
    ("period", "zone", "says"),
    [
        ("fortnight", "UTC", "'fortnight' is not a period"),
        ("Month", "UTC", "'Month' is not a period"),
        (None, "UTC", "null is not a period"),
        ("month", "Europe/Berlinn", 'time zone "Europe/Berlinn" not recognized'),
        ("month", "UTC+2", "'UTC+2' is not a time zone"),
        ("month", "Europe/Berlin3", "'Europe/Berlin3' is not a time zone"),
        ("month", "EST", "'EST' is not a time zone"),
        ("month", "", "'' is not a time zone"),
        ("month", None, "null is not a time zone"),
    ],
)
def test_another_word_is_refused_and_said(app: App, period: str | None, zone: str | None, says: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=says.replace("+", r"\+")):
        period_key(app, period, zone, "2026-11-23")


@pytest.mark.parametrize(
    "call",
    [
        "outbox.period_key(null, 'month')",
        "outbox.period_key('', 'month')",
        "outbox.period_key('k', 'month', 'UTC', null)",
        "outbox.period_key('k', 'month', 'UTC', 'infinity')",
    ],
)
def test_no_key_and_no_moment_never_become_an_event_without_a_key(app: App, call: str) -> None:
    with pytest.raises(errors.InvalidParameterValue):
        app.execute(f"select outbox.emit('a', '{{}}', {call})".encode())


def test_one_event_a_period_and_the_rest_are_counted(app: App, source: Database) -> None:
    moments = [
        "2026-10-31 22:59Z",
        "2026-10-31 23:00Z",
        "2026-11-01Z",
        "2026-11-30 22:59Z",
        "2026-11-30 23:00Z",
    ]
    for moment in moments:
        app.execute(
            "select outbox.emit('a', '{}', outbox.period_key('cus_1', 'month', 'Europe/Berlin', %s::timestamptz))",
            [moment],
        )
    app.commit()
    assert source.execute("select idempotency_key from outbox.event order by seq") == [
        ("cus_1:2026-10",),
        ("cus_1:2026-11",),
        ("cus_1:2026-12",),
    ]
    with psycopg.connect(source.bridge_dsn, autocommit=True) as connection:
        assert suppressed(connection) == {"a": 2}


def test_python_emits_once_a_period_in_the_zone_given(app: App, source: Database) -> None:
    first = bridge.emit(app, "a", {}, idempotency_key="k", period="month")
    assert bridge.emit(app, "a", {}, idempotency_key="k", period="month", time_zone="UTC") == first
    for zone in ("Pacific/Kiritimati", ZoneInfo("Pacific/Niue")):  # 25 hours apart: never the same day
        bridge.emit(app, "b", {}, idempotency_key="k", key="o", period="day", time_zone=zone)
    for period in ("hour", "week", "year"):
        bridge.emit(app, period, {}, idempotency_key="k", headers={"h": 1}, period=period)
    app.commit()
    days = [
        f"k:{source.value('select (occurred_at at time zone %s)::date::text from outbox.event limit 1', [zone])}"
        for zone in ("Pacific/Kiritimati", "Pacific/Niue")
    ]
    assert days[0] != days[1]
    keys = source.execute("select type, idempotency_key, key, headers from outbox.event order by seq")
    assert keys[1:3] == [("b", days[0], "o", None), ("b", days[1], "o", None)]
    assert source.value(
        "select bool_and(idempotency_key = 'k:' || to_char(occurred_at at time zone 'UTC', case type"
        " when 'a' then 'YYYY-MM' when 'week' then 'IYYY-\"W\"IW' when 'year' then 'YYYY'"
        " else 'YYYY-MM-DD\"T\"HH24:00\"Z\"' end)) from outbox.event where type <> 'b'"
    )


def test_an_asynchronous_connection_takes_a_period_too(source: Database) -> None:
    async def produce() -> list[UUID]:
        async with await psycopg.AsyncConnection.connect(source.producer_dsn) as connection:
            return [
                await bridge.emit(
                    connection, "a", {}, idempotency_key="k", period="year", time_zone="Europe/Berlin"
                )
                for _ in range(2)
            ]

    first, second = asyncio.run(produce())
    assert first == second
    assert source.value("select count(*) from outbox.event where idempotency_key ~ '^k:2[0-9]{3}$'") == 1


def test_the_longest_key_that_python_takes_is_taken_by_the_outbox(app: App) -> None:
    for period, longest in (("hour", 237), ("day", 244), ("week", 246), ("month", 247), ("year", 250)):
        with pytest.raises(ValueError, match=rf"at most {longest} are allowed"):
            bridge.emit(app, "a", {}, idempotency_key="k" * (longest + 1), period=period)
        bridge.emit(app, "a", {}, idempotency_key="k" * longest, period=period)
    app.commit()


def test_a_zone_that_python_refuses_does_not_cost_the_transaction(app: App, source: Database) -> None:
    bridge.emit(app, "a", {})
    for wrong in ("Europe/Berlinn", "UTC+2", "EST", "../etc/passwd", "/etc/localtime", ""):
        with pytest.raises(ValueError, match=r"^time_zone is '"):
            bridge.emit(app, "a", {}, idempotency_key="k", period="month", time_zone=wrong)
    app.commit()
    assert source.value("select count(*) from outbox.event") == 1
