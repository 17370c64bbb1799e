"""`make check` holds what an event costs (bench/budget.py), and sees when it costs more or much less."""

from __future__ import annotations

import sys

import pytest

from bench import budget
from bench.budget import BACKLOGS, Cost


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> dict[str, Cost]:
    """Budgets of this Python, whichever it is: what is used, and a little more."""
    found = {name: budget.measured(backlog) for name, backlog in BACKLOGS.items()}
    budgets = {n: Cost(1.04 * c.instructions, 1.04 * c.calls, 1.04 * c.peak) for n, c in found.items()}
    monkeypatch.setattr(budget, "PYTHON", sys.version_info[:2])
    monkeypatch.setattr(budget, "BUDGET", budgets)
    return budgets


def test_what_an_event_costs_is_within_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert budget.main() == 0, capsys.readouterr().err


@pytest.mark.usefixtures("ours")
def test_one_more_decode_of_each_batch_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = budget.decode

    def twice(parts: list[list[bytes]]) -> object:
        return [*decode(parts)][:0] or decode(parts)

    monkeypatch.setattr(budget, "decode", twice)
    assert budget.main() == 1
    said = capsys.readouterr().err
    for name in BACKLOGS:
        assert f"{name}: " in said


def test_a_budget_that_is_much_too_large_is_seen(
    ours: dict[str, Cost], capsys: pytest.CaptureFixture[str]
) -> None:
    one = ours["single"]
    ours["single"] = Cost(2 * one.instructions, one.calls, one.peak)
    assert budget.main() == 1
    assert "single: " in capsys.readouterr().err
