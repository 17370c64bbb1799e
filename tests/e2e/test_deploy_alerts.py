"""The alert rules under promtool: valid, and each seen firing and seen quiet."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


KEPT = ("env", "instance", "job")
WITHOUT = {"OutboxBridgeMissing": ("instance",)}
"""What an alert cannot have: an instance that is gone has a successor of another name, which counts."""


def rule_files() -> list[Path]:
    """Every file of deploy/ that has alerts."""
    return [path for path in PROMETHEUS.parent.rglob("*.y*ml") if "- alert:" in path.read_text()]


def _rules(change: Callable[[str], str] = str) -> tuple[dict[str, Any], set[str]]:
    """Every alert rule, without its words, and their names. change: of the expression."""
    groups = []
    for path in rule_files():
        for group in yaml.safe_load(path.read_text())["groups"]:
            rules = [{**rule, "expr": change(rule["expr"])} for rule in group["rules"] if "alert" in rule]
            for rule in rules:
                rule.pop("annotations", None)
            groups.append({"name": f"{path.name} {group['name']}", "rules": rules})
    return {"groups": groups}, {rule["alert"] for group in groups for rule in group["rules"]}


def _of_both() -> dict[str, Any]:
    """The cases of rules_test.yml in which something fires, with the same in prod and in staging at once: both fire,
    and say whose they are."""
    tests = []
    for test in yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]:
        cases = [case for case in test["alert_rule_test"] if case.get("exp_alerts")]
        for case in cases:
            lacks = WITHOUT.get(case["alertname"], ())
            one = [{"instance": "x", **alert["exp_labels"]} for alert in case["exp_alerts"]]
            case["exp_alerts"] = [
                {"exp_labels": {name: value for name, value in labels.items() if name not in lacks}}
                for env in ("prod", "staging")
                for each in one
                for labels in [
                    {**each, "env": env, "job": "outbox-bridge", "instance": f"{env}-{each['instance']}"}
                ]
            ]
        if cases:
            series = [
                {**one, "series": _of_instance(env, one["series"])}
                for env in ("prod", "staging")
                for one in test["input_series"]
            ]
            tests.append({**test, "input_series": series, "alert_rule_test": cases})
    return {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}


def _of_instance(env: str, series: str) -> str:
    named = series if "instance=" in series else series.replace("{", '{instance="x", ', 1)
    return _in(env, named.replace('instance="', f'instance="{env}-'))


def test_each_alert_says_its_environment_instance_and_job(tmp_path: Path) -> None:
    rules, names = _rules()
    document = _of_both()
    seen = {case["alertname"] for test in document["tests"] for case in test["alert_rule_test"]}
    assert seen == names, "rules_test.yml has each alert firing"
    (tmp_path / "both.yml").write_text(yaml.safe_dump(document))
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    assert "SUCCESS" in promtool("test", "rules", "both.yml", folder=tmp_path)


@pytest.mark.parametrize("lost", [*KEPT, "everything"])
def test_a_rule_that_aggregates_a_label_away_is_found(lost: str, tmp_path: Path) -> None:
    """The test above fails for each rule that loses one of the labels, or keeps only labels of ours."""
    how = "by (stream, destination)" if lost == "everything" else f"without ({lost})"
    rules, names = _rules(lambda expression: f"max {how} ({expression})")
    (tmp_path / "both.yml").write_text(yaml.safe_dump(_of_both()))
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    path, environment = tool("promtool", "prometheus")
    done = subprocess.run(
        [path, "test", "rules", "both.yml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr))
    assert found == {name for name in names if lost not in WITHOUT.get(name, ())}


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
