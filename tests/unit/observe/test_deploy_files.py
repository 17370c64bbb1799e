"""What stands in deploy/ speaks of metrics, labels, runbooks and settings that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from bridge.cli import cli
from tests.support.nats import server_program
from tests.unit.observe.test_metrics import labels_by_name, used_metrics

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
RUNBOOK = "https://github.com/outbox-bridge/outbox-bridge/blob/main/docs/operations.md"
LABELS_OF_THE_SCRAPE = {"instance", "job", "pod", "container"}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    found: list[dict[str, Any]] = document["groups"][0]["rules"]
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    return found


def dashboard_queries() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def metrics_in(query: str) -> set[str]:
    names = set(re.findall(r"\b(?:outbox_bridge|process)_\w+", query))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def labels_in(query: str) -> set[str]:
    selected = re.findall(r"(\w+)\s*=~?\s*\"", query)
    grouped = [name for group in re.findall(r"\bby \(([^)]*)\)", query) for name in re.split(r",\s*", group)]
    return {*selected, *grouped}


QUERIES = [*((rule["alert"], rule["expr"]) for rule in rules()), *dashboard_queries()]


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_names_metrics_and_labels_that_exist(where: str, query: str) -> None:
    known = labels_by_name(used_metrics(["eu", "us"]))
    names = metrics_in(query)
    assert names <= known.keys(), where
    allowed = set().union({"le"}, LABELS_OF_THE_SCRAPE, *(known[name] for name in names))
    assert labels_in(query) <= allowed, where
    assert names or "up{" in query


def test_the_dashboard_and_the_alerts_leave_no_metric_of_ours_unwatched() -> None:
    watched = set().union(*(metrics_in(query) for _, query in QUERIES))
    ours = {name for name in labels_by_name(used_metrics()) if name.startswith("outbox_bridge_")}
    assert ours - watched == set()


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_each_alert_has_a_severity_a_summary_and_a_runbook_that_exists() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (page, anchor in anchors) == (RUNBOOK, True), rule["alert"]


def test_the_line_that_sets_the_runbook_of_a_company_works_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    [line] = re.findall(r"^sed -i .*rules\.yml$", text, re.M)
    (tmp_path / "rules.yml").write_text((DEPLOY / "prometheus" / "rules.yml").read_text())
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    changed = yaml.safe_load((tmp_path / "rules.yml").read_text())
    for rule, before in zip(changed["groups"][0]["rules"], rules(), strict=True):
        url, anchor = (
            rule["annotations"]["runbook_url"],
            before["annotations"]["runbook_url"].partition("#")[2],
        )
        assert url == f"https://wiki.example.com/outbox-bridge#{anchor}"


def test_no_alert_aggregates_over_labels_of_an_environment() -> None:
    """`by` keeps what it names, and loses job, instance and env."""
    for rule in rules():
        assert " by " not in rule["expr"], rule["alert"]
        for labels in re.findall(r"(?:without|ignoring) \(([^)]*)\)", rule["expr"]):
            assert not {"job", "env"} & {label.strip() for label in labels.split(",")}, rule["alert"]


def test_each_alert_is_seen_firing_and_seen_quiet_in_the_rules_test() -> None:
    document = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text())
    cases = [case for test in document["tests"] for case in test["alert_rule_test"]]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    names = {rule["alert"] for rule in rules()}
    assert firing == names
    assert quiet == names


@pytest.mark.security(20)
def test_the_image_runs_as_any_user_and_takes_its_base_from_outside() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[0].startswith("ARG BASE_IMAGE=")
    last_stage = code[
        len(code) - next(i for i, line in enumerate(reversed(code)) if line.startswith("FROM")) :
    ]
    assert "USER 10001:10001" in last_stage
    assert any(line.startswith("HEALTHCHECK") for line in last_stage)
    assert not any(line.startswith("# syntax=") for line in lines)


@pytest.mark.security(20)
def test_the_composed_bridge_is_read_only_and_published_on_loopback() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    bridge = compose["services"]["bridge"]
    assert bridge["read_only"] is True
    assert bridge["cap_drop"] == ["ALL"]
    assert bridge["user"] == "10001:10001"
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert compose["version"] == "3.8"


def test_the_composed_databases_are_made_from_every_file_of_sql() -> None:
    text = (DEPLOY / "compose" / "init" / "10-databases.sql").read_text()
    named = re.findall(r"^\\ir /(sql/\S+)$", text, re.M)
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("sql/*/*.sql")}
    assert sorted(named) == sorted(files - {"sql/source/notify.sql"})  # only where somebody asks for it


def test_the_composed_configuration_is_one_that_lint_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "admin_token"
    token.write_text("x\n")
    config = tmp_path / "bridge.yaml"
    text = (DEPLOY / "compose" / "bridge.yaml").read_text()
    config.write_text(text.replace("/run/secrets/admin_token", str(token)))
    for name in ("SOURCE_DSN", "WAREHOUSE_DSN"):
        monkeypatch.setenv(name, "host=postgres dbname=app user=outbox_bridge")
    done = CliRunner().invoke(cli, ["lint", "--config", str(config)])
    assert done.exit_code == 0, done.output


def test_no_secret_stands_in_deploy() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"password=(?!\$\{)[^\s'\"]", text), path
            assert not re.search(r"token:\s*\"?(?!\$)[A-Za-z0-9]{8,}", text), path


# -- over a log ----------------------------------------------------------------------------------------


def test_the_composed_log_is_read_by_a_relay_and_applied_by_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compose = yaml.safe_load((DEPLOY / "compose-log.yaml").read_text())
    services = compose["services"]
    assert (services["relay"]["command"], services["worker"]["command"]) == (["relay"], ["worker"])
    assert {name for name in services if name.startswith("nats")} == {"nats-1", "nats-2", "nats-3"}
    for name in ("relay", "worker"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["build"]["args"]["EXTRAS"] == "[scale]"
    assert (
        services["postgres"] == yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["postgres"]
    )
    token = tmp_path / "admin_token"
    token.write_text("x\n")
    config = tmp_path / "bridge.yaml"
    text = (DEPLOY / "compose" / "bridge-log.yaml").read_text()
    config.write_text(text.replace("/run/secrets/admin_token", str(token)))
    for name in ("SOURCE_DSN", "WAREHOUSE_DSN"):
        monkeypatch.setenv(name, "host=postgres dbname=app user=outbox_bridge")
    monkeypatch.setenv("NATS_PASSWORD", "x")
    done = CliRunner().invoke(cli, ["scale", "plan", "--config", str(config)])
    assert done.exit_code == 0, done.output
    assert "3 copies" in done.output


def kubernetes_of_log() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "outbox-bridge-log.yaml").read_text()))


def test_pods_of_a_log_run_without_root_and_are_found_by_their_services() -> None:
    documents = kubernetes_of_log()
    pods = {one["metadata"]["name"]: one for one in documents if one["kind"] in ("Deployment", "StatefulSet")}
    assert {name: one["spec"]["replicas"] for name, one in pods.items()} == {
        "outbox-bridge-relay": 2,
        "outbox-bridge-worker": 3,
        "nats": 3,
    }
    for name, one in pods.items():
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert labels == one["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        [container] = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pods["outbox-bridge-relay"]["spec"]["template"]["spec"]["containers"][0]["args"] == ["relay"]
    for kind in ("Service", "PodDisruptionBudget"):
        chosen = [one["spec"]["selector"] for one in documents if one["kind"] == kind]
        names = {(one.get("matchLabels") or one)["app.kubernetes.io/name"] for one in chosen}
        assert names == set(pods), kind


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_a_real_server_takes_the_nodes_file(where: str, tmp_path: Path) -> None:
    text = (DEPLOY / "compose" / "nats.conf").read_text()
    if where == "kubernetes":
        [text] = [one["data"]["nats.conf"] for one in kubernetes_of_log() if one["kind"] == "ConfigMap"]
    file = tmp_path / "nats.conf"
    file.write_text(text)
    given = {"NODE": "nats-1", "POD_NAME": "nats-0", "NATS_PASSWORD": "x"}
    done = subprocess.run(
        [server_program(), "-t", "-c", str(file)], env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
