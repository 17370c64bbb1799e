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
from tests.support.world import Document, World, make_database, until


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


ROLE = "outbox_bridge"
AT_TARGET = "bridge_at_target"
"""A role of the target alone, with the rights of ROLE."""
TRUST = "hostssl all all 127.0.0.1/32 trust\n"
_SCRAM = f"hostssl all {ROLE},{AT_TARGET} 127.0.0.1/32 scram-sha-256\n" + TRUST


@pytest.fixture
def by_password(tls: TlsServer) -> Iterator[Callable[..., None]]:
    """The bridge's roles log in with a password. `by_password("new", role=ROLE)` changes it on the server and ends its
    sessions; `sessions=False` leaves them."""
    if not tls.cluster.execute("select 1 from pg_roles where rolname = %s", [AT_TARGET]):
        tls.cluster.execute(f"create role {AT_TARGET} login in role {ROLE}")

    def change(password: str, role: str = ROLE, *, sessions: bool = True) -> None:
        tls.cluster.execute(f"alter role {role} password '{password}'")
        if sessions:
            end_sessions(tls, role)

    log_in_by(tls, _SCRAM)
    yield change
    log_in_by(tls, TRUST)


def end_sessions(tls: TlsServer, role: str = ROLE, like: str = "%") -> None:
    """All of the role's whose application_name is like this."""
    tls.cluster.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s and application_name like %s",
        [role, like],
    )


def log_in_by(tls: TlsServer, rules: str) -> None:
    """The server's pg_hba.conf from now on."""
    (tls.cluster.data / "pg_hba.conf").write_text(rules)
    tls.cluster.execute("select pg_reload_conf()")
    until(
        lambda: tls.cluster.execute("select count(*) from pg_hba_file_rules")[0][0] == rules.count("\n"),
        "the server reads pg_hba.conf",
    )


def files(world: World, tls: TlsServer, secret: Path, at_target: Path | None = None) -> None:
    """Both databases' passwords are in this file; at_target: the target's in that one, of a role of its own."""

    def change(document: Document) -> None:
        for section, database, file, role in (
            (document["source"], world.source, secret, ROLE),
            (
                document["connections"]["warehouse"],
                world.target,
                at_target or secret,
                ROLE if at_target is None else AT_TARGET,
            ),
        ):
            section["dsn"] = tls.dsn(database, role)
            section["password"] = f"${{file:{file}}}"

    world.configure(change)


@pytest.fixture
def tls_world(tls: TlsServer, tmp_path: Path) -> Iterator[World]:
    """A source and a target on the TLS server; bridges reach both by verify-full."""
    source, target = (make_database(tls.cluster, f"tls_{kind}", kind) for kind in ("source", "target"))
    made = World(source, target, tmp_path)
    yield made
    made.close()
    for database in (source, target):  # their slots are the server's
        drop_database(database)
