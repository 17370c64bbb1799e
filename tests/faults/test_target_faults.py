"""The target crashes, refuses, blocks and goes back in time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import psycopg
import pytest

from tests.support.producers import Traffic
from tests.support.proxy import FaultProxy
from tests.support.servers import EmbeddedServer, RestartableServer
from tests.support.world import STREAM, World, until

_APPLYING = (
    "select pid from pg_stat_activity where application_name ~ '^bridge/outbox_bridge_warehouse/[0-9]+$'"
    " and datname = current_database()"
)


@pytest.mark.fault(11, 12, 27)
def test_a_target_that_crashes_and_loses_backends_under_load(
    world: World, target_cluster: RestartableServer
) -> None:
    world.bridge().start().wait_log("streaming")
    with Traffic(world.source.dsn, producers=2, burst=300) as traffic:

        def more(transactions: int = 30) -> None:
            seen = traffic.transactions
            until(lambda: traffic.transactions >= seen + transactions, "traffic goes on")

        for _ in range(2):
            more()
            target_cluster.crash()
            more(10)
            target_cluster.start()
            world.caught_up()
        more()
        for _ in range(3):  # one backend at a time, in the middle of a batch or not
            world.target.execute(f"select pg_terminate_backend(pid) from ({_APPLYING}) as a")
            more(10)
        world.caught_up()
        [(pid,)] = until(lambda: world.target.execute(_APPLYING), "a session that applies")
        target_cluster.kill_backend(pid)  # the server ends all of them and recovers
        more(10)
        until(lambda: _accepts(world.target.dsn), "the target has recovered")
        world.caught_up(deadline=40)
    assert world.dead_letters() == []
    world.law()


def _accepts(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.data_directory
@pytest.mark.fault(14)
def test_a_disk_that_is_full_is_waited_for_and_the_panic_that_follows_too(
    world: World, target_cluster: EmbeddedServer
) -> None:
    """The table's file is /dev/full until there is room again: 53100, from the kernel. Then the backend that applies
    may not write WAL: the server panics and recovers."""
    path = world.target.value("select pg_relation_filepath('events.usage_limits')")
    heap = target_cluster.data / path
    target_cluster.stop()
    empty = heap.rename(heap.with_suffix(".empty"))
    heap.symlink_to("/dev/full")
    target_cluster.start()
    bridge = world.bridge().start()
    with world.producer() as producer:
        producer.transaction(5)
        producer.burst(300)
        until(lambda: 'reason="53100"' in bridge.get("/metrics")[1], "the disk is full")
        assert world.dead_letters() == []
        target_cluster.crash()  # on a full disk; and somebody makes room
        heap.unlink()
        empty.rename(heap)
        target_cluster.start()
        world.caught_up(deadline=60)
        world.law()
        [(pid,)] = until(lambda: world.target.execute(_APPLYING), "a session that applies")
        for statement in ("select pg_switch_wal()", _TWO_MEGABYTES):  # where WAL is written is then beyond
            world.target.execute(statement)
        _forbid_writing(target_cluster, pid)
        producer.transaction(3)
        until(lambda: "PANIC" in target_cluster.log.read_text(), "the server panics", 60)
        until(lambda: _accepts(world.target.dsn), "and recovers", 60)
        producer.transaction(3)
        world.caught_up(deadline=60)
    assert world.dead_letters() == []
    world.law()


_TWO_MEGABYTES = "select pg_logical_emit_message(false, 'rig', repeat('x', 2 << 20))"


def _forbid_writing(cluster: EmbeddedServer, pid: int) -> None:
    """This backend may write nothing beyond the first 1 MiB of any file: tables here are smaller, WAL is not."""
    command = ["prlimit", "--pid", str(pid), "--fsize=1048576:"]
    subprocess.run(command, check=True, **cluster.binaries.identity.popen(cluster.directory))


@pytest.mark.fault(13)
def test_a_commit_whose_answer_is_lost_is_not_applied_again(
    world: World, proxy_to: Callable[[str], FaultProxy]
) -> None:
    proxy = proxy_to(world.target.bridge_dsn)
    bridge = world.bridge(target=proxy.dsn).start().wait_ready()
    with Traffic(world.source.dsn, producers=2, burst=200):
        for _ in range(4):
            lost = proxy.lose_commit_answer(b"usage_limits")
            lost.wait(30)
            proxy.clear()
            world.caught_up()
        lost = proxy.lose_commit_answer(b"bridge.checkpoint")  # the ledger alone, or with a batch
        lost.wait(30)
        proxy.clear()
        world.caught_up()
    assert bridge.running
    world.law()


@pytest.mark.fault(19, 20, 21, 23, 26)
def test_what_passes_is_tried_again_and_never_a_dead_letter(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer, world.target.connect() as owner:
        producer.transaction(3)
        world.caught_up()
        # A trigger of the customer's that fails three times in a way that passes.
        owner.execute("create sequence events.failures")
        owner.execute("grant usage on sequence events.failures to outbox_bridge")
        for state in ("40001", "40P01", "55P03", "53200", "57014"):
            owner.execute("select setval('events.failures', 1, false)")
            owner.execute(_failing_trigger(state).encode())
            producer.transaction(3)
            world.caught_up()
            assert owner.execute("select last_value > 2 from events.failures").fetchone() == (True,), state
            owner.execute("drop trigger fail on events.usage_limits")
        assert 'reason="40001"' in bridge.get("/metrics")[1]
        # An error of the customer's own class: the unit that fails alone is dead, its neighbours are not.
        owner.execute(_trigger_that_raises("P0001", "new.customer_id = 'cus_none'").encode())
        payload = {"customer_id": "cus_none", "metric": "seats", "limit": 1, "used": 1, "plan": "pro"}
        good = {**payload, "customer_id": "cus_1"}
        _, dead, _ = producer.transaction(payloads=[good, payload, good])
        world.caught_up()
        assert [(event, code) for event, code, _ in world.dead_letters()] == [(str(dead), "P0001")]
        owner.execute("drop trigger fail on events.usage_limits")
        # Read-only, as after a failover to a standby of a moment: waits, then goes on.
        name = owner.execute("select quote_ident(current_database())").fetchone()
        assert name is not None
        owner.execute(
            "create function events.read_only() returns trigger language plpgsql as"
            " $$ begin raise exception using errcode = '25006', message = 'read only'; end $$"
        )
        owner.execute(
            "create trigger fail before insert on events.usage_limits for each statement"
            " execute function events.read_only()"
        )
        producer.transaction(2)
        bridge.wait_halted("target_read_only")
        owner.execute("drop trigger fail on events.usage_limits")
        bridge.wait_ready()
        # The role says that a commit need not be durable: overridden.
        owner.execute("alter role outbox_bridge set synchronous_commit = off")
        try:
            owner.execute(_noting_trigger.encode())
            world.target.execute(f"select pg_terminate_backend(pid) from ({_APPLYING}) as a")
            producer.transaction(2)
            world.caught_up()
            assert owner.execute("select distinct setting from events.noted").fetchall() == [("on",)]
        finally:
            owner.execute("alter role outbox_bridge reset synchronous_commit")
    world.law()


def _failing_trigger(state: str) -> str:
    return _trigger_that_raises(state, "nextval('events.failures') <= 2")


def _trigger_that_raises(state: str, condition: str) -> str:
    return f"""
        create or replace function events.fail() returns trigger language plpgsql as $$
        begin
            if {condition} then
                raise exception using errcode = '{state}', message = 'made by a test';
            end if;
            return new;
        end $$;
        create trigger fail before insert on events.usage_limits for each row execute function events.fail()"""


_noting_trigger = """
    create table events.noted (setting text);
    create function events.note() returns trigger language plpgsql security definer as $$
    begin
        insert into events.noted select current_setting('synchronous_commit');
        return new;
    end $$;
    create trigger note before insert on events.usage_limits for each row execute function events.note()"""


@pytest.mark.slow
@pytest.mark.fault(19)
def test_a_lock_held_longer_than_the_lock_timeout_only_delays(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    with world.target.connect() as lock, world.producer() as producer:
        with lock.transaction():
            lock.execute("lock table events.usage_limits in exclusive mode")
            producer.transaction(5)
            until(lambda: 'reason="55P03"' in bridge.get("/metrics")[1], "the lock times out")
        world.caught_up()
    assert world.dead_letters() == []
    world.law()


@pytest.mark.fault(28)
def test_a_ledger_row_that_is_gone_halts_and_is_not_made_anew(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer, world.target.connect() as owner:
        producer.transaction(3)
        world.caught_up()
        owner.execute("create table bridge.kept as select * from bridge.checkpoint")
        owner.execute("delete from bridge.checkpoint")
        before = world.applied()
        producer.transaction(3)
        bridge.wait_readyz(lambda _, body: "ledger_missing" in body and "bridge recover" in body)
        assert world.applied() == before
        bridge.terminate()
        bridge.start().wait_halted("ledger_missing")  # a restart is no first start
        assert owner.execute("select count(*) from bridge.checkpoint").fetchone() == (0,)
        owner.execute("insert into bridge.checkpoint select * from bridge.kept")
        bridge.wait_ready()
    world.law()


@pytest.mark.fault(28)
def test_a_ledger_that_was_wound_back_by_hand_is_noticed(world: World) -> None:
    """applied_lsn alone put back: the slot is ahead of it, so the table is read, and what `applied` and the
    floor show is not applied again."""
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(3)
        world.caught_up()
        old = world.checkpoint("applied_lsn")
        for _ in range(5):
            producer.transaction(2)
        world.caught_up()
        until(
            lambda: world.source.value(
                "select confirmed_flush_lsn > %s::pg_lsn from pg_replication_slots where slot_name = %s",
                [old, world.slot],
            ),
            "the slot is confirmed",
        )
        world.target.execute(f"update bridge.checkpoint set applied_lsn = '{old}', safe_lsn = '{old}'")
        producer.transaction(2)
        world.caught_up()
    assert int(world.checkpoint("slot_incarnation")) == 2
    assert bridge.running
    world.law()


@pytest.mark.data_directory
@pytest.mark.fault(22)
def test_a_target_restored_from_an_older_copy_is_brought_up_from_the_outbox(
    world: World, target_cluster: RestartableServer
) -> None:
    bridge = world.bridge().start().wait_ready()
    cluster = target_cluster
    with world.producer() as producer:
        producer.burst(200)
        world.caught_up()
        cluster.stop()
        copy = cluster.clone_at(cluster.directory / "copy")  # type: ignore[attr-defined]
        cluster.start()
        producer.burst(300)
        producer.transaction(5)
        world.caught_up()
        confirmed = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s"
        before = world.source.value(confirmed, [world.slot])
        until(lambda: world.source.value(confirmed, [world.slot]) != before, "the slot is confirmed")
        cluster.stop("immediate")
        cluster.restore(copy)  # type: ignore[attr-defined]
        cluster.start()
        assert world.applied() < 300
        producer.transaction(2)
        world.caught_up()
    assert bridge.running
    assert int(world.checkpoint("slot_incarnation")) == 2
    verdict = world.law()
    assert verdict.expected > 500


@pytest.mark.fault(19)
def test_the_stream_of_another_role_holding_the_row_is_waited_for(world: World) -> None:
    """Somebody looks at the checkpoint row with a lock: the bridge waits, it neither dies nor skips."""
    world.bridge().start().wait_ready()
    with world.producer() as producer, world.target.connect() as owner:
        with owner.transaction():
            owner.execute("select from bridge.checkpoint where stream = %s for update", [STREAM])
            producer.transaction(3)
            until(
                lambda: world.target.value("select count(*) from pg_locks where not granted"),
                "the bridge waits for the row",
            )
        world.caught_up()
    world.law()


@pytest.mark.fault(27)
def test_too_many_connections_are_waited_for(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    with world.target.connect() as owner, world.producer() as producer:
        producer.transaction(1)
        world.caught_up()
        owner.execute("alter role outbox_bridge connection limit 0")
        try:
            owner.execute(f"select pg_terminate_backend(pid) from ({_APPLYING}) as a")
            producer.transaction(2)
            bridge.wait_readyz(lambda status, body: status == 503 and "too many connections" in body)
        finally:
            owner.execute("alter role outbox_bridge connection limit -1")
        world.caught_up()
    assert world.dead_letters() == []
    world.law()


def test_the_rig_sees_the_session_that_applies(world: World) -> None:
    """The tests above end sessions by name: without one they would prove nothing."""
    world.bridge().start().wait_ready()
    world.caught_up()
    with psycopg.connect(world.target.dsn) as connection:
        assert len(connection.execute(_APPLYING.encode()).fetchall()) == 1
