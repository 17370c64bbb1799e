"""TLS with a server that takes nothing else: every connection verifies it, whatever its records are like."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bridge.postgres import wire
from bridge.postgres.connect import connect_pq
from bridge.postgres.profiles import TARGET
from tests.security.certificates import Authority
from tests.security.conftest import TlsServer
from tests.security.records import RecordProxy
from tests.support.world import World

LARGE = 5 << 20


def _large(world: World, characters: int) -> None:
    """One event whose payload has this many characters that do not compress to nothing, and its truth."""
    event, payload = (
        uuid.uuid4(),
        {"customer_id": "cus_1", "metric": "seats", "limit": 1, "used": 1, "plan": "pro"},
    )
    text = json.dumps({**payload, "note": "0123456789abcdef" * (characters // 16)})
    with psycopg.connect(world.source.dsn) as connection:
        for table, column in (("outbox.event", "id"), ("rig.truth", "event_id")):
            connection.execute(
                (
                    f"insert into {table} ({column}, type, key, payload)"
                    " values (%s, 'usage.limit_reached', 'k', %s)"
                ).encode(),
                [event, text],
            )


@pytest.mark.security(5)
def test_a_delivery_over_verified_tls_is_a_delivery(tls: TlsServer, tls_world: World) -> None:
    world = tls_world
    bridge = world.bridge(source=tls.dsn(world.source), target=tls.dsn(world.target)).start().wait_ready()
    with world.producer() as producer:
        producer.burst(20_000)
        _large(world, LARGE)
        producer.transaction(3)
    verdict = world.law(deadline=60)
    assert verdict.expected > 20_000
    plain = world.source.value(
        "select count(*) from pg_stat_activity a left join pg_stat_ssl s using (pid)"
        " where a.usename = 'outbox_bridge' and not coalesce(s.ssl, false)"
    )
    used = world.source.execute(
        "select distinct split_part(application_name, '/', 1) from pg_stat_activity where usename = 'outbox_bridge'"
    )
    assert plain == 0
    assert {"bridge-stream", "bridge", "bridge-source", "bridge-enrich"} <= {name for (name,) in used}
    assert bridge.terminate() == 0


@pytest.fixture
def full_records(tls: TlsServer, tls_world: World) -> Iterator[RecordProxy]:
    certificate, key = tls.authority.certificate("proxy", "localhost")
    (tls.cluster.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
    tls.cluster.execute("select pg_reload_conf()")
    proxy = RecordProxy(certificate, key, "127.0.0.1", tls.cluster.port)
    yield proxy
    proxy.close()
    (tls.cluster.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
    tls.cluster.execute("select pg_reload_conf()")


@pytest.mark.slow
@pytest.mark.security(5)
def test_what_is_left_inside_openssl_does_not_stall_the_stream(
    tls: TlsServer, tls_world: World, full_records: RecordProxy
) -> None:
    """Records of 16 KiB, half of which libpq may leave to OpenSSL."""
    world = tls_world
    source, target = (tls.dsn(each, port=str(full_records.port)) for each in (world.source, world.target))
    world.bridge(source=source, target=target).start().wait_ready()
    world.caught_up()
    for size in (7_000, 9_000, 12_000, 15_000, 17_000, 24_000, 33_000, 40_000, 70_000, 150_000):
        _large(world, size)
        world.caught_up()
    _large(world, LARGE)
    with world.producer() as producer:
        producer.burst(20_000)
    world.law(deadline=60)
    assert full_records.full_records > 100


@pytest.mark.security(5)
def test_a_record_that_libpq_reads_by_halves_is_read_whole(tls: TlsServer, full_records: RecordProxy) -> None:
    """The same without chance. libpq's buffer of 16 KiB holds 6,000 bytes of a row of 10,000; the record that comes
    next is larger than the room behind them, and nothing follows it: libpq leaves the rest to OpenSSL. (15.18 does;
    18.6, which psycopg brings along, does not any more. PSYCOPG_IMPL=python takes the system's libpq.)"""
    dsn = tls.cluster.dsn(
        connect_timeout=10,
        host="localhost",
        hostaddr="127.0.0.1",
        port=full_records.port,
        sslmode="verify-full",
        sslrootcert=str(tls.authority.file),
    )
    connection = connect_pq(dsn, TARGET, "tls")
    try:
        full_records.pieces[:] = [6_000, 32 + 10_011 + 12_011 + 14 + 6 - 6_000]
        connection.send_query(b"select repeat('x', n) from unnest(array[10000, 12000]) as n")
        for _ in range(2):
            full_records.next_piece()
            assert wire.wait([connection.socket], [], 60), "no record came"
            wire.consume(connection)
            connection.is_busy()  # takes out of the buffer what is whole
        while connection.is_busy():
            ready = wire.wait([connection.socket], [], 2.0)
            assert ready, "poll() is silent, and the answer is not complete"
            wire.consume(connection)
        result = connection.get_result()
        assert result is not None
        assert [len(result.get_value(row, 0) or b"") for row in range(2)] == [10_000, 12_000]
    finally:
        connection.finish()


@pytest.mark.security(5)
def test_a_server_that_is_not_proven_is_refused_with_what_to_do(
    tls: TlsServer, tls_world: World, tmp_path: Path
) -> None:
    world = tls_world
    good = tls.dsn(world.source)
    other = Authority(tmp_path / "other")
    cases = {
        "the wrong authority": (
            tls.dsn(world.target, sslrootcert=str(other.file)),
            "or is not signed by the CA",
        ),
        "the wrong name": (
            tls.dsn(world.target, host="db.example.org"),
            "the host in the dsn that the server's certificate is issued for",
        ),
        "no authority": (tls.dsn(world.target, sslrootcert=str(tmp_path / "none.crt")), "set sslrootcert"),
        "no TLS at all": (
            tls.dsn(world.target, sslmode="disable"),
            "the server does not support this `sslmode`",
        ),
    }
    for what, (target, advice) in cases.items():
        bridge = world.bridge(source=good, target=target).start()
        body = bridge.wait_readyz(lambda status, text: status == 503 and "cannot_connect" in text)
        assert advice in body, f"{what}: {body}"
        if what == "the wrong authority":
            look = re.findall(r"openssl s_client -starttls [^\"]*subject", body)
            assert "notAfter" in world.typed(look[0])
        bridge.kill()
    tls.show(*tls.authority.certificate("expired", "localhost", days=-1))
    tls.cluster.restart()
    bridge = world.bridge(source=good, target=tls.dsn(world.target)).start()
    body = bridge.wait_readyz(lambda status, text: status == 503 and "cannot_connect" in text)
    assert "has expired" in body
    tls.show(*tls.authority.certificate("renewed", "localhost"))
    tls.cluster.execute("select pg_reload_conf()")
    bridge.wait_ready()
    world.law()
    assert world.applied() > 0
