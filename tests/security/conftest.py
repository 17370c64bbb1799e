"""Fixtures of the security tests: a source and target, poolers, and servers that speak TLS."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.demo.binaries import find_binaries, server_identity
from bridge.demo.servers import Workspace
from tests.security.certificates import Authority
from tests.security.pgbouncer import PgBouncer
from tests.support.servers import Database, EmbeddedServer, drop_database
from tests.support.world import World, make_database


@pytest.fixture
def pgbouncer() -> Iterator[Callable[..., PgBouncer]]:
    """Makes poolers: `pgbouncer(dsn, "transaction")`."""
    made: list[PgBouncer] = []
    root = server_identity().folder("outbox-bridge-pooler-")

    def make(server: str, mode: str, **settings: object) -> PgBouncer:
        made.append(PgBouncer(root / str(len(made)), server, mode, **settings))
        return made[-1]

    yield make
    for pooler in made:
        pooler.close()
    shutil.rmtree(root)


def _with_tls() -> Path:
    """The bin directory of a server that was built with OpenSSL; the embedded one was not."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    asked = os.environ.get("BRIDGE_TLS_PG_BIN")
    assert asked or found, (
        "TLS needs a PostgreSQL built with OpenSSL: apt-get install postgresql, or set BRIDGE_TLS_PG_BIN"
    )
    return Path(asked) if asked else found[-1].parent


class TlsServer:
    """A server that takes nothing but TLS; its certificate is for localhost."""

    def __init__(self, cluster: EmbeddedServer, authority: Authority) -> None:
        self.cluster = cluster
        self.authority = authority

    def dsn(self, database: Database, user: str = "outbox_bridge", **parameters: str) -> str:
        given = {"host": "localhost", "hostaddr": "127.0.0.1", "sslmode": "verify-full"}
        given |= {"sslrootcert": str(self.authority.file), **parameters}
        return database.server.dsn(database.name, user=user, **given)

    def show(self, certificate: Path, key: Path) -> None:
        """From the next connection on, this certificate."""
        for path, name in ((certificate, "server.crt"), (key, "server.key")):
            to = self.cluster.data / name
            shutil.copy(path, to)
            to.chmod(0o600)
            self.cluster.binaries.identity.own(to)


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsServer]:
    with Workspace(find_binaries(_with_tls())) as workspace:
        authority = Authority(workspace.root / "authority")
        cluster = EmbeddedServer(workspace, "tls", settings={"ssl": "on"}).init()
        server = TlsServer(cluster, authority)
        server.show(*authority.certificate("server", "localhost"))
        (cluster.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
        cluster.start()
        yield server


@pytest.fixture
def tls_world(tls: TlsServer, tmp_path: Path) -> Iterator[World]:
    """A source and a target on the TLS server; bridges reach both by verify-full."""
    source, target = (make_database(tls.cluster, f"tls_{kind}", kind) for kind in ("source", "target"))
    made = World(source, target, tmp_path)
    yield made
    made.close()
    for database in (source, target):  # their slots are the server's
        drop_database(database)
