"""The README's first five minutes, from the built wheel to the first enriched row; and what a wrong step says."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from tests.e2e.shell import Shell, transcript, typed_seconds
from tests.support.servers import Database, EmbeddedServer

_MOST_COMMANDS = 10
_MOST_SECONDS = 120


def test_ten_commands_lead_from_the_wheel_to_the_first_enriched_row(shell: Shell) -> None:
    lines, printed = transcript()
    assert len(lines) <= _MOST_COMMANDS
    assert typed_seconds(lines) < _MOST_SECONDS
    assert lines[0] == "pip install outbox-bridge"  # the fixture did
    assert lines[1].startswith("export SOURCE_DSN=")  # and this, with its own
    for line in lines[2:-1]:
        if line.startswith("bridge init"):
            assert line.endswith("&& cd my-bridge")
            shell.init(line.partition(" && ")[0])
        elif line == "bridge run &":
            shell.start()
        else:
            shell(line)
    said = shell(lines[-1])  # at once: `bridge emit` has waited until it is there
    words = [row.split() for row in said.splitlines()[:3]]
    assert words == [row.split() for row in printed.splitlines()[:3]]
    shell.until("bridge status", "ready\n")


def test_the_first_block_may_be_pasted_at_once(shell: Shell) -> None:
    """Into a terminal, where commands might ask, or read what comes next."""
    lines, printed = transcript()
    said = shell.pasted("\n".join(lines[2:]) + "\n", "(1 row)")
    assert printed.splitlines()[2].strip() in said.replace("\r", "")


def test_an_event_of_ones_own_needs_only_what_init_prints(shell: Shell) -> None:
    """No recipe: one command, the lines that it prints, as printed, an event, and a look at the row."""
    shell.environment["EDITOR"] = "true"
    first = "bridge init --event order.placed --field order_id:string --field total:number my-bridge"
    last = [
        """bridge emit order.placed '{"order_id": "o1", "total": 19.99}'""",
        'psql "$WAREHOUSE_DSN" -c "select order_id, total from events.order_placed"',
    ]
    printed = shell.init(first).partition("Next:\n")[2].splitlines()
    steps = [re.sub(r"\s+#.*", "", line).strip() for line in printed if line.strip()]
    assert (steps[0], steps[-1]) == ("cd my-bridge", "bridge doctor && bridge run")
    lines = [first, *steps, *last]
    assert len(lines) <= _MOST_COMMANDS
    assert typed_seconds(lines) < _MOST_SECONDS
    for line in steps[1:-1]:
        shell(line)
    shell("bridge doctor")
    shell.start()
    assert "applied by" in shell.until(f"{last[0]} --wait 10", "applied by")
    assert "o1       | 19.99" in shell(last[1])


def test_a_typo_in_a_key_is_answered_with_the_word_that_was_meant(prepared: Shell) -> None:
    prepared.edit("destinations:", "destination:")
    for command in ("bridge doctor", "bridge run", "bridge lint"):
        ran = prepared.run(command)
        assert ran.returncode in (1, 2)
        said = ran.stdout + ran.stderr
        assert re.search(r"bridge\.yaml:\d+:\d+", said)
        assert "did you mean" in said
        assert "destinations" in said


@pytest.mark.slow
def test_a_missing_grant_is_answered_with_the_grant(
    prepared: Shell, app: Database, warehouse: Database
) -> None:
    prepared.environment |= {"SOURCE_DSN": app.bridge_dsn, "WAREHOUSE_DSN": warehouse.bridge_dsn}
    said = prepared("bridge doctor", code=1)
    assert "grant usage on schema bridge to outbox_bridge;" in said
    for _ in range(5):  # rights on a schema come before those on what is in it
        found = json.loads(prepared.run("bridge doctor --json").stdout)
        for check in found["checks"]:
            if check["level"] == "error":
                assert check["fix_kind"] == "sql", check
                (app if check["where"] == "source" else warehouse).execute(check["fix"])
    assert "0 errors" in prepared("bridge doctor")
    warehouse.execute("revoke insert on events.usage_limits from outbox_bridge")
    prepared.start()
    said = prepared.until("bridge status", "privilege_missing")
    assert 'grant insert on "events"."usage_limits" to outbox_bridge;' in said


def test_a_missing_table_is_named_and_delivery_goes_on_when_it_is_there(
    prepared: Shell, warehouse: Database
) -> None:
    warehouse.execute("alter table events.usage_limits rename to later")
    assert "events.usage_limits does not exist" in prepared("bridge doctor", code=1)
    prepared.start()
    assert "create it" in prepared.until("bridge status", "table_missing")
    lines, _ = transcript()
    prepared(lines[-2] + " --wait 0")
    warehouse.execute("alter table events.later rename to usage_limits")
    prepared.until(lines[-1], "cus_1")


def test_a_port_that_is_taken_is_answered_with_the_key_to_change(prepared: Shell) -> None:
    with socket.create_server(("127.0.0.1", prepared.port)):
        prepared.start()
        said = prepared.until("bridge status", "port_in_use") + prepared("bridge doctor", code=1)
        assert said.count(f"127.0.0.1:{prepared.port}") >= 2
        assert said.count("admin.listen") >= 2
        assert said.count("ss -ltnp") >= 2
    prepared.until("bridge status", "ready\n")


@pytest.mark.slow
def test_a_step_that_was_left_out_is_answered_with_that_step(shell: Shell, warehouse: Database) -> None:
    lines, _ = transcript()
    shell.init(lines[2].partition(" && ")[0])
    assert "bridge install" in shell("bridge doctor", code=1)
    assert "fix: bridge install" in shell(lines[8], code=1)
    shell(lines[3])
    said = shell("bridge doctor", code=1)
    assert "bridge schema target | psql" in said
    shell.start()
    assert "bridge schema target | psql" in shell.until("bridge status", "ledger_schema_missing")


@pytest.mark.data_directory
def test_a_wrong_password_is_answered_with_where_to_correct_it(
    wheel_commands: Path,
    tmp_path: Path,
    source: Database,
    source_cluster: EmbeddedServer,
    warehouse: Database,
) -> None:
    rules = source_cluster.data / "pg_hba.conf"
    rules.write_text("host all postgres all trust\nhost all all all scram-sha-256\n")
    source.execute("select pg_reload_conf()")
    shell = Shell(wheel_commands, tmp_path, source.bridge_dsn + " password=canary", warehouse.dsn)
    shell.init("bridge init --recipe usage-limits my-bridge")
    said = shell.until("bridge doctor", "reach_password")
    assert "role outbox_bridge" in said
    for command in ("bridge doctor", "bridge install", "bridge status"):
        ran = shell.run(command)
        assert ran.returncode == 3
        assert "canary" not in ran.stdout + ran.stderr
