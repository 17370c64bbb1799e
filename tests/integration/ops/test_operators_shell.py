"""Commands from a shell that has none of the bridge's variables, while its file is broken, moved or away: they ask the
bridge that runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import rich_click as click

from bridge.cli.env_file import variables
from tests.integration.ops.conftest import emit, letters, rows, usage
from tests.support.bridge_process import REPOSITORY
from tests.support.fixes import note
from tests.support.servers import Database
from tests.support.world import World, until

Ran = subprocess.CompletedProcess[str]


_ALONE = """
import runpy, sys
from pathlib import Path
from bridge.observe import operators
operators.SYSTEM = operators.SHARED = Path(sys.argv.pop(1))
runpy.run_module("bridge", run_name="__main__", alter_sys=True)
"""


_AS_NOBODY = """
import os, sys
from click.testing import CliRunner
from bridge.cli import cli
words = sys.argv[1:]
CliRunner().invoke(cli, words)  # imports everything: nobody may read the interpreter of root's home
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.argv = ["bridge", *words]
ran = CliRunner().invoke(cli, words)
print(ran.exit_code, ran.output, ran.exception)
"""


class Shell:
    """An operator's shell: no DSN in it, a directory of its own."""

    def __init__(self, cwd: Path, config: Path | None, runtime_directory: Path) -> None:
        self.cwd = cwd
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "XDG_RUNTIME_DIR": str(runtime_directory),
        }
        if config is not None:
            self.environment["BRIDGE_CONFIG"] = str(config)
        self.command = [sys.executable, "-m", "bridge"]

    def alone(self) -> Shell:
        """As on a machine where nobody else runs a bridge."""
        empty = self.cwd / "empty"
        empty.mkdir()
        self.environment["TMPDIR"] = str(empty)
        self.command = [sys.executable, "-c", _ALONE, str(empty)]
        return self

    def run(self, *arguments: str, **more: str) -> Ran:
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.cwd,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def typed(self, line: str) -> int:
        """A line that was printed, as it was printed."""
        note(line)
        (self.cwd / "bin").mkdir(exist_ok=True)
        command = self.cwd / "bin" / "bridge"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bridge "$@"\n')
        command.chmod(0o755)
        path = f"{command.parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "-c", line], check=False, cwd=self.cwd, env={**self.environment, "PATH": path}
        ).returncode


def _works(shell: Shell, event: str) -> None:
    """Every command that a person on call types."""
    expected = {
        ("status",): "ready",
        ("top",): "usage-limit-hits",
        ("dead", "list"): "contract",
        ("tail", "--no-follow"): event,
        ("explain", event): event,
        ("doctor",): "warehouse: ",
        ("prune",): "",
        ("emit", "usage.limit_reached", json.dumps(usage())): "",
    }
    for arguments, word in expected.items():
        ran = shell.run(*arguments)
        told = arguments == ("doctor",) and "cashe" in ran.stdout  # that the file is broken
        assert ran.returncode == int(told), f"{arguments}: {ran.stdout}{ran.stderr}"
        assert word in ran.stdout, f"{arguments}: {ran.stdout}"
        assert "the running bridge (pid " in ran.stderr, f"{arguments}: {ran.stderr}"


def test_every_command_works_without_variables_or_with_a_broken_file(
    world: World, source: Database, target: Database, runtime_directory: Path, tmp_path: Path
) -> None:
    bridge = world.bridge().start().wait_ready()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shell = Shell(elsewhere, world.config, runtime_directory)
    good, [event, _] = world.text, emit(source, usage(), {"customer_id": 1})
    until(lambda: rows(target) == 1 and letters(target) == 1, "a row and a dead letter")

    _works(shell, event)  # variables are not set
    [socket] = (runtime_directory / "outbox-bridge").glob("*.sock")
    assert (socket.stat().st_mode & 0o777, socket.parent.stat().st_mode & 0o777) == (0o600, 0o700)

    world.text = good.replace("cache: 5m", "cashe: 5m")
    _works(shell, event)
    checked = shell.run("doctor", "--json")
    [wrong] = [one for one in json.loads(checked.stdout)["checks"] if one["check"] == "invalid"]
    assert (checked.returncode, "did you mean cache?" in wrong["fix"]) == (1, True), checked.stdout
    bridge.signal(signal.SIGHUP)
    bridge.wait_log("reload refused")
    ran = shell.run("status")
    assert ran.returncode == 1
    assert "was refused" in ran.stdout
    assert "did you mean cache?" in ran.stdout
    state = json.loads(shell.run("status", "--json").stdout)
    assert (state["ready"], "did you mean cache?" in state["reload_refused"]["message"]) == (True, True)

    world.text = good  # corrected, and not reloaded yet: still told
    assert shell.run("status").returncode == 1
    [fix] = re.findall(r"fix: correct the file, then: (.*)", ran.stdout)
    assert shell.typed(fix) == 0
    bridge.wait_log('"reloaded"')
    assert "refused" not in shell.run("status").stdout

    world.config.rename(world.config.with_name("moved.yaml"))
    assert shell.run("dead", "list").returncode == 0
    ran = Shell(elsewhere, None, runtime_directory).alone().run("dead", "list")
    assert ran.returncode == 0, ran.stderr  # nobody says which: the only one
    wrong = shell.run("status", "-c", "other.yaml")
    assert (wrong.returncode, f"-c {world.config}" in wrong.stderr) == (2, True), wrong.stderr
    moved = shell.run("status", "-c", str(world.config.with_name("moved.yaml")))
    assert f"-c {world.config}" in moved.stderr
    assert bridge.terminate() == 0
    assert not list(socket.parent.iterdir())


def test_without_a_running_bridge_a_command_says_so_and_what_to_do(
    world: World, source: Database, target: Database, runtime_directory: Path, tmp_path: Path
) -> None:
    bridge = world.bridge().start().wait_ready()
    [event] = emit(source, {"customer_id": 1})
    until(lambda: letters(target) == 1, "a dead letter")
    bridge.kill()
    [stale] = (runtime_directory / "outbox-bridge").glob("*.sock")
    shell = Shell(tmp_path, world.config, runtime_directory)
    secrets = world.config.parent / "secrets.env"
    secrets.write_text(
        f"\ufeff# read by the unit\nSOURCE_DSN={world.source.bridge_dsn}\n"
        f'export WAREHOUSE_DSN="{world.target.bridge_dsn}"\n'
    )
    for command in ("status", "top", "tail", "dead"):
        ran = shell.run(command, *(["list"] if command == "dead" else []))
        assert ran.returncode == 3, ran.stderr
        assert "SOURCE_DSN is not set" in ran.stderr
        assert "no running bridge was found" in ran.stderr
    for words in (["dead", "list", "--cause", "contract"], ["sink", "list"], ["explain", event]):
        ran = shell.run(*words)
        [fix] = re.findall(r"fix: (bridge .*?--env-file \S+?);", ran.stderr)
        assert shell.typed(fix) == 0, fix  # of a configuration without sinks, too
    assert shell.run("dead", "list", BRIDGE_ENV_FILE=str(secrets)).returncode == 0
    text = world.config.read_text()
    world.config.write_text("version: [1\n")
    ran = shell.alone().run("status")
    assert ran.returncode == 2
    assert "fix: correct the file; `bridge lint` shows every error and its place" in ran.stderr
    world.config.write_text(text)
    again = world.bridge().start().wait_ready()
    assert not stale.exists(), "a killed bridge's socket stays"
    assert again.terminate() == 0


def test_two_bridges_are_told_apart_by_their_files(
    world: World, runtime_directory: Path, tmp_path: Path
) -> None:
    first = world.bridge().start().wait_ready()
    text, file = world.text, world.config
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("  capture: slot", "  capture: poll\n  slot: second"))
    world.config = other
    second = world.bridge().start().wait_ready()
    for config, bridge, stream in (
        (file, first, "outbox_bridge_warehouse"),
        (other, second, "second_warehouse"),
    ):
        state = json.loads(Shell(tmp_path, config, runtime_directory).run("status", "--json").stdout)
        assert [one["stream"] for one in state["streams"]] == [stream]
        assert bridge.terminate() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_not_answered_and_told_to_use_sudo(
    world: World, runtime_directory: Path, tmp_path: Path
) -> None:
    bridge = world.bridge().start().wait_ready()
    asked = """
import os
from bridge.observe import operators
os.setgroups([]); os.setgid(65534); os.setuid(65534)
found, hidden = operators.ask("config", 0)
print(found, hidden)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_RUNTIME_DIR": str(runtime_directory)}
    ran = subprocess.run(
        [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "[] True"
    readable = runtime_directory / "bridge.yaml"
    readable.write_text(world.text)
    readable.chmod(0o644)
    closed = runtime_directory / "closed.yaml"
    closed.write_text(world.text)
    closed.chmod(0o600)
    inside = world.config  # of a directory that only we may enter
    for file, why in ((readable, "SOURCE_DSN is not set"), (closed, "denied"), (inside, "denied")):
        for words in (["status"], ["dead", "list"]):
            ran = subprocess.run(
                [sys.executable, "-c", _AS_NOBODY, *words, "-c", str(file)],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            assert why in ran.stdout
            assert f"sudo bridge {' '.join(words)} -c {file}" in ran.stdout, ran.stdout
    socket = next((runtime_directory / "outbox-bridge").iterdir())
    socket.parent.chmod(0o755)
    socket.chmod(0o666)  # as if both modes were wrong: who asks is looked up
    asked = f"""
import os, socket
os.setgroups([]); os.setgid(65534); os.setuid(65534)
one = socket.socket(socket.AF_UNIX); one.connect({str(socket)!r})
try:
    one.sendall(b"config"); one.shutdown(1); print(one.recv(100))
except OSError:  # it was closed before that
    print(b"")
"""
    ran = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "b''"
    assert bridge.terminate() == 0


def test_an_env_file_is_read_as_systemd_reads_it() -> None:
    text = "# no\n; no\n\nA=host=x password='a b'\nexport B=\"q\\\"x $HOME\"\n C = 'it' \nD=\nE=one \\\ntwo\n"
    assert variables(text) == {
        "A": "host=x password='a b'",
        "B": 'q"x $HOME',
        "C": "it",
        "D": "",
        "E": "one two",
    }
    with pytest.raises(click.BadParameter, match="line 2 has a NUL"):
        variables("A=1\nB=\0\n")


def test_a_reload_while_the_bridge_starts_is_done_once_it_runs(world: World) -> None:
    text, held = world.text, world.config.with_name("held")
    world.config.unlink()
    os.mkfifo(world.config)
    bridge = world.bridge().start()
    with world.config.open("w") as reading:  # it is open: the bridge waits for the text
        held.write_text(text.replace("cache: 5m", "cache: 6m"))
        held.rename(world.config)
        bridge.signal(signal.SIGHUP)
        reading.write(text)
    bridge.wait_log('"reloaded"')
    bridge.wait_ready()
    assert bridge.terminate() == 0
