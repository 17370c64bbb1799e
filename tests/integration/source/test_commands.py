"""bridge schema, install, emit and prune as a person runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bridge_process import REPOSITORY, run_command
from tests.support.servers import Database

CONFIG = """
version: 1
source: {{ dsn: "{dsn}", slot: app_events }}
connections:
  warehouse: {{ type: postgres, dsn: "{dsn}" }}
events:
  usage.limit_reached: {{ customer_id: string, used: number }}
pipelines:
  limits:
    event: usage.limit_reached
    destinations: {{ limits: {{ connection: warehouse, table: events.limits }} }}
"""


class Command:
    """Runs `bridge` with a configuration for one database."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.config = directory / "bridge.yaml"
        self.config.write_text(CONFIG.format(dsn=dsn))

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bridge", *arguments, "-c", str(self.config)]
        ran = run_command(command, os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdin)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran


@pytest.fixture
def bridge(tmp_path: Path, empty: Database) -> Command:
    return Command(tmp_path, empty.dsn)


def test_install_says_what_it_did_and_what_to_run_next(bridge: Command, empty: Database) -> None:
    said = bridge("install").stdout
    assert f"source: database {empty.name} on 127.0.0.1" in said
    assert "created publication app_events for outbox.event" in said
    assert "bridge schema target | psql ...   -- as the owner of connection warehouse's database" in said
    assert empty.value("select to_regnamespace('bridge')") is None  # the target is never touched
    again = bridge("install").stdout
    assert "applied migration" not in again
    assert re.search(r"the outbox is at version \d+", again)


def test_emit_prints_the_id_and_answers_a_used_key_with_the_first(bridge: Command, empty: Database) -> None:
    bridge("install")
    payload = '{"customer_id": "cus_1", "used": 12345678901234567890.123456789}'
    first = bridge(
        "emit", "usage.limit_reached", payload, "--idempotency-key", "k", "--key", "cus_1"
    ).stdout.strip()
    assert empty.execute("select id::text, key, payload->>'used' from outbox.event") == [
        (first, "cus_1", "12345678901234567890.123456789")
    ]
    again = bridge("emit", "usage.limit_reached", "-", "--idempotency-key", "k", stdin=payload).stdout
    assert again.strip() == f"{first}  (inserted earlier with this idempotency key)"
    assert empty.value("select count(*) from outbox.event") == 1


def test_emit_says_when_a_type_leads_nowhere(bridge: Command, empty: Database) -> None:
    bridge("install")
    ran = bridge("emit", "usage.limit_reachd", '{"customer_id": "cus_1", "used": 1}')
    assert ran.stderr.strip() == (
        "warning: no pipeline takes usage.limit_reachd; did you mean usage.limit_reached?"
    )
    assert empty.value("select id::text from outbox.event") == ran.stdout.strip()
    known = bridge("emit", "usage.limit_reached", '{"customer_id": "cus_1", "used": 1}', "--wait", "0")
    assert known.stderr == ""


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ('{"canary": ', "not valid JSON: Expecting value at line 1 column 12"),
        ('["canary"]', "must be an object"),
        ('{"customer_id": "canary", "used": NaN}', "payload.used is NaN"),
        (r'{"customer_id": "canary\u0000", "used": 1}', "payload.customer_id contains a NUL character"),
        ('{"customer_id": "canary", "used": ' + "9" * 5000 + "}", "a number is too long"),
    ],
)
def test_emit_refuses_a_payload_without_repeating_it(bridge: Command, payload: str, says: str) -> None:
    said = bridge("emit", "usage.limit_reached", payload, code=2).stderr
    assert says in " ".join(said.replace("│", " ").split())
    assert "canary" not in said


def test_emit_refuses_what_breaks_the_contract_and_names_the_field(bridge: Command, empty: Database) -> None:
    bridge("install")
    said = bridge("emit", "usage.limit_reached", '{"customer_id": "canary"}', code=1).stderr
    assert 'it breaks its contract: field "used": missing' in said
    assert "canary" not in said
    assert empty.value("select count(*) from outbox.event") == 0
    said = bridge("emit", "usage.limit_reached", '{"customer_id": "cus_1"}', "--force").stderr
    assert said.startswith("warning: usage.limit_reached breaks its contract")
    assert empty.value("select count(*) from outbox.event") == 1


def test_emit_before_install_says_to_install(bridge: Command) -> None:
    said = bridge("emit", "usage.limit_reached", '{"customer_id": "cus_1", "used": 1}', code=1).stderr
    assert 'schema "outbox" does not exist (3F000)' in said
    assert "fix: bridge install" in said


def test_prune_before_install_says_to_install(bridge: Command) -> None:
    assert "fix: bridge install" in bridge("prune", code=1).stderr


def test_a_member_of_a_role_that_lost_its_rights_is_told_to_install(tmp_path: Path, source: Database) -> None:
    source.execute("revoke usage on schema outbox from outbox_producer")
    as_app = Command(tmp_path, source.producer_dsn)
    said = as_app("emit", "usage.limit_reached", '{"customer_id": "cus_1", "used": 1}', code=1).stderr
    assert "fix: bridge install" in said


def test_a_server_that_does_not_answer_is_exit_code_3(tmp_path: Path) -> None:
    nobody = Command(tmp_path, "host=127.0.0.1 port=1 dbname=app")
    for command in (
        ["install"],
        ["prune"],
        ["emit", "usage.limit_reached", '{"customer_id": "c", "used": 1}'],
    ):
        said = nobody(*command, code=3).stderr
        assert "cannot connect to the source" in said
        assert "fix: " in said


def test_prune_reports_counts_and_a_dry_run_only_counts(tmp_path: Path, source: Database) -> None:
    source.execute(
        "insert into outbox.event (type, payload, occurred_at) values ('a', '{}', now() - interval '8 days')"
    )
    bridge = Command(tmp_path, source.bridge_dsn)
    assert "no stream is registered" in bridge("prune").stdout
    source.execute("insert into outbox.stream (stream, floor) values ('warehouse', pg_current_snapshot())")
    assert bridge("prune", "--dry-run").stdout.startswith("1 events would be deleted")
    assert source.value("select count(*) from outbox.event") == 1
    assert bridge("prune").stdout.startswith("1 events deleted")
    assert source.value("select count(*) from outbox.event") == 0


def test_schema_prints_json_schemas(bridge: Command) -> None:
    contract = json.loads(bridge("schema", "event", "usage.limit_reached").stdout)
    assert contract["required"] == ["customer_id", "used"]
    printed = subprocess.run(
        [sys.executable, "-m", "bridge", "schema", "config"], capture_output=True, check=True
    )
    assert "pipelines" in json.loads(printed.stdout)["properties"]


def test_an_unknown_recipe_is_an_error_of_usage() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bridge", "schema", "recipe", "no-such"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "there is no recipe 'no-such' with tables of its own" in ran.stderr
