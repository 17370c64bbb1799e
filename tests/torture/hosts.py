"""Machines for bridges: each in a network namespace of its own where we are root, otherwise all in ours.

A machine's link is a pair of virtual interfaces; to cut it takes the near end down, and nobody is told: no RST, no FIN.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from bridge.demo.process import Bridge, Process, spawn
from tests.support.servers import EmbeddedServer

_MACHINES = "10.213.0.0/16"


def have_namespaces() -> bool:
    """Whether this machine lets us make one."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"ob-probe-{os.getpid()}"
    made = _ip("netns", "add", name, check=False)
    if made.returncode == 0:
        _ip("netns", "del", name)
    return made.returncode == 0


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


class Host:
    """One machine. number: from 1 on. Close it."""

    def __init__(self, number: int, *, own_network: bool) -> None:
        self.name = f"machine {number}"
        self.number = number
        self.own_network = own_network
        self._namespace = f"ob{os.getpid()}-{number}"
        self._link = f"ob{os.getpid() % 100000}v{number}"
        self.near = f"10.213.{number}.1" if own_network else "127.0.0.1"
        self.address = f"10.213.{number}.2" if own_network else "127.0.0.1"
        if own_network:
            peer = f"{self._link}p"
            _ip("netns", "add", self._namespace)
            _ip("link", "add", self._link, "type", "veth", "peer", "name", peer, "netns", self._namespace)
            _ip("addr", "add", f"{self.near}/30", "dev", self._link)
            _ip("link", "set", self._link, "up")
            for words in (
                ("addr", "add", f"{self.address}/30", "dev", peer),
                ("link", "set", peer, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", self._namespace, *words)

    def command(self, command: list[str]) -> list[str]:
        """The command, to run there."""
        return ["ip", "netns", "exec", self._namespace, *command] if self.own_network else command

    def cut(self) -> None:
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        if self.own_network:
            _ip("link", "set", self._link, "up")

    def close(self) -> None:
        if self.own_network:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("link", "del", self._link)
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self._namespace)


class HostedBridge(Bridge):
    """`bridge run` on a machine."""

    def __init__(self, host: Host, environment: Mapping[str, str], directory: Path, config: Path) -> None:
        super().__init__(environment, directory / f"{host.name.replace(' ', '-')}.log", config)
        self.host = host

    def _spawn(self, command: list[str], environment: Mapping[str, str], log: IO[Any]) -> Process:
        return spawn(self.host.command(command), log, env=dict(environment))

    def freeze(self) -> None:
        """SIGSTOP: it neither reads, answers nor times out."""
        self._started().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._started().send_signal(signal.SIGCONT)


def reachable(server: EmbeddedServer) -> EmbeddedServer:
    """A server that was not started yet, for the machines as well."""
    server.listen_addresses = "*"
    with (server.data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {_MACHINES} trust\nhost replication all {_MACHINES} trust\n")
    return server
