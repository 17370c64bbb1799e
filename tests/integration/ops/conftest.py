"""A bridge's commands and its configuration, on the rig's databases."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.bridge_process import DEFAULT_CONFIG, REPOSITORY, BridgeProcess
from tests.support.commands import run_command
from tests.support.servers import Database


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Commands:
    """Runs `bridge COMMAND` for two databases; `text` is the configuration."""

    directory: Path
    source: Database
    target: Database
    text: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        path = self.directory / "bridge.yaml"
        path.write_text(self.text)
        return path

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment |= {
            "SOURCE_DSN": self.source.bridge_dsn,
            "WAREHOUSE_DSN": self.target.bridge_dsn,
            "PYTHONPATH": str(REPOSITORY),
            **self.environment,
        }
        command = [sys.executable, "-m", "bridge", *arguments, "-c", str(self.config)]
        return run_command(command, environment, stdin)

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """Standard output, after an exit with `code`."""
        ran = self.run(*arguments, stdin=stdin)
        assert ran.returncode == code, f"exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def commands(source: Database, target: Database, tmp_path: Path) -> Commands:
    """The demo's pipeline between the two databases, as the bridge's own role."""
    made = Commands(tmp_path, source, target, DEFAULT_CONFIG.read_text())
    made.environment["BRIDGE_ADMIN"] = f"127.0.0.1:{free_port()}"
    return made


@contextmanager
def speaking(answer: Callable[[socket.socket], None], host: str = "127.0.0.1") -> Iterator[int]:
    """A port whose every connection is given to `answer`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    answer(link)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def until(condition: Callable[[], bool], what: str, deadline: float = 20.0) -> None:
    """Look again until the condition holds; fail after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline:.0f} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def bridge(commands: Commands, bridge_process: Callable[..., BridgeProcess]) -> Callable[[], BridgeProcess]:
    """Starts `bridge run` with the configuration as it is now; ready when this returns."""

    def start() -> BridgeProcess:
        process = bridge_process(
            source=commands.source.bridge_dsn,
            target=commands.target.bridge_dsn,
            directory=commands.directory,
            config=commands.config,
        )
        commands.environment["BRIDGE_ADMIN"] = f"127.0.0.1:{process.port}"
        return process.start().wait_ready()

    return start


def emit(source: Database, *payloads: dict[str, Any], key: str | None = None) -> list[str]:
    """Events of the demo's type, a transaction each; their ids."""
    return [
        source.value(
            "select outbox.emit('usage.limit_reached', %s::jsonb, key => %s)::text",
            [json.dumps(payload), key],
        )
        for payload in payloads
    ]


def usage(**changes: Any) -> dict[str, Any]:
    """A payload that meets the contract."""
    return {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 9, "plan": "pro", **changes}


def letters(target: Database, state: str = "open") -> int:
    return int(target.value("select count(*) from bridge.dead_letter where state = %s", [state]))


def rows(target: Database) -> int:
    return int(target.value("select count(*) from events.usage_limits"))
