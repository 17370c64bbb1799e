"""The moments of a rotation: one server alone, the file before the server, a file that is away or empty, another
authority, and what begins or connects again meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.errors import CannotConnect
from bridge.postgres.connect import connect
from bridge.postgres.profiles import COMMAND
from bridge.postgres.schema import install_source
from tests.security.certificates import Authority
from tests.security.conftest import AT_TARGET, ROLE, TRUST, TlsServer, end_sessions, files, log_in_by
from tests.support.fixes import line_in
from tests.support.receiver import Receiver
from tests.support.servers import free_port
from tests.support.world import Document, World, until

Change = Callable[..., None]


def refusals(tls: TlsServer, role: str) -> int:
    """Logins with a wrong password, by the server's log."""
    return tls.cluster.log.read_text().count(f'password authentication failed for user "{role}"')


def sessions(tls: TlsServer) -> set[str]:
    """What the bridge's sessions are for."""
    rows = tls.cluster.execute(
        f"select application_name from pg_stat_activity where usename in ('{ROLE}', '{AT_TARGET}')"
    )
    return {name.partition("/")[0] for (name,) in rows}


def with_sink_and_ingress(world: World, receiver: Receiver) -> int:
    """The ingress's port."""
    port = free_port()

    def more(document: Document) -> None:
        document["events"]["probe.made"] = {"n": "number"}
        document["ingress"] = {"listen": f"127.0.0.1:{port}", "api_keys": ["key"]}
        document["connections"]["hook"] = {
            "type": "webhook",
            "url": receiver.url,
            "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
            "allow": ["127.0.0.0/8"],
        }
        destinations = document["pipelines"]["usage-limit-hits"]["destinations"]
        destinations["told"] = {"connection": "hook", "data": {"id": "$meta.id"}}

    world.configure(more)
    return port


def posted(port: int) -> int:
    """The ingress's answer to an event that no pipeline takes; 0: none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        headers = {"authorization": "Bearer key", "content-type": "application/json"}
        connection.request("POST", "/v1/events/probe.made", body='{"n": 1}', headers=headers)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@pytest.mark.security(9)
def test_the_target_alone_is_rotated_and_the_source_is_not_asked_again(
    tls: TlsServer, tls_world: World, by_password: Change, tmp_path: Path
) -> None:
    world, at_source, at_target = tls_world, tmp_path / "source", tmp_path / "target"
    at_source.write_text("source-one")
    at_target.write_text("target-one")
    by_password("source-one")
    by_password("target-one", AT_TARGET)
    files(world, tls, at_source, at_target)
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(3)
        world.caught_up()
        before = refusals(tls, ROLE)
        for number in ("two", "three"):
            at_target.write_text(f"target-{number}")
            by_password(f"target-{number}", AT_TARGET)
            producer.transaction(3)
            world.law()
            bridge.wait_ready()
    assert refusals(tls, ROLE) == before
    assert refusals(tls, AT_TARGET) <= 2, "each old one is refused once, for all connections"
    assert bridge.terminate() == 0


@pytest.mark.slow
@pytest.mark.security(9)
def test_a_file_that_is_written_before_the_server_knows_costs_nothing(
    tls: TlsServer, tls_world: World, by_password: Change, tmp_path: Path
) -> None:
    """Every session ends in between: stream, apply, dispatcher, ingress and backlog log in with what works. Commands
    are processes of their own, and take it from the bridge. So do they where the file is empty, or away."""
    world, secret, receiver = tls_world, tmp_path / "secret", Receiver()
    secret.write_text("pw-one")
    by_password("pw-one")
    files(world, tls, secret)
    port = with_sink_and_ingress(world, receiver)
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(3)
        world.caught_up()
        for text in ("pw-two", "", None):
            secret.unlink() if text is None else secret.write_text(text)
            before, came = refusals(tls, ROLE), len(receiver.requests)
            end_sessions(tls)
            producer.transaction(3)
            world.law()
            receiver.wait(came + 3)
            until(lambda: posted(port) == 202, "the ingress accepts")
            until(lambda: bridge.get("/readyz")[0] == 200, "ready")
            until(lambda: {"bridge-dispatch", "bridge-ingress"} <= sessions(tls), "the pools are open")
            assert refusals(tls, ROLE) == before, "the bridge tries nothing but what works"
            world.caught_up()
            assert world.json("status")["ready"]
            assert world.command("prove").endswith("no difference\n")
            since = ("--destination", "events", "--since", "1h", "--dry-run")
            assert "would" in world.command("replay", *since)
            listed = world.run("dead", "list")
            assert (listed.returncode, "no open dead letter" in listed.stdout) == (0, True), listed
            assert f"(pid {bridge.pid}" in listed.stderr
            told = listed.stderr.count("the server refuses the login that is in the files")
            # Where the bridge's own configuration is used, it depends on what it has read of the files by then.
            assert told == 1 if text == "pw-two" else told <= 1
            assert "pw-" not in listed.stderr
            assert refusals(tls, ROLE) <= before + 3 * 2, "each of three commands tries each dsn once"
        secret.write_text("pw-two")
        by_password("pw-two")
        producer.transaction(3)
        world.law()
        listed = world.run("dead", "list")
        assert (listed.returncode, listed.stderr) == (0, "")
    assert bridge.terminate() == 0
    secret.write_text("three")
    failed = world.run("dead", "list")
    assert failed.returncode == 3, "no bridge runs that knows better"
    assert "password authentication failed" in failed.stderr
    receiver.close()


@pytest.mark.security(9)
def test_a_bridge_that_begins_before_the_server_knows_waits_for_it(
    tls: TlsServer, tls_world: World, by_password: Change, tmp_path: Path
) -> None:
    world, secret = tls_world, tmp_path / "secret"
    by_password("one")
    secret.write_text("")
    files(world, tls, secret)
    bridge = world.bridge().start()
    bridge.wait_log("waiting for files of secrets")
    secret.write_text("two")
    body = bridge.wait_readyz(lambda status, text: status == 503 and "password authentication failed" in text)
    assert "cannot_connect" in body
    assert world.run("status").returncode == 1
    by_password("two")
    bridge.wait_ready()
    world.law()
    assert bridge.terminate() == 0
    secret.unlink()
    assert bridge.start().wait() == 2, "what is away for good is an error"
    assert f"{secret} cannot be read: No such file or directory" in bridge.log_tail()


@pytest.mark.security(9)
def test_a_file_that_is_away_or_empty_while_the_server_has_the_new_one(
    tls: TlsServer, tls_world: World, by_password: Change, tmp_path: Path
) -> None:
    world, secret = tls_world, tmp_path / "secret"
    secret.write_text("one")
    by_password("one")
    files(world, tls, secret)
    bridge = world.bridge().start().wait_ready()
    for number, text in enumerate(("", "\n", None), 2):
        secret.unlink() if text is None else secret.write_text(text)
        by_password(f"pw-{number}")
        bridge.wait_readyz(lambda status, body: status == 503 and "password authentication failed" in body)
        assert "no password supplied" not in bridge.log_tail(500)
        secret.write_text(f"pw-{number}\n")
        bridge.wait_ready()
        with world.producer() as producer:
            producer.transaction(2)
        world.law()
    assert bridge.terminate() == 0


@pytest.mark.security(9)
def test_another_authority_of_the_server_is_taken_from_its_file(
    tls: TlsServer, tls_world: World, tmp_path: Path
) -> None:
    """sslmode=verify-full: the server shows a certificate of another authority, and the file of the authority is
    replaced before, or later. Nobody sends a signal."""
    world, receiver, ca = tls_world, Receiver(), tmp_path / "ca.crt"
    second = Authority(tmp_path / "second")
    shutil.copy(tls.authority.file, ca)

    def change(document: Document) -> None:
        for section, database in (
            (document["source"], world.source),
            (document["connections"]["warehouse"], world.target),
        ):
            section["dsn"] = tls.dsn(database, sslrootcert=str(ca))

    def serve(authority: Authority) -> None:
        tls.show(*authority.certificate("server", "localhost"))
        tls.cluster.execute("select pg_reload_conf()")
        end_sessions(tls)

    world.configure(change)
    port = with_sink_and_ingress(world, receiver)
    bridge = world.bridge().start().wait_ready()
    try:
        # -- the file has both before the server changes, as one should do it
        ca.write_bytes(tls.authority.file.read_bytes() + second.file.read_bytes())
        serve(second)
        with world.producer() as producer:
            producer.transaction(3)
            receiver.wait(3)
            until(lambda: posted(port) == 202, "the ingress accepts")
            # -- the file is too late
            shutil.copy(second.file, ca)
            serve(tls.authority)
            body = bridge.wait_readyz(
                lambda status, text: status == 503 and "certificate verify failed" in text
            )
            assert "sslrootcert" in body
            shutil.copy(tls.authority.file, ca)
            bridge.wait_ready()
            until(lambda: posted(port) == 202, "the ingress accepts")
            came = len(receiver.requests)
            producer.transaction(2)
            receiver.wait(came + 2)
            world.law()
    finally:
        with contextlib.suppress(AssertionError):
            serve(tls.authority)
    assert bridge.terminate() == 0
    receiver.close()


@pytest.fixture
def by_certificate(tls: TlsServer, tmp_path: Path) -> Iterator[Authority]:
    """The bridge's role logs in with a client certificate of this authority."""
    authority = Authority(tmp_path / "clients")
    to = tls.cluster.data / "clients.crt"
    shutil.copy(authority.file, to)
    tls.cluster.binaries.identity.own(to)
    tls.cluster.configure(ssl_ca_file="clients.crt")
    tls.cluster.restart()
    log_in_by(tls, f"hostssl all {ROLE} 127.0.0.1/32 cert\n{TRUST}")
    yield authority
    log_in_by(tls, TRUST)


def issued(authority: Authority, name: str, role: str = ROLE, days: int = 2) -> dict[str, str]:
    """sslcert and sslkey."""
    certificate, key = authority.certificate(name, role, days=days)
    key.chmod(0o600)
    return {"sslcert": str(certificate), "sslkey": str(key)}


@pytest.mark.security(9)
def test_a_client_certificate_that_is_refused_is_told_with_its_own_fix(
    tls: TlsServer, tls_world: World, by_certificate: Authority, tmp_path: Path
) -> None:
    right, other = issued(by_certificate, "right"), issued(Authority(tmp_path / "other"), "other")
    connect(tls.dsn(tls_world.source, **right), COMMAND, "test").close()
    away, opened = {"sslkey": str(tmp_path / "nothing")}, tmp_path / "open.key"
    shutil.copy(right["sslkey"], opened)
    opened.chmod(0o644)
    pair, theirs = "have to be one pair", f"whose CN is {ROLE}"
    for given, fix in (
        (right | {"sslkey": other["sslkey"]}, pair),
        (right | away, pair),
        (right | {"sslkey": str(opened)}, pair),
        (right | {"sslkey": right["sslcert"]}, pair),
        (right | {"sslcert": right["sslkey"]}, pair),
        (other, theirs),
        ({}, theirs),
        (issued(by_certificate, "old", days=-1), theirs),
        (issued(by_certificate, "who", "somebody"), theirs),
    ):
        with pytest.raises(CannotConnect) as caught:
            connect(tls.dsn(tls_world.source, **given), COMMAND, "test")
        assert fix in caught.value.hint, caught.value
        if fix is theirs and given:
            look = line_in(caught.value.hint, "openssl x509").removesuffix("<sslcert>") + given["sslcert"]
            assert "subject=CN" in tls_world.typed(look)


@pytest.mark.security(9)
def test_a_new_certificate_whose_key_comes_later_is_waited_for(
    tls: TlsServer, tls_world: World, by_certificate: Authority, tmp_path: Path
) -> None:
    world, receiver = tls_world, Receiver()
    files = {"sslcert": str(tmp_path / "client.crt"), "sslkey": str(tmp_path / "client.key")}
    first, second = issued(by_certificate, "first"), issued(by_certificate, "second")
    for name, path in files.items():
        shutil.copy(first[name], path)

    def change(document: Document) -> None:
        document["source"]["dsn"] = tls.dsn(world.source, **files)
        document["connections"]["warehouse"]["dsn"] = tls.dsn(world.target, **files)

    world.configure(change)
    port = with_sink_and_ingress(world, receiver)
    bridge = world.bridge().start().wait_ready()
    shutil.copy(second["sslcert"], files["sslcert"])
    end_sessions(tls)
    body = bridge.wait_readyz(lambda status, text: status == 503 and "key values mismatch" in text)
    assert "have to be one pair" in body
    shutil.copy(second["sslkey"], files["sslkey"])
    with world.producer() as producer:
        producer.transaction(3)
        world.law()
        receiver.wait(3)
    until(lambda: posted(port) == 202, "the ingress accepts")
    bridge.wait_ready()
    assert bridge.terminate() == 0
    receiver.close()


@pytest.mark.security(9)
def test_a_bridge_that_polls_listens_again_with_the_new_password(
    tls: TlsServer, tls_world: World, by_password: Change, tmp_path: Path
) -> None:
    world, secret = tls_world, tmp_path / "secret"
    secret.write_text("one")
    by_password("one")
    files(world, tls, secret)
    world.configure(lambda document: document["source"].update(capture="poll", poll_interval="1s"))
    with world.source.connect() as connection:
        install_source(connection, notify=True)
    bridge = world.bridge().start().wait_ready()
    assert "notify" in bridge.wait_log('"event":"polling"')
    until(lambda: "bridge-listen" in sessions(tls), "it listens")
    with world.producer() as producer:
        # -- every session ends, and the file is new
        secret.write_text("two")
        by_password("two")
        producer.transaction(2)
        world.law()
        until(lambda: "bridge-listen" in sessions(tls), "it listens again")
        # -- this session alone ends
        end_sessions(tls, ROLE, "bridge-listen/%")
        until(lambda: "bridge-listen" in sessions(tls), "it listens again")
        # -- the file is too late: the others go on, this one is refused
        before = refusals(tls, ROLE)
        by_password("three", sessions=False)
        end_sessions(tls, ROLE, "bridge-listen/%")
        until(lambda: refusals(tls, ROLE) > before, "the old one is refused")
        producer.transaction(2)
        world.law()  # by the timer
        secret.write_text("three")
        until(lambda: "bridge-listen" in sessions(tls), "it listens again")
        producer.transaction(2)
        world.law()
    assert bridge.terminate() == 0
