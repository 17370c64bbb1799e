"""Secrets that are rotated in their files: every connection goes on with the new one, a wrong one is not hammered."""

from __future__ import annotations

import asyncio
import http.client
import subprocess
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from bridge.config.load import load
from bridge.errors import CannotConnect
from bridge.postgres.connect import Pool, connect, connect_pq
from bridge.postgres.login import try_again
from bridge.postgres.profiles import BACKLOG, COMMAND, STREAM
from tests.security.certificates import Authority
from tests.security.conftest import ROLE, TRUST, TlsServer, files, log_in_by
from tests.support.receiver import Receiver
from tests.support.servers import free_port
from tests.support.world import Document, World, until


def _refusals(tls: TlsServer) -> int:
    return tls.cluster.log.read_text().count(f'password authentication failed for user "{ROLE}"')


@pytest.mark.security(9)
def test_a_rotated_password_is_read_again_by_every_connection_of_a_bridge(
    tls: TlsServer, tls_world: World, by_password: Callable[[str], None], tmp_path: Path
) -> None:
    """Stream, apply, lookups, backlog, upkeep, the queue of a sink, the ingress; nobody sends a signal. bridge.yaml is
    half edited meanwhile, and not read. The tokens of the sink and of the ingress change in their files too."""
    world, receiver = tls_world, Receiver()
    secret, token, key = (tmp_path / name for name in ("secret", "token", "key"))
    for file in (secret, token, key):
        file.write_text("one\n")
    by_password("one")
    files(world, tls, secret)
    port = free_port()

    def more(document: Document) -> None:
        document["ingress"] = {"listen": f"127.0.0.1:{port}", "api_keys": [f"${{file:{key}}}"]}
        document["connections"]["hook"] = {
            "type": "webhook",
            "url": f"{receiver.url}/${{file:{token}}}",
            "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
            "allow": ["127.0.0.0/8"],
        }
        destinations = document["pipelines"]["usage-limit-hits"]["destinations"]
        destinations["told"] = {"connection": "hook", "data": {"id": "$meta.id"}}

    world.configure(more)
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
        world.text = world.text.replace("pipelines:", "piplines: [")
        for file in (secret, token, key):
            file.write_text("two\n")
        by_password("two")
        producer.transaction(5)
        world.law()
        until(lambda: bridge.get("/readyz")[0] == 200, "ready")
        until(
            lambda: _posts(port, "two") == 404,
            "the new key is taken",
        )
        assert _posts(port, "one") == 401
        producer.transaction(1)
        until(lambda: any(request.path.endswith("/two") for request in receiver.requests), "the new address")
    names = tls.cluster.execute(
        f"select distinct application_name from pg_stat_activity where usename = '{ROLE}'"
    )
    parts = {name.partition("/")[0] for (name,) in names}
    assert {"bridge-stream", "bridge", "bridge-source", "bridge-dispatch", "bridge-ingress"} <= parts, parts
    assert not any("secrets cannot" in line for line in bridge.lines)
    assert bridge.terminate() == 0
    receiver.close()


def _posts(port: int, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request(
            "POST", "/v1/events/other.type", body="{}", headers=headers
        )  # no such: 404, after the key
        return connection.getresponse().status
    finally:
        connection.close()


def _pooled(dsn: str) -> None:
    async def take() -> None:
        async with Pool(dsn, BACKLOG, "test", least=0) as pool, pool.connection() as connection:
            await connection.execute("select 1")

    asyncio.run(take())


OPENERS: dict[str, Callable[[str], object]] = {
    "connect": lambda dsn: connect(dsn, COMMAND, "test").close(),
    "replication": lambda dsn: connect_pq(dsn, STREAM, "test", replication="database").finish(),
    "pool": _pooled,
}


@pytest.mark.security(9)
@pytest.mark.parametrize("opener", OPENERS)
def test_a_refused_password_is_tried_once_for_all_and_a_changed_file_at_once(
    opener: str, tls: TlsServer, tls_world: World, by_password: Callable[[str], None], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one")
    by_password("one")
    files(tls_world, tls, secret)
    dsn = load(tls_world.config, {"WAREHOUSE_DSN": "host=x"}).source.dsn
    opens = OPENERS[opener]
    opens(dsn)
    secret.write_text(
        "two"
    )  # written before the server knows it: the old one is used for as long as it works
    opens(dsn)
    before = _refusals(tls)
    by_password("two")
    opens(dsn)
    opens(dsn)
    assert _refusals(tls) == before + 1
    by_password("three")
    for _ in range(30):
        with pytest.raises(CannotConnect, match="password authentication failed"):
            opens(dsn)
    assert _refusals(tls) < before + 5  # 1 s apart at first, then 2, ...
    secret.unlink()  # being replaced
    with pytest.raises(CannotConnect, match="password authentication failed"):
        opens(dsn)
    secret.write_text("three")
    opens(dsn)
    by_password("four")
    with pytest.raises(CannotConnect):
        opens(dsn)
    by_password("three")  # mended on the server; SIGHUP says so
    try_again()
    opens(dsn)
    admin = tls_world.source
    admin.execute(f"alter role {ROLE} nologin")
    try:
        before = tls.cluster.log.read_text().count("not permitted to log in")
        for _ in range(30):
            with pytest.raises(CannotConnect, match="not permitted to log in"):
                opens(dsn)
        assert before < tls.cluster.log.read_text().count("not permitted to log in") < before + 5
    finally:
        admin.execute(f"alter role {ROLE} login")
    try_again()
    opens(dsn)


@pytest.mark.security(9)
def test_a_wrong_password_is_told_and_the_server_is_left_alone(
    tls: TlsServer, tls_world: World, by_password: Callable[[str], None], tmp_path: Path
) -> None:
    world, secret = tls_world, tmp_path / "secret"
    secret.write_text("one")
    by_password("one")
    files(world, tls, secret)
    bridge = world.bridge().start().wait_ready()
    before = {each.name: len(_refused_at(tls, each.name)) for each in (world.source, world.target)}
    by_password("two")
    body = bridge.wait_readyz(lambda status, text: status == 503 and "password authentication failed" in text)
    assert "cannot_connect" in body
    for database in (world.source, world.target):  # a dozen connections have one login between them

        def gaps(name: str = database.name) -> list[float]:
            times = _refused_at(tls, name)[before[name] :]
            apart = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
            return [gap for gap in apart if gap > 0.5]  # those that were under way together

        until(lambda found=gaps: len(found()) >= 3, "four logins")
        assert all(gap > 0.8 * 2**number for number, gap in enumerate(gaps()[:3])), gaps()
    secret.write_text("two")
    world.law()
    bridge.wait_ready()
    assert bridge.terminate() == 0


def _refused_at(tls: TlsServer, database: str) -> list[datetime]:
    """When a login of the role to this database was refused, by the server's log."""
    lines = tls.cluster.log.read_text().splitlines()
    refused = [
        line for line in lines if f" {ROLE}@{database}/" in line and "password authentication failed" in line
    ]
    return [datetime.fromisoformat(line[:23]) for line in refused]


@pytest.mark.security(9)
def test_a_rotated_client_certificate_and_its_passphrase(
    tls: TlsServer, tls_world: World, tmp_path: Path
) -> None:
    """libpq reads certificate and key at every connect; the passphrase of the key comes from a file."""
    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second")
    certificate, key, phrase = tmp_path / "client.crt", tmp_path / "client.key", tmp_path / "phrase"

    def issue(authority: Authority, passphrase: str) -> None:
        made, plain = authority.certificate("client", ROLE)
        certificate.write_bytes(made.read_bytes())
        key.unlink(missing_ok=True)
        subprocess.run(
            ["openssl", "ec", "-in", plain, "-out", key, "-aes256", "-passout", f"pass:{passphrase}"],
            check=True,
            capture_output=True,
        )
        key.chmod(0o600)
        phrase.write_text(passphrase)

    def trust(authority: Authority) -> None:
        to = tls.cluster.data / "clients.crt"
        to.write_bytes(authority.file.read_bytes())
        tls.cluster.binaries.identity.own(to)
        tls.cluster.configure(ssl_ca_file="clients.crt")
        tls.cluster.restart()

    def change(document: Document) -> None:
        for section, database in (
            (document["source"], tls_world.source),
            (document["connections"]["warehouse"], tls_world.target),
        ):
            given = tls.dsn(database, sslcert=str(certificate), sslkey=str(key))
            section["dsn"] = f"{given} sslpassword=${{file:{phrase}}}"

    issue(first, "alpha")
    trust(first)
    log_in_by(tls, f"hostssl all {ROLE} 127.0.0.1/32 cert\n{TRUST}")
    try:
        tls_world.configure(change)
        bridge = tls_world.bridge().start().wait_ready()
        issue(second, "beta")
        trust(second)
        with tls_world.producer() as producer:
            producer.transaction(3)
        tls_world.law()
        bridge.wait_ready()
        assert bridge.terminate() == 0
    finally:
        log_in_by(tls, TRUST)


def test_no_password_is_in_what_is_said(
    tls: TlsServer, by_password: Callable[[str], None], tls_world: World
) -> None:
    by_password("right")
    wrong = psycopg.conninfo.make_conninfo(tls.dsn(tls_world.source), password="CANARY")
    for _ in range(2):
        with pytest.raises(CannotConnect) as caught:
            connect(wrong, COMMAND, "test")
        assert "CANARY" not in str(caught.value)
