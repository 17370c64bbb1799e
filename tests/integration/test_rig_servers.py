"""The rig's own servers: what they promise to the tests that stand on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.bridge_process import REPOSITORY
from tests.support.servers import Database, EmbeddedServer, RestartableServer


@pytest.mark.matrix
def test_the_bridge_role_writes_its_tables_and_can_create_none(target: Database) -> None:
    with target.connect(user="outbox_bridge") as connection:
        connection.execute(
            "insert into events.usage_limits (event_id, customer_id, payload)"
            " values (gen_random_uuid(), 'cus_1', '{}')"
        )
        connection.execute("select * from bridge.checkpoint")
        for ddl in ("create table events.t ()", "create table public.t ()", "create schema s"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(ddl)
    assert target.value("select count(*) from rig.effects where operation = 'INSERT'") == 1


@pytest.mark.matrix
def test_the_source_decodes_for_the_bridge_and_takes_the_apps_events(source: Database) -> None:
    with source.connect(user="outbox_bridge") as connection:
        connection.execute("select pg_create_logical_replication_slot('rig_probe', 'pgoutput')")
    with source.connect(user="app") as application:
        application.execute("select outbox.emit('a.b', '{}')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            application.execute("select * from outbox.event")
    assert source.value("select count(*) from outbox.event") == 1


def test_databases_of_different_tests_are_different(source: Database, target: Database) -> None:
    assert source.value("select count(*) from outbox.event") == 0
    assert target.value("select count(*) from rig.effects") == 0


@pytest.mark.matrix
def test_a_crashed_server_comes_back_on_its_port_with_what_was_committed(
    target_cluster: RestartableServer, target: Database
) -> None:
    target.execute("create table t as select 1 as i")
    before = target.dsn
    target_cluster.crash()
    assert not target_cluster.running
    with pytest.raises(psycopg.OperationalError):
        target.value("select i from t")
    target_cluster.start()
    assert target.dsn == before
    assert target.value("select i from t") == 1


@pytest.mark.matrix
def test_a_killed_backend_takes_every_session_down(
    target_cluster: RestartableServer, target: Database
) -> None:
    with target.connect() as witness, target.connect() as victim:
        target_cluster.kill_backend(victim.info.backend_pid)
        _wait_until_broken(victim)
        _wait_until_broken(witness)


def _wait_until_broken(connection: psycopg.Connection[Any]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            connection.execute("select pg_sleep(0.05)")
        except psycopg.OperationalError:
            return
    raise AssertionError("the connection still works")


@pytest.mark.data_directory
def test_a_standby_is_promoted_to_a_new_timeline(
    source_cluster: EmbeddedServer, source: Database, tmp_path: Path
) -> None:
    standby = source_cluster.standby().start()
    try:
        standby.promote()
        assert standby.execute("select timeline_id from pg_control_checkpoint()") != []
        assert standby.execute("select pg_is_in_recovery()") == [(False,)]
    finally:
        standby.discard()


@pytest.mark.slow
@pytest.mark.data_directory
def test_a_restored_copy_has_forgotten_what_came_later(
    source_cluster: EmbeddedServer, source: Database
) -> None:
    source.execute("create table t as select 1 as i")
    source_cluster.stop()
    copy = source_cluster.clone_at(source_cluster.directory / "copy")
    source_cluster.start()
    source.execute("insert into t values (2)")
    source_cluster.stop()
    source_cluster.restore(copy)
    source_cluster.start()
    assert source.execute("select i from t") == [(1,)]


def test_no_server_outlives_a_killed_parent() -> None:
    program = (
        "from bridge.demo.servers import Cluster, Workspace\n"
        "workspace = Workspace(); server = Cluster(workspace, 'a').init().start()\n"
        "print(workspace.root, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert parent.stdout is not None
    root = parent.stdout.readline().strip()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until = time.monotonic() + 20
    while Path(root).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(root).exists()
