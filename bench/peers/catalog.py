"""The peers that the registries have, and how each is configured here: one function a peer.

Each has the settings that its documentation names for throughput, and the same ones for latency; its target is
durable (synchronous_commit = on) as the bridge's is.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.peers.contestants import Spec
from bench.peers.install import Installed

_PEERS: list[Callable[[Installed], Spec]] = []


def peers(installed: Installed) -> list[Spec]:
    """All of them, on what was installed."""
    return [make(installed) for make in _PEERS]
