"""`bridge demo` as a user runs it: a real bridge, real kills, and a verdict that can be no."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bridge_process import REPOSITORY


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bridge", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
    )


def test_the_demo_loses_and_doubles_nothing_and_writes_its_report(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = demo("--events", "3000", "--report", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost 0  duplicates 0" in done.stdout.splitlines()
    assert re.search(r"SIGKILL mid-stream +3,", done.stdout)
    assert re.search(r"messages at Slack +\d+ for 12 customers .* missing 0, repeated \d", done.stdout)
    assert "lost 0  duplicates 0" in report.read_text()


def test_the_demo_of_three_sources_tells_of_each_and_of_all(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = demo("--sources", "3", "--events", "1800", "--report", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    each = re.findall(r"source (\w+) +([\d,]+) events, ([\d,]+) rows; lost 0  duplicates 0", done.stdout)
    assert [name for name, _, _ in each] == ["eu", "us", "asia"]
    assert all(events == rows for _, events, rows in each)
    assert re.search(r"SIGKILL mid-stream +3,", done.stdout)
    assert re.search(r"messages at Slack +\d+ for 12 customers .* missing 0, repeated \d", done.stdout)
    assert "lost 0  duplicates 0" in done.stdout.splitlines()
    assert "source asia" in report.read_text()


@pytest.mark.slow
def test_the_demo_over_a_log_kills_a_worker_a_node_and_the_relay() -> None:
    done = demo("--scale", "--events", "2400")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"killed +a worker, node n\d, which leads the log, the relay", done.stdout)
    assert re.search(r"messages at Slack +\d+ for 12 customers .* missing 0, repeated \d", done.stdout)
    assert "lost 0  duplicates 0" in done.stdout.splitlines()


@pytest.mark.slow
def test_the_demo_of_two_sources_says_whose_row_is_lost() -> None:
    done = demo("--sources", "2", "--events", "400", "--tamper", "lose")
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(re.findall(r"source \w+ .* lost 1  duplicates 0", done.stdout)) == 1
    assert len(re.findall(r"source \w+ .* lost 0  duplicates 0", done.stdout)) == 1
    assert "lost 1  duplicates 0" in done.stdout.splitlines()


@pytest.mark.parametrize("words", [["ARGS=--sources 3"], ["ARGS=--sources", "3"], ["ARGS=--sources=3"]])
def test_make_passes_the_number_of_sources_quoted_or_not(words: list[str]) -> None:
    made = subprocess.run(
        ["make", "--dry-run", "demo", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ".venv/bin/bridge demo --sources 3" in made.stdout.replace("=", " ")


@pytest.mark.parametrize(
    ("tamper", "verdict"),
    [
        pytest.param("lose", "lost 1  duplicates 0", marks=pytest.mark.slow),
        pytest.param("double", "lost 0  duplicates 1", marks=pytest.mark.slow),
        pytest.param("alter", "lost 0  duplicates 0", marks=pytest.mark.slow),
    ],
)
def test_the_demo_admits_a_tampered_row(tamper: str, verdict: str) -> None:
    done = demo("--events", "400", "--tamper", tamper)
    assert done.returncode == 1, done.stdout + done.stderr
    assert verdict in done.stdout.splitlines()
    assert "the promise does NOT hold" in done.stdout
