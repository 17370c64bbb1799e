"""`python -m bridge run` as a process of its own, to wait for, signal and kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
DEFAULT_CONFIG = REPOSITORY / "bridge" / "demo" / "bridge.yaml"
FAILPOINTS = "BRIDGE_FAILPOINTS"  # e.g. "after-commit=kill@3"


class BridgeProcess:
    """One bridge. `start()` does not wait; `wait_ready()`, `wait_log()` and `wait()` do, with deadlines."""

    def __init__(
        self,
        *,
        source: str,
        target: str,
        directory: Path,
        config: Path = DEFAULT_CONFIG,
        environment: Mapping[str, str] | None = None,
        failpoints: str = "",
        name: str = "bridge",
    ) -> None:
        """`source`, `target`: DSNs, given to the process as SOURCE_DSN and WAREHOUSE_DSN."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.config = config
        self.log_file = directory / f"{name}-{self.port}.log"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        self.environment |= {
            "SOURCE_DSN": source,
            "WAREHOUSE_DSN": target,
            "BRIDGE_ADMIN": f"127.0.0.1:{self.port}",
            "PYTHONPATH": str(REPOSITORY),
            **(environment or {}),
        }
        if failpoints:
            self.environment[FAILPOINTS] = failpoints
        self.process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader: threading.Thread | None = None

    # -- life -------------------------------------------------------------------------------------------

    def start(self, **environment: str) -> BridgeProcess:
        """Start (again). Extra environment counts for this start only."""
        assert not self.running, "already running"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bridge", "run", "-c", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**self.environment, **environment},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with self.log_file.open("a") as copy, process.stdout as lines:
            for line in lines:
                copy.write(line)
                copy.flush()
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    def signal(self, number: int) -> None:
        assert self.process is not None, "not started"
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self.signal(signal.SIGKILL)
        self.wait(60)

    def pause(self) -> None:
        """SIGSTOP: it neither reads, answers nor times out."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def terminate(self, deadline: float = 30.0) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(deadline)

    def wait(self, deadline: float = 30.0) -> int:
        """Until it has ended by itself; the exit code (negative: the signal)."""
        assert self.process is not None, "not started"
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the bridge still runs after {deadline:.0f} s\n{self.log_tail()}") from None
        if self._reader is not None:
            self._reader.join(5)
        return code

    def close(self) -> None:
        if self.running:
            self.signal(signal.SIGKILL)
            self.wait(60)

    # -- what it says -----------------------------------------------------------------------------------

    def get(self, path: str) -> tuple[int, str]:
        """GET from the admin address: status and body; (0, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self, deadline: float = 30.0) -> BridgeProcess:
        """Until /readyz says 200."""
        self.wait_readyz(lambda status, _: status == 200, deadline)
        return self

    def wait_halted(self, reason: str, deadline: float = 30.0) -> str:
        """Until /readyz says no, and names `reason`; the body."""
        return self.wait_readyz(lambda status, body: status == 503 and reason in body, deadline)

    def wait_readyz(self, condition: Callable[[int, str], bool], deadline: float = 30.0) -> str:
        until = time.monotonic() + deadline
        while True:
            status, body = self.get("/readyz")
            if condition(status, body):
                return body
            ended = not self.running
            if ended or time.monotonic() > until:
                what = "the bridge ended" if ended else f"not within {deadline:.0f} s"
                raise AssertionError(f"{what}; /readyz: {status} {body}\n{self.log_tail()}")
            time.sleep(0.02)

    def wait_log(self, text: str, deadline: float = 30.0, *, since: int = 0) -> str:
        """Until a line, counted from `since`, contains `text`; that line."""

        def found() -> str | None:
            return next((line for line in self._lines[since:] if text in line), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None or not self.running, deadline)
            line = found()
        assert line is not None, f"no log line with {text!r}\n{self.log_tail()}"
        return line

    @property
    def lines(self) -> list[str]:
        """Everything it printed, over all its starts."""
        with self._news:
            return list(self._lines)

    @property
    def logs(self) -> list[dict[str, Any]]:
        """The lines that are JSON objects."""
        found: list[dict[str, Any]] = []
        for line in self.lines:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
        return found

    def log_tail(self, lines: int = 25) -> str:
        return "".join(["--- last lines of the bridge\n", *self.lines[-lines:]])
