"""Quiet hours, throttles and digests, without a clock."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.dispatch.noise import Digests, Quiet, Throttle
from bridge.sinks.joining import joined
from bridge.sinks.model import SINKS

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("begin", "end", "now", "hours"),
    [
        ("22:00", "07:00", "2026-11-27T20:59+00:00", 0.0),  # 21:59 in Berlin
        ("22:00", "07:00", "2026-11-27T21:00+00:00", 9.0),
        ("22:00", "07:00", "2026-11-28T05:30+00:00", 0.5),
        ("22:00", "07:00", "2026-11-28T06:00+00:00", 0.0),
        ("12:00", "13:00", "2026-11-27T11:30+00:00", 0.5),
        ("12:00", "13:00", "2026-11-27T12:00+00:00", 0.0),
        ("22:00", "07:00", "2026-10-24T20:00+00:00", 10.0),  # the night in which the clocks go back
        ("22:00", "07:00", "2026-03-28T21:00+00:00", 8.0),  # and forward
        (
            "02:30",
            "07:00",
            "2026-10-25T01:00+00:00",
            5.0,
        ),  # 02:00 for the second time; the first 02:30 counted
    ],
)
def test_quiet_hours_hang_on_the_wall(begin: str, end: str, now: str, hours: float) -> None:
    quiet = Quiet(time.fromisoformat(begin), time.fromisoformat(end), BERLIN)
    found = quiet.seconds(datetime.fromisoformat(now))
    assert found == pytest.approx(hours * 3600) or (begin == "02:30" and found in (0.0, 18000.0))


@given(
    st.times().map(lambda one: one.replace(second=0, microsecond=0)),
    st.times().map(lambda one: one.replace(second=0, microsecond=0)),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
)
def test_when_they_are_over_they_are_over_and_no_day_is_all_quiet(
    begin: time, end: time, now: datetime
) -> None:
    if begin == end:
        return
    quiet = Quiet(begin, end, BERLIN)
    seconds = quiet.seconds(now)
    assert 0.0 <= seconds <= 25 * 3600
    if seconds:
        assert quiet.seconds(now + timedelta(seconds=seconds)) == 0.0


def test_a_recipient_gets_so_many_and_the_next_when_the_first_is_old_enough() -> None:
    throttle = Throttle(2, 60.0)
    for at in (0.0, 10.0):
        assert throttle.wait("a", at) == 0.0
        throttle.took("a", at)
    assert throttle.wait("a", 20.0) == 40.0
    assert throttle.wait("b", 20.0) == 0.0
    assert throttle.wait("a", 60.0) == 0.0
    throttle.took("a", 60.0)
    assert throttle.wait("a", 61.0) == 9.0


def test_a_digest_goes_when_its_oldest_has_waited_or_when_there_are_enough() -> None:
    digests = Digests(60.0, 3)
    assert digests.wait("g", "1", 0.0, 100.0) == 60.0
    assert digests.wait("g", "2", 0.0, 130.0) == 30.0
    assert digests.wait("g", "2", 5.0, 135.0) == 25.0, "the same message does not count twice"
    assert digests.wait("h", "9", 0.0, 130.0) == 60.0
    assert digests.wait("g", "3", 0.0, 140.0) == 0.0
    digests.gone("g")
    assert digests.wait("g", "4", 0.0, 141.0) == 60.0
    assert digests.wait("g", "old", 3600.0, 142.0) == 0.0, "it waited while no bridge ran"


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("slack", {"text": "a\nb", "channel": "#x"}),
        ("telegram", {"text": "a\nb", "channel": "#x"}),
        ("discord", {"text": "a\nb", "channel": "#x"}),
        ("apprise", {"text": "a\nb", "channel": "#x"}),
        ("email", {"text": "a\nb", "channel": "#x"}),
    ],
)
def test_texts_go_one_under_the_other(kind: str, made: dict[str, str]) -> None:
    messages = [{"text": "a", "channel": "#x"}, {"text": None}, {"text": "b", "channel": "#y"}]
    assert joined(SINKS[kind].message.joins, messages) == made


def test_a_webhooks_data_is_a_list_of_what_each_has() -> None:
    joins = SINKS["webhook"].message.joins
    assert joined(joins, [{"data": {"n": 1}}, {"data": {"n": 2}}]) == {"data": [{"n": 1}, {"n": 2}]}
    assert joined(joins, [{"data": {"n": 1}}]) == {"data": {"n": 1}}
    assert joined(joins, [{"data": None}, {"data": 2}]) == {"data": [2]}, "a list, however many have one"


def test_what_only_a_later_message_has_is_in_the_digest() -> None:
    joins = SINKS["email"].message.joins
    first = {"subject": "s", "text": None, "html": ""}
    assert joined(joins, [first, {"text": "b"}]) == {"subject": "s", "text": "b", "html": ""}


def test_a_throttle_forgets_recipients_of_long_ago() -> None:
    throttle = Throttle(5, 60.0)
    for at in range(10_000):
        throttle.took(f"customer {at}", float(at))
    assert throttle.remembered <= 1000


def test_what_was_not_sent_does_not_count() -> None:
    throttle = Throttle(1, 60.0)
    throttle.took("a", 1.0)
    assert throttle.wait("a", 2.0) == 59.0
    throttle.back("a", 1.0)
    assert throttle.wait("a", 2.0) == 0.0
    throttle.back("a", 1.0)  # it was forgotten already
