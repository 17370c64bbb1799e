"""The alert rules under promtool: valid, and each seen firing and seen quiet."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.debian import tool

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"


def promtool(*arguments: str, folder: Path = PROMETHEUS) -> str:
    path, environment = tool("promtool", "prometheus")
    done = subprocess.run(
        [path, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_rules_and_the_scrape_configuration_are_valid() -> None:
    assert "rules found" in promtool("check", "rules", "rules.yml")
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_every_alert_fires_when_it_must_and_stays_quiet_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


@pytest.mark.slow
def test_two_environments_in_one_prometheus_never_hide_each_other(tmp_path: Path) -> None:
    """Every test of rules_test.yml with its bridge in prod, beside a staging where all is well: the same alerts fire,
    and say that they are prod's."""
    document = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())
    document["rule_files"] = [str(PROMETHEUS / "rules.yml")]
    healthy = document["tests"][0]["input_series"]
    staging = [
        {**one, "series": _in("staging", one["series"].replace('instance="', 'instance="s-'))}
        for one in healthy
    ]
    for test in document["tests"]:
        test["input_series"] = [
            *({**one, "series": _in("prod", one["series"])} for one in test["input_series"]),
            *staging,
        ]
        for case in test["alert_rule_test"]:
            for alert in case.get("exp_alerts", ()):
                alert["exp_labels"] = {**alert["exp_labels"], "env": "prod", "job": "outbox-bridge"}
    (tmp_path / "two.yml").write_text(yaml.safe_dump(document))
    assert "SUCCESS" in promtool("test", "rules", "two.yml", folder=tmp_path)


def _in(env: str, series: str) -> str:
    job = "" if "job=" in series else 'job="outbox-bridge", '
    return series.replace("{", f'{{env="{env}", {job}', 1)


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
