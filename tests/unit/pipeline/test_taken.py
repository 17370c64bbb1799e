"""Which types pipelines take, and which one a misspelt type may mean."""

from __future__ import annotations

import pytest

from bridge.planning.taken import LONGEST_NAME, TypesTaken, name_of, shown

TAKEN = TypesTaken(
    ("usage.limit_reached", "billing.*", "order.[cd]*"), ("billing.paid", "trial.ended"), ("audit.*",)
)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("usage.limit_reachd", "usage.limit_reached"),
        ("Usage.Limit_Reached", "usage.limit_reached"),
        ("usage.limit_reached ", "usage.limit_reached"),
        ("usage_limit_reached", "usage.limit_reached"),
        ("biling.paid", "billing.paid"),
        ("biling.refunded", "billing.refunded"),
        ("zzz", ""),
        ("", ""),
        ("trial.endd", ""),  # a contract alone takes nothing
    ],
)
def test_the_nearest_type_is_one_that_a_pipeline_takes(given: str, near: str) -> None:
    assert TAKEN.unmatched(given)
    assert TAKEN.near(given) == near
    assert not near or TAKEN.takes(near)


def test_what_is_ignored_on_purpose_is_not_unmatched() -> None:
    assert not TAKEN.unmatched("audit.login")
    assert not TAKEN.unmatched("billing.x")
    assert TAKEN.unmatched("trial.ended")
    assert "ignore_types" in TAKEN.said("audit.login")


def test_a_type_is_shown_in_one_short_line_whatever_it_is() -> None:
    assert name_of(b"x" * 10_000) == "x" * (LONGEST_NAME - 1) + "…"
    assert name_of("é".encode() * 10_000) == "é" * (LONGEST_NAME - 1) + "…"
    assert name_of(b"\xff") == "�"
    assert shown("usage.limit") == "usage.limit"
    assert shown("a b") == '"a b"'
    assert shown("") == '""'
    assert shown("\x1b[31m") == '"\\u001b[31m"'
