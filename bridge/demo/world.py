"""The throw-away world: two servers, their customer's tables, a Slack, and the bridge as a process to kill."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

import psycopg

from bridge.demo import customer
from bridge.demo.cluster import Cluster
from bridge.demo.slack import Slack
from bridge.demo.supervise import ended, spawn
from bridge.demo.workspace import Workspace

CONFIG = Path(__file__).with_name("bridge.yaml")
WITH_SLACK = CONFIG.with_name("with_slack.yaml")


class BridgeFailed(Exception):
    """The bridge did not start, or ended by itself; the message has its log's last lines."""


class World:
    """An application's database and a warehouse, each on a server of its own."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self.password = secrets.token_hex(16)
        self.source = self._server("app")
        self.target = self._server("warehouse")
        with psycopg.connect(self.source.dsn("app"), autocommit=True) as connection:
            customer.make_source(connection)
        with psycopg.connect(self.target.dsn("warehouse"), autocommit=True) as connection:
            customer.make_target(connection)
        self.slack = Slack()

    def _server(self, name: str) -> Cluster:
        settings: dict[str, str | int] = {"track_commit_timestamp": "on", "log_checkpoints": "off"}
        cluster = self.workspace.cluster(name, fsync=True, password=self.password, settings=settings).start()
        cluster.create_database(name)
        with psycopg.connect(cluster.dsn(name), autocommit=True) as connection:
            customer.make_roles(connection, self.password)
        return cluster

    @property
    def source_dsn(self) -> str:
        """As the owner."""
        return self.source.dsn("app")

    @property
    def target_dsn(self) -> str:
        """As the owner."""
        return self.target.dsn("warehouse")

    @property
    def producer_dsn(self) -> str:
        """As the application."""
        return self.source.dsn("app", user="app", application_name="demo producer")

    @property
    def bridge_environment(self) -> dict[str, str]:
        """What with_slack.yaml refers to: both DSNs as the bridge's role, which may create nothing; Slack."""
        return {
            "SOURCE_DSN": self.source.dsn("app", user="outbox_bridge"),
            "WAREHOUSE_DSN": self.target.dsn("warehouse", user="outbox_bridge"),
            "SLACK_TOKEN": self.slack.token,
            "SLACK_API_URL": self.slack.api_url,
        }

    def close(self) -> None:
        self.slack.close()
        self.workspace.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Bridge:
    """`bridge run` on a configuration of the demo's, as its own process."""

    def __init__(self, environment: dict[str, str], log: Path, config: Path = CONFIG) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.admin = f"127.0.0.1:{probe.getsockname()[1]}"
        self.log = log
        self._config = config
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        self._environment = {**clean, **environment, "BRIDGE_ADMIN": self.admin}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        if self._process is None:
            raise BridgeFailed("the bridge is not running")
        return self._process.pid

    def start(self) -> None:
        """Start; wait_ready() waits."""
        with self.log.open("ab") as log:
            self._process = self._spawn(log)

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "bridge", "run", "-c", str(self._config)]
        return spawn(command, log, env=self._environment)

    def wait_ready(self, deadline: float = 30.0) -> float:
        """Until /readyz says 200; seconds waited. Raises BridgeFailed."""
        began = time.monotonic()
        while not self._ready():
            if not self.running:
                raise BridgeFailed(f"the bridge ended by itself\n{self.log_tail()}")
            if time.monotonic() - began > deadline:
                raise BridgeFailed(f"the bridge was not ready after {deadline:.0f} s\n{self.log_tail()}")
            time.sleep(0.01)
        return time.monotonic() - began

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.admin}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, or HTTPError: 503 with the reason
            return False

    def kill(self) -> None:
        """SIGKILL: no handler, no clean-up, no last word."""
        if self._process is not None:
            self._process.kill()
            self._wait(self._process, 10)

    def stop(self, deadline: float = 30.0) -> int:
        """SIGTERM; its exit code."""
        process = self._process
        if process is None:
            return 0
        process.terminate()
        try:
            return self._wait(process, deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BridgeFailed(
                f"SIGTERM did not end the bridge in {deadline:.0f} s\n{self.log_tail()}"
            ) from None

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> int:
        code = process.wait(deadline)
        ended(process)
        self._process = None
        return code

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"--- last lines of {self.log}", *text.splitlines()[-lines:]])
