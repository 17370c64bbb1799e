"""A shell in which the README's commands are run as a person would, with the command of the built wheel."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from bridge.demo.binaries import find_binaries
from tests.support import fixes
from tests.support.bridge_process import REPOSITORY
from tests.support.servers import free_port

_MARK = "<!-- first-five-minutes: a test runs these lines -->"


def transcript() -> tuple[list[str], str]:
    """The commands, and what the last one prints."""
    text = (REPOSITORY / "README.md").read_text().split(_MARK)[1]
    commands, printed = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)[:2]
    return commands.splitlines(), printed


def typed_seconds(lines: Iterable[str]) -> float:
    """How long a person types these, without their comments: 60 words a minute, of five characters each. Of the lines
    alone, so it is the same on every machine."""
    return sum(len(re.sub(r"\s+#.*", "", line)) for line in lines) / 5


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
        fixes.note(line)
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

    def init(self, line: str) -> str:
        """What it prints. And a port of the test's own: the machine may have a bridge already."""
        said = self(line)
        self.directory = self.directory / "my-bridge"
        with (self.directory / "bridge.yaml").open("a") as file:
            file.write(f"\nadmin: {{ listen: 127.0.0.1:{self.port} }}\n")
        return said

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

    def pasted(self, text: str, shows: str, deadline: float = 60.0) -> str:
        """What a terminal shows, into which this is pasted at once, until it shows that. What was started there has
        ended then."""
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        shell = subprocess.Popen(
            ["setsid", "--ctty", "/bin/sh", "-i"],  # with job control, as a person's
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=self.directory,
            env={**self.environment, "TERM": "dumb", "PAGER": "cat", "ENV": ""},
        )
        os.close(theirs)
        said, end = b"", time.monotonic() + deadline
        try:
            os.write(ours, text.encode())
            while shows not in said.decode(errors="replace"):
                assert time.monotonic() < end, said.decode(errors="replace")
                if select.select([ours], [], [], 0.2)[0]:
                    said += os.read(ours, 65536)
            return said.decode(errors="replace")
        finally:
            os.write(ours, b"kill %1; wait; exit\n")  # the bridge has a process group of its own
            with contextlib.suppress(OSError):  # the terminal is gone when nobody has it open
                while shell.poll() is None or select.select([ours], [], [], 0.2)[0]:
                    if select.select([ours], [], [], 0.2)[0]:
                        os.read(ours, 65536)
            os.close(ours)
            shell.wait(30)

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
