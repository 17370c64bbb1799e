"""The alert rules under promtool: valid, and each seen firing and seen quiet."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.debian import tool

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"


def promtool(*arguments: str) -> str:
    path, environment = tool("promtool", "prometheus")
    done = subprocess.run(
        [path, *arguments],
        cwd=PROMETHEUS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_rules_and_the_scrape_configuration_are_valid() -> None:
    assert "rules found" in promtool("check", "rules", "rules.yml")
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_every_alert_fires_when_it_must_and_stays_quiet_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_the_exposition_is_what_prometheus_reads() -> None:
    from tests.unit.observe.test_metrics import used_metrics  # noqa: PLC0415  # only this test needs the package

    path, environment = tool("promtool", "prometheus")
    done = subprocess.run(
        [path, "check", "metrics"],
        env=environment,
        input=used_metrics().exposition(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
