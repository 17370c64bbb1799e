"""A throw-away nats-server with JetStream: a node alone, or one of a cluster. It ends with us (process.py)."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bridge.demo.process import ended, spawn

_READY_SECONDS = 60.0  # 1 to 2 s, on a busy machine once 10


class NoNats(Exception):
    """No nats-server on this machine."""


def nats_program() -> str:
    """The one of the wheel, else one on PATH."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        raise NoNats("there is no nats-server; fix: pip install 'outbox-bridge[demo,scale]'")
    return found


class LogNode:
    """One server on 127.0.0.1, its store in a directory of its own. It can be killed and started again."""

    def __init__(self, directory: Path, name: str = "n1", *, max_file: str = "4GB") -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self.port, self.monitor, self.route = _free_ports(3)
        self._max_file = max_file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the server, while it runs."""
        if self._process is None:
            raise RuntimeError("it was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, cluster: Sequence[LogNode] = ()) -> Self:
        """cluster: all of its nodes, this one too. `wait` waits."""
        store = json.dumps(str(self.directory / "store"))
        lines = [
            f"server_name: {self.name}",
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self.monitor}",
            "max_payload: 4MB",
            f"jetstream {{ store_dir: {store}, max_file: {self._max_file}, max_mem: 64MB }}",
        ]
        if cluster:
            routes = ", ".join(f"nats://127.0.0.1:{node.route}" for node in cluster)
            lines.append(f"cluster {{ name: log, listen: 127.0.0.1:{self.route}, routes: [{routes}] }}")
        file = self.directory / "nats.conf"
        file.write_text("\n".join(lines) + "\n")
        with (self.directory / "log").open("ab") as log:
            self._process = spawn([nats_program(), "-c", str(file)], log)
        return self

    def wait(self) -> Self:
        """Until it is ready."""
        end = time.monotonic() + _READY_SECONDS
        while not self._healthy():
            if time.monotonic() > end or self._process is None or self._process.poll() is not None:
                said = (self.directory / "log").read_text()[-2000:]
                raise TimeoutError(f"nats-server {self.name} is not ready\n{said}")
            time.sleep(0.05)
        return self

    def _healthy(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/healthz", timeout=2) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait(20)
            ended(self._process)
            self._process = None


def _free_ports(count: int) -> list[int]:
    """Held at once, so that they differ."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
