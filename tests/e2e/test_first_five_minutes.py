"""The README's first five minutes, from the built wheel to the first enriched row; and what a wrong step says."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.demo.binaries import find_binaries
from tests.support import distribution
from tests.support.bridge_process import REPOSITORY
from tests.support.servers import Database, EmbeddedServer, create_database, drop_database, free_port

_MARK = "<!-- first-five-minutes: a test runs these lines -->"
_MOST_COMMANDS = 10
_numbers = itertools.count(1)


def transcript() -> tuple[list[str], str]:
    """The commands, and what the last one prints."""
    text = (REPOSITORY / "README.md").read_text().split(_MARK)[1]
    commands, printed = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)[:2]
    return commands.splitlines(), printed


@pytest.fixture(scope="module")
def wheel_commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a new virtual environment with our wheel; its dependencies are the tests' environment's."""
    directory = tmp_path_factory.mktemp("wheel")
    _, wheel = distribution.build(REPOSITORY, directory)
    return distribution.environment(directory / "venv", str(wheel), fetched=False)


class Shell:
    """Runs lines as a person would, each in the directory where the one before left off."""

    def __init__(self, commands: Path, directory: Path, source: str, warehouse: str) -> None:
        psql = shutil.which("psql") or str(find_binaries()["psql"])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTHON"))}
        self.environment = {
            **kept,
            "PATH": f"{commands}:{Path(psql).parent}:/usr/bin:/bin",
            "SOURCE_DSN": source,
            "WAREHOUSE_DSN": warehouse,
        }
        self.directory = directory
        self.daemon: subprocess.Popen[str] | None = None
        self.port = free_port()

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def __call__(self, line: str, code: int = 0) -> str:
        ran = self.run(line)
        assert ran.returncode == code, f"{line}: exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout + ran.stderr

    def init(self, line: str) -> None:
        """And a port of the test's own: the machine may have a bridge already."""
        self(line)
        self.directory = self.directory / "my-bridge"
        with (self.directory / "bridge.yaml").open("a") as file:
            file.write(f"\nadmin: {{ listen: 127.0.0.1:{self.port} }}\n")

    def edit(self, old: str, new: str) -> None:
        file = self.directory / "bridge.yaml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    def start(self) -> None:
        with (self.directory / "log").open("w") as log:
            self.daemon = subprocess.Popen(
                ["/bin/sh", "-c", "exec bridge run"],
                cwd=self.directory,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
            )

    def until(self, line: str, shows: str, deadline: float = 30.0) -> str:
        """The same line again, until it prints this."""
        end = time.monotonic() + deadline
        while shows not in (said := "".join((ran := self.run(line)).stdout + ran.stderr)):
            log = self.directory / "log"
            assert time.monotonic() < end, f"{line}\n{said}\n{log.read_text() if log.exists() else ''}"
        return said

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGTERM)
            assert self.daemon.wait(30) == 0


@pytest.fixture
def app(source: Database) -> Iterator[Database]:
    """A database that knows nothing of outboxes yet."""
    database = create_database(source.server, f"app_{next(_numbers)}")
    yield database
    drop_database(database)


@pytest.fixture
def warehouse(target: Database) -> Iterator[Database]:
    database = create_database(target.server, f"warehouse_{next(_numbers)}")
    yield database
    drop_database(database)


@pytest.fixture
def shell(wheel_commands: Path, tmp_path: Path, app: Database, warehouse: Database) -> Iterator[Shell]:
    made = Shell(wheel_commands, tmp_path, app.dsn, warehouse.dsn)
    yield made
    made.close()


@pytest.fixture
def prepared(shell: Shell) -> Shell:
    """Everything of the transcript before doctor."""
    lines, _ = transcript()
    shell.init(lines[2].partition(" && ")[0])
    for line in lines[3:6]:
        shell(line)
    return shell


def test_ten_commands_lead_from_the_wheel_to_the_first_enriched_row(shell: Shell) -> None:
    lines, printed = transcript()
    assert len(lines) <= _MOST_COMMANDS
    assert lines[0] == "pip install outbox-bridge"  # the fixture did
    assert lines[1].startswith("export SOURCE_DSN=")  # and this, with its own
    began = time.monotonic()
    for line in lines[2:-1]:
        if line.startswith("bridge init"):
            assert line.endswith("&& cd my-bridge")
            shell.init(line.partition(" && ")[0])
        elif line == "bridge run &":
            shell.start()
        else:
            shell(line)
    said = shell(lines[-1])  # at once: `bridge emit` has waited until it is there
    assert time.monotonic() - began < 300
    words = [row.split() for row in said.splitlines()[:3]]
    assert words == [row.split() for row in printed.splitlines()[:3]]
    shell.until("bridge status", "ready\n")


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
        for command, code in (("bridge run", 2), ("bridge doctor", 1)):
            said = prepared(command, code=code)
            assert f"127.0.0.1:{prepared.port}" in said
            assert "admin.listen" in said
            assert "ss -ltnp" in said


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
        assert ran.returncode == (1 if command == "bridge status" else 3)
        assert "canary" not in ran.stdout + ran.stderr
