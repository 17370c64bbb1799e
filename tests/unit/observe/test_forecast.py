"""The WAL forecast: how long until the slot is given up."""

from __future__ import annotations

from bridge.observe.state import WalForecast


def test_it_divides_what_is_left_by_the_rate_of_the_window() -> None:
    forecast = WalForecast(1000)
    assert forecast.seconds(0, 100, None) is None
    assert forecast.seconds(10, 200, None) == 80.0
    assert forecast.seconds(20, 300, 350) == 35.0  # the server's own limit comes first


def test_wal_that_does_not_grow_has_no_end() -> None:
    forecast = WalForecast(1000)
    forecast.seconds(0, 300, None)
    assert forecast.seconds(10, 300, None) is None
    assert forecast.seconds(400, 250, None) is None


def test_past_the_limit_nothing_is_left() -> None:
    forecast = WalForecast(1000)
    forecast.seconds(0, 900, None)
    assert forecast.seconds(1, 1200, None) == 0.0
