"""Bridges that share streams: each stream runs once, where its claim is. Wrong rules are caught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bridge.protocol import sharing as rules
from bridge.protocol.sharing import Share, Step, View
from tests.model import checks, sharing

WALKS = 250
next_step, share = rules.next_step, rules.share


def test_bridges_that_share_lose_nothing_and_come_to_rest() -> None:
    counts: Counter[str] = Counter()
    for number in range(WALKS):
        sharing.walk(f"make test/{number}", counts)
    assert [name for name in sharing.MUST_HAPPEN if not counts[name]] == []


def _returns_the_claim_of_a_stream_that_still_runs(**state: bool) -> Step:
    return Step.RELEASE if state["claimed"] and state["giving_up"] else next_step(**state)


def _starts_without_a_claim(**state: bool) -> Step:
    return next_step(**{**state, "claimed": True}) if not state["runs"] else next_step(**state)


def _never_returns_a_claim(**state: bool) -> Step:
    step = next_step(**state)
    return Step.NOTHING if step is Step.RELEASE else step


def _gives_up_nothing(view: View, me: str, **more: Any) -> Share:
    found = share(view, me, **more)
    return Share(found.claim, (), found.willing)


def _takes_nothing_that_another_left(view: View, me: str, **more: Any) -> Share:
    found = share(view, me, **more)
    return Share(
        [s for s in found.claim if len(view.members) > 1 or s == view.streams[0]],
        found.give_up,
        found.willing,
    )


def _moves_where_the_split_is_fair(view: View, me: str, **more: Any) -> Share:
    found = share(view, me, **more)
    mine = [stream for stream in view.streams if view.claims.get(stream) == me]
    others = any(set(view.willing.get(stream, ())) - {me} for stream in mine)
    return Share(found.claim, mine[:1] if others and not view.free() else found.give_up, found.willing)


WRONG: list[tuple[str, Callable[..., Any]]] = [
    ("next_step", _returns_the_claim_of_a_stream_that_still_runs),
    ("next_step", _starts_without_a_claim),
    ("next_step", _never_returns_a_claim),
    ("share", _gives_up_nothing),
    ("share", _takes_nothing_that_another_left),
    ("share", _moves_where_the_split_is_fair),
]


@pytest.mark.parametrize(("rule", "wrong"), WRONG, ids=[wrong.__name__.strip("_") for _, wrong in WRONG])
def test_the_model_catches_a_bridge_that(
    monkeypatch: pytest.MonkeyPatch, rule: str, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(rules, rule, wrong)
    with pytest.raises(checks.Violation):
        _walk_on()


def _walk_on() -> None:
    for number in range(WALKS):
        sharing.walk(f"1/{number}")
