"""A temporary directory for throw-away clusters. Apart from cluster.py: that is one server, this is where they live."""

from __future__ import annotations

import atexit
import contextlib
import shutil
from collections.abc import Mapping

from bridge.demo.binaries import Binaries, find_binaries
from bridge.demo.cluster import Cluster, ClusterError


class Workspace:
    """A temporary directory that the server's user owns, and the clusters in it; gone at exit."""

    def __init__(self, binaries: Binaries | None = None) -> None:
        self.binaries = binaries or find_binaries()
        # a socket's path has at most 103 to 107 bytes
        self.root = self.binaries.identity.folder("outbox-bridge-", longest_parent=40)
        self._clusters: list[Cluster] = []
        atexit.register(self.close)

    def cluster(
        self,
        name: str,
        *,
        fsync: bool = False,
        password: str | None = None,
        settings: Mapping[str, str | int] | None = None,
    ) -> Cluster:
        """A new cluster, initialized, not started."""
        directory = self.root / name
        cluster = Cluster(
            self.binaries, directory, fsync=fsync, password=password, settings=settings, workspace=self.root
        )
        self._clusters.append(cluster)
        return cluster.init()

    def close(self) -> None:
        """Stop every cluster at once and remove everything."""
        for cluster in self._clusters:
            with contextlib.suppress(ClusterError):
                cluster.discard()
        shutil.rmtree(self.root, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
