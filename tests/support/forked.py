"""`python -m bridge` as a fork of a process that has imported the package already: what a start costs, every command
and every bridge of the tests would pay again, and that was a third of the time of `make test`.

What is forked is a process like another, with its own session, environment, folder and files, and it can be killed as
another. It differs in that the modules are there: `start()` gives a plain process wherever that could matter (a
failpoint, an option of the interpreter or of the loader in the environment, a system without pidfds), and with
BRIDGE_TEST_FORK=0. How the preloaded process is driven: one request a message, JSON and, for a start, the three
files; it ends, and kills what it started, when nobody holds the other end of its socket.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import bridge

REPOSITORY = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "bridge"]
"""How a command that can be forked begins."""
_FIXED = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "OPENSSL_", "SSL_")
"""Variables that are read once, when an interpreter or a library is loaded."""


class Forked:
    """The part of subprocess.Popen that the tests use."""

    stdin = None

    def __init__(self, parent: Preloaded, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit code once it has ended; -N: signal N."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(self._parent.ask({"reap": self.pid}))
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            select.select([self._ended], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("bridge", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Its number belongs to it until poll() has said that it ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The process that is forked, one in a process of pytest."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)},
                start_new_session=True,
            )
        self._turn = threading.Lock()

    def ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        """A number: the id of the process that was started, or the wait status of one that has ended."""
        with self._turn:
            socket.send_fds(self._socket, [json.dumps(request).encode()], files)
            answer = self._socket.recv(64)
        if not answer:
            raise AssertionError(f"the preloaded process has ended: {self._process.poll()}")
        return int(answer)

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], stdin: int, stdout: int, stderr: int
    ) -> Forked:
        request = {"run": list(arguments), "environment": dict(environment), "folder": os.getcwd()}
        return Forked(self, self.ask(request, (stdin, stdout, stderr)))


@cache
def preloaded() -> Preloaded:
    return Preloaded()


def can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a fork would be like a start of this command."""

    def fixed(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(_FIXED)}

    return (
        list(command[:3]) == MODULE
        and hasattr(os, "pidfd_open")
        and os.environ.get("BRIDGE_TEST_FORK") != "0"
        and not environment.get("BRIDGE_FAILPOINTS")
        and fixed(environment) == fixed(dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)})
    )


def start(command: Sequence[str], environment: Mapping[str, str], log: IO[Any]) -> Forked:
    """A command that can be forked; both outputs go to `log`, and it has nothing to read."""
    with open(os.devnull, "rb") as nothing:
        return preloaded().start(command[3:], environment, nothing.fileno(), log.fileno(), log.fileno())


def run(
    command: Sequence[str], environment: Mapping[str, str], stdin: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """A command that can be forked, to its end, as subprocess.run does. Raises subprocess.TimeoutExpired."""
    read, write = zip(*(os.pipe() for _ in range(3)), strict=True)
    process = preloaded().start(command[3:], environment, read[0], write[1], write[2])
    for end in (read[0], write[1], write[2]):
        os.close(end)
    said: dict[int, bytearray] = {read[1]: bytearray(), read[2]: bytearray()}
    left = memoryview(stdin.encode())
    until = time.monotonic() + timeout
    poll = select.poll()
    poll.register(read[1], select.POLLIN)
    poll.register(read[2], select.POLLIN)
    poll.register(write[0], select.POLLOUT)
    open_ends = {read[1], read[2], write[0]}
    while open_ends:
        for end, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000):
            if end == write[0]:
                try:
                    left = left[os.write(end, left[:4096]) :] if left else left
                except BrokenPipeError:
                    left = left[:0]
                done = not left
            else:
                new = os.read(end, 65536)
                said[end] += new
                done = not new
            if done:
                poll.unregister(end)
                os.close(end)
                open_ends.remove(end)
        if time.monotonic() > until:
            process.kill()
            process.wait(10)
            raise subprocess.TimeoutExpired(command, timeout, bytes(said[read[1]]), bytes(said[read[2]]))
    return subprocess.CompletedProcess(
        command, process.wait(timeout), said[read[1]].decode(), said[read[2]].decode()
    )


# -- the preloaded process itself -----------------------------------------------------------------------


def _import_everything() -> None:
    for module in pkgutil.walk_packages(bridge.__path__, "bridge."):
        if not module.name.startswith("bridge.demo") and not module.name.endswith(".__main__"):
            importlib.import_module(module.name)


def _become(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """In the fork: the session, the folder, the environment and the files of the command."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    for number, given in enumerate(files):
        os.dup2(given, number)
        os.close(given)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=False)  # ours may be a terminal
    sys.argv = ["bridge", *request["run"]]


def _serve(control: socket.socket) -> bool:
    """Until there is nobody to ask. True: this is a fork, which has become what was asked for."""
    running: set[int] = set()
    while True:
        said, files, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not said:
            break
        request = json.loads(said)
        if "reap" in request:
            running.discard(request["reap"])
            answer = os.waitpid(request["reap"], 0)[1]
        else:
            answer = os.fork()
            if not answer:
                control.close()
                _become(request, files)
                return True
            running.add(answer)
            for file in files:
                os.close(file)
        control.send(str(answer).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return False


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        forked = _serve(control)
    if forked:
        runpy.run_module("bridge", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
