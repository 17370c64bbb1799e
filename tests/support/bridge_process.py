"""The bridge's commands as processes: `bridge run`, to wait for, signal and kill; any other, run to its end."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from bridge.demo.process import CONFIG, Bridge, Process
from tests.support import fixes, forked
from tests.support.servers import free_port

REPOSITORY = Path(__file__).parents[2]
DEFAULT_CONFIG = CONFIG
FAILPOINTS = "BRIDGE_FAILPOINTS"  # e.g. "after-commit=kill@3"


class BridgeProcess(Bridge):
    """One `bridge run`. `start()` does not wait; `wait_ready()`, `wait_log()` and `wait()` do, with deadlines."""

    Failure = AssertionError

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
        given = {"SOURCE_DSN": source, "WAREHOUSE_DSN": target, "PYTHONPATH": str(REPOSITORY)}
        if failpoints:
            given[FAILPOINTS] = failpoints
        super().__init__(
            {**given, **(environment or {})}, directory / f"{name}.log", config, port=free_port()
        )
        self.log = directory / f"{name}-{self.port}.log"
        self.arguments: tuple[str, ...] = ()  # of `bridge run`
        self._lines: list[str] = []
        self._read_to = 0  # bytes of the log that are in _lines
        self._reading = threading.Lock()

    def typed(self, printed: str) -> Self:
        """`bridge run ...`, started as it was printed. One before it must have ended."""
        fixes.note(printed)
        self.wait()
        command = [*forked.MODULE, *printed.split()[1:], "-c", str(self.config)]
        with self.log.open("ab") as log:
            self._process = self._spawn(command, self.environment, log)
        return self

    def _spawn(self, command: list[str], environment: Mapping[str, str], log: IO[Any]) -> Process:
        command = [*command, *self.arguments]
        if forked.can_fork(command, environment):
            return forked.start(command, environment, log)
        return super()._spawn(command, environment, log)

    # -- signals ----------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        self._started().send_signal(number)

    def pause(self) -> None:
        """SIGSTOP: it neither reads, answers nor times out."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    # -- commands ---------------------------------------------------------------------------------------

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`bridge COMMAND`, with this bridge's configuration and environment; how it ended."""
        command = [*forked.MODULE, *arguments, "-c", str(self.config)]
        return run_command(command, {**self.environment, **environment}, "")

    # -- what it says -----------------------------------------------------------------------------------

    def wait_halted(self, reason: str, deadline: float = 30.0) -> str:
        """Until /readyz says no, and names `reason`; the body."""
        return self.wait_readyz(lambda status, body: status == 503 and reason in body, deadline)

    def wait_readyz(self, condition: Callable[[int, str], bool], deadline: float = 30.0) -> str:
        """Until status and body of /readyz are as wanted; the body."""
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
        until = time.monotonic() + deadline
        while True:
            ended = not self.running or time.monotonic() > until
            line = next((line for line in self.lines[since:] if text in line), None)
            if line is not None:
                return line
            assert not ended, f"no log line with {text!r}\n{self.log_tail()}"
            time.sleep(0.02)

    @property
    def lines(self) -> list[str]:
        """Everything it printed, over all its starts."""
        with self._reading:
            complete = not self.running  # a killed bridge may leave half a line
            if self.log.exists():
                with self.log.open("rb") as log:
                    log.seek(self._read_to)
                    new = log.read()
                if not complete:
                    new = new[: new.rfind(b"\n") + 1]
                self._read_to += len(new)
                self._lines += new.decode(errors="replace").splitlines(keepends=True)
            return list(self._lines)

    @property
    def logs(self) -> list[dict[str, Any]]:
        """The lines that are JSON objects."""
        found: list[dict[str, Any]] = []
        for line in self.lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found


def run_command(
    command: Sequence[str], environment: Mapping[str, str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Its exit code and what it printed. One that is told to stand still at a failpoint is killed there, as a person
    would, and is given nothing to read."""
    if "=hang" in environment.get(FAILPOINTS, ""):
        return _killed_while_it_hangs(command, environment)
    if forked.can_fork(command, environment):
        return forked.run(command, environment, stdin or "", timeout=120)
    return subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def _killed_while_it_hangs(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run until it says that it hangs, then SIGKILL. What it printed is short: nobody reads it meanwhile."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.endswith(": hang\n") and "failpoint" in line:
                process.kill()
        return subprocess.CompletedProcess(command, process.wait(), process.stdout.read(), "".join(said))
