"""The peers that the registries have, and how each is configured here: one function a peer.

Each has the settings that its documentation names for throughput, and the same ones for latency; its target is
durable (synchronous_commit = on) as the bridge's is.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.peers.contestants import Spec
from bench.peers.install import DRIVERS, Installed


def _pg_logical_replication(installed: Installed) -> Spec:
    return Spec(
        key="pg_logical_replication",
        name="pg-logical-replication",
        command=(installed.node, str(DRIVERS / "pg_logical_replication.mjs")),
        version=installed.versions["pg-logical-replication"],
        configured="pgoutput, acknowledged by hand after the commit; the batching is the driver's (what came while the"
        " batch before was written, up to 2,000), as are lookup and upsert, one prepared statement a batch",
    )


_PEERS: list[Callable[[Installed], Spec]] = [_pg_logical_replication]


def peers(installed: Installed) -> list[Spec]:
    """All of them, on what was installed."""
    return [make(installed) for make in _PEERS]
