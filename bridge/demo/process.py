"""Processes that end with us, even when we are killed and can end nothing; and the bridge as one of them.

A small shell leaves a watcher on a pipe from us and becomes the program. When the pipe breaks, the watcher
stops the program (SIGQUIT: an immediate stop for Postgres) and removes a directory. It needs neither Linux
nor a thread that lives on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol, Self

CONFIG = Path(__file__).with_name("bridge.yaml")


class Process(Protocol):
    """The part of subprocess.Popen that is used."""

    pid: int

    @property
    def stdin(self) -> IO[bytes] | None: ...

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


# $$ stays the process id when the shell becomes the program. A line on the pipe means: it has ended.
_WATCHED = """
root=$1; shift
exec 3<&0 </dev/null
( {
    read -r _ <&3 && exit
    kill -QUIT $$
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        kill -0 $$ || break
        sleep 0.2
    done
    [ -z "$root" ] || rm -rf -- "$root"
} 2>/dev/null & )
exec 3<&-
exec "$@"
"""


def spawn(
    command: list[str], log: IO[Any], *, remove: Path | None = None, **popen: Any
) -> subprocess.Popen[bytes]:
    """Start `command`, both outputs to `log`, in a session of its own (Ctrl-C is for us). `remove`: what
    the watcher deletes when we were killed. Call `ended()` once it was waited for."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHED, "sh", str(remove or ""), *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **popen,
    )


def ended(process: Process) -> None:
    """Dismiss the watcher of a process that was waited for, before its id belongs to another."""
    if process.stdin is not None and not process.stdin.closed:
        with contextlib.suppress(OSError):  # the watcher may have been killed too
            process.stdin.write(b"ended\n")
            process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()


class BridgeFailed(Exception):
    """The bridge did not start, or ended unexpectedly; the message has its log's last lines."""


class Bridge:
    """`bridge run` on a configuration, as a process of its own. It can be started again after its end."""

    Failure: type[Exception] = BridgeFailed  # raised where it does not do what is waited for

    def __init__(
        self, environment: Mapping[str, str], log: Path, config: Path = CONFIG, *, port: int = 0
    ) -> None:
        """port: of its admin server; 0: one that is free."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            self.port: int = probe.getsockname()[1]
        self.admin = f"127.0.0.1:{self.port}"
        self.token = ""  # of its admin server, where the configuration has one
        self.log = log
        self.config = config
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        self.environment = {**clean, "BRIDGE_ADMIN": self.admin, **environment}
        self.verb = "run"  # or relay, or worker
        self.killed: list[str] = []  # there is nothing to choose from (fleet.py)
        self._process: Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        return self._started().pid

    def _started(self) -> Process:
        if self._process is None:
            raise self.Failure("the bridge was not started")
        return self._process

    def start(self, **environment: str) -> Self:
        """Start; wait_ready() waits. Extra environment counts for this start only. One before it must have ended."""
        if self._process is not None:
            self.wait()
        command = [sys.executable, "-m", "bridge", self.verb, "-c", str(self.config)]
        with self.log.open("ab") as log:
            self._process = self._spawn(command, {**self.environment, **environment}, log)
        return self

    def _spawn(self, command: list[str], environment: Mapping[str, str], log: IO[Any]) -> Process:
        return spawn(command, log, env=environment)

    def wait_ready(self, deadline: float = 30.0) -> Self:
        """Until /readyz says 200."""
        end = time.monotonic() + deadline
        while True:
            status, body = self.get("/readyz")
            if status == 200:
                return self
            if not self.running:
                raise self.Failure(f"the bridge ended unexpectedly\n{self.log_tail()}")
            if time.monotonic() > end:
                raise self.Failure(f"not ready within {deadline:.0f} s: {status} {body}\n{self.log_tail()}")
            time.sleep(0.01)

    def get(self, path: str) -> tuple[int, str]:
        """GET from the admin address: status and body; (0, reason) when nobody answers."""
        try:
            headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
            request = urllib.request.Request(f"http://{self.admin}{path}", headers=headers)
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  our own address
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def kill(self) -> None:
        """SIGKILL, no last word; gone when this returns."""
        self._started().kill()
        self.wait(60)

    def terminate(self, deadline: float = 30.0) -> int:
        """SIGTERM; the exit code."""
        self._started().terminate()
        return self.wait(deadline)

    def wait(self, deadline: float = 30.0) -> int:
        """Until it has ended; the exit code (negative: the signal)."""
        process = self._started()
        try:
            code = process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise self.Failure(f"the bridge still runs after {deadline:.0f} s\n{self.log_tail()}") from None
        ended(process)
        return code

    def close(self) -> None:
        """Gone, whatever it is doing."""
        if self._process is not None:
            self.kill()

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"--- last lines of {self.log}", *text.splitlines()[-lines:]])
