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
