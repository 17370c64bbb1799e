"""The demo past one machine: a log of three nodes, `bridge relay`, and three `bridge worker`, in the bridge's place.

Each kill takes another kind of process: a worker, the node that leads the log, the relay. The others go on.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from bridge.demo.log_server import LogNode
from bridge.demo.process import Bridge

NODES, WORKERS, PARTITIONS = 3, 3, 6
_LEADER_SECONDS = 60.0


class Fleet:
    """What the story does to a bridge, done to all of them."""

    def __init__(self, environment: Mapping[str, str], directory: Path, config: Path) -> None:
        """config: of one bridge; theirs is the same, over a log."""
        self.nodes = [LogNode(directory / "log", f"n{n + 1}") for n in range(NODES)]
        document: dict[str, Any] = yaml.safe_load(config.read_text())
        servers = [node.url for node in self.nodes]
        document["connections"]["bus"] = {"type": "nats", "servers": servers, "replicas": NODES}
        document["scale"] = {"log": "bus", "partitions": PARTITIONS, "log_size": "1GiB"}
        path = directory / "over_log.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        self.relay = Bridge(environment, directory / "relay.log", path)
        self.relay.verb = "relay"
        self.workers = [Bridge(environment, directory / f"worker-{n + 1}.log", path) for n in range(WORKERS)]
        for worker in self.workers:
            worker.verb = "worker"
        self.killed: list[str] = []  # what each kill took

    @property
    def admin(self) -> str:
        return self.workers[0].admin

    @property
    def _parts(self) -> list[Bridge]:
        return [self.relay, *self.workers]

    def start(self) -> Self:
        """Whatever does not run."""
        for node in self.nodes:
            if not node.running:
                node.start(self.nodes)
        if not self.killed:
            self._wait_for_leader()
        for part in self._parts:
            if not part.running:
                part.start()
        return self

    def wait_ready(self, deadline: float = 60.0) -> Self:
        for node in self.nodes:
            node.wait()
        for part in self._parts:
            part.wait_ready(deadline)
        return self

    def kill(self) -> None:
        """SIGKILL, of the next kind."""
        number = len(self.killed) % 3
        if number == 0:
            self.workers[0].kill()
            self.killed.append("a worker")
        elif number == 1:
            leader = self._leader_of(self._stream())
            leader.kill()
            self.killed.append(f"node {leader.name}, which leads the log")
        else:
            self.relay.kill()
            self.killed.append("the relay")

    def terminate(self, deadline: float = 60.0) -> int:
        """SIGTERM, to all but the log; the largest exit code."""
        return max(part.terminate(deadline) for part in self._parts)

    def close(self) -> None:
        for part in self._parts:
            part.close()
        for node in self.nodes:
            node.kill()

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(part.log_tail(lines) for part in self._parts)

    # -- the log ----------------------------------------------------------------------------------------

    def _wait_for_leader(self) -> None:
        """A cluster of nodes that have just started elects one; before that it makes no stream."""
        end = time.monotonic() + _LEADER_SECONDS
        while True:
            leaders = {_ask(node, "/jsz").get("meta_cluster", {}).get("leader") for node in self.nodes}
            if len(leaders) == 1 and None not in leaders:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"the log's nodes have elected no leader after {_LEADER_SECONDS:.0f} s")
            time.sleep(0.1)

    def _stream(self) -> dict[str, Any]:
        for node in self.nodes:
            for account in _ask(node, "/jsz?streams=true").get("account_details") or []:
                for stream in account.get("stream_detail") or []:
                    found: dict[str, Any] = stream
                    return found
        return {}

    def _leader_of(self, stream: dict[str, Any]) -> LogNode:
        name = stream.get("cluster", {}).get("leader")
        return next((node for node in self.nodes if node.name == name), self.nodes[0])


def _ask(node: LogNode, path: str) -> dict[str, Any]:
    """The monitoring port's answer; {} while there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.monitor}{path}", timeout=2) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except (OSError, urllib.error.URLError, ValueError):
        return {}
    return found
