"""Transactions larger than memory, applying slower than the sender's patience, and long silences."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Traffic
from tests.support.proxy import FaultProxy
from tests.support.servers import RestartableServer
from tests.support.truth import conservation
from tests.support.world import IMPATIENT, World, until


def resident(process: BridgeProcess, field: str = "VmHWM") -> int:
    """MiB of memory of the process: VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) // 1024


def _huge(world: World, rows: int, deadline: float) -> int:
    """One transaction of so many rows; MiB that the bridge took for it."""
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.burst(4000)
        world.caught_up()
        before = resident(bridge)
        producer.burst(rows)
        producer.transaction(3)
    world.law(deadline=deadline)
    return resident(bridge) - before


@pytest.mark.slow
@pytest.mark.fault(6, 47)
def test_a_transaction_of_30_000_rows_takes_no_more_memory_than_a_batch(world: World) -> None:
    assert _huge(world, 30_000, 60) < 64


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault(6, 47)
def test_a_transaction_of_a_million_rows_takes_no_more_memory_than_a_batch(world: World) -> None:
    assert _huge(world, 1_000_000, 500) < 64


@pytest.mark.fault(31, 47)
def test_every_chunk_of_a_huge_transaction_is_known_after_a_lost_slot(world: World) -> None:
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.burst(20_000)
        until(lambda: world.applied() >= 20_000, "the burst is applied")
        world.drop_slot()
        producer.transaction(3)
    world.law()


@pytest.mark.fault(12, 47)
def test_a_huge_transaction_whose_session_ends_halfway_is_applied_once(world: World) -> None:
    bridge = world.bridge(failpoints="apply.chunk=sleep:1@3").start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.burst(20_000)
        bridge.wait_log("apply.chunk: sleep")
        ended = world.target.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name ~ '^bridge/outbox_bridge_warehouse/[0-9]+$' and datname = current_database()"
        )
        assert ended == [(True,)]
    world.law(deadline=60)


@pytest.mark.fault(48)
def test_applying_slower_than_the_senders_patience_keeps_the_stream(world: World) -> None:
    bridge = world.bridge(options=IMPATIENT).start()
    bridge.wait_log("streaming")
    with world.producer() as producer, world.target.connect() as lock:
        producer.transaction(3)
        world.caught_up()
        walsender = "select active_pid from pg_replication_slots where slot_name = %s"
        before = world.source.value(walsender, [world.slot])
        with lock.transaction():
            lock.execute("lock table events.usage_limits in exclusive mode")
            producer.burst(6000)  # more than the bridge keeps in memory
            hold = threading.Event()
            hold.wait(5)  # the fault itself: more than twice the sender's patience
        world.caught_up()
        assert world.source.value(walsender, [world.slot]) == before
    assert not any('"trouble"' in line for line in bridge.lines), bridge.log_tail()
    world.law()


@pytest.mark.fault(49)
def test_a_quiet_outbox_in_a_busy_database_lets_the_slot_advance(world: World) -> None:
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    world.caught_up()
    confirmed = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s"
    with world.source.connect() as other:
        other.execute(
            "create table public.busy as select n, repeat('x', 200) from generate_series(1, 20000) as n"
        )
        end = other.execute("select pg_current_wal_lsn()::text").fetchone()
        assert end is not None

        def advanced() -> bool:
            lsn = world.source.value(confirmed, [world.slot])
            return bool(world.source.value("select %s::pg_lsn >= %s::pg_lsn", [lsn, end[0]]))

        until(advanced, "the slot follows", 40)
    world.check_confirmed()
    world.law()


@pytest.mark.fault(30)
def test_a_fast_shutdown_of_the_source_does_not_wait_for_us(
    world: World, source_cluster: RestartableServer
) -> None:
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.burst(5000)
        assert source_cluster.stop("fast") < 10
        bridge.wait_readyz(lambda status, _: status == 503)
        source_cluster.start()
    with world.producer("later") as producer:
        producer.transaction(3)
    bridge.wait_ready()
    world.law()


@pytest.mark.fault(29)
def test_the_source_crashes_under_load_and_right_after_a_confirmation(
    world: World, source_cluster: RestartableServer
) -> None:
    bridge = world.bridge().start()
    with Traffic(world.source.dsn, producers=2, burst=300) as traffic:
        for _ in range(3):
            bridge.wait_ready()
            seen = traffic.transactions
            until(lambda done=seen: traffic.transactions > done + 40, "traffic")  # type: ignore[misc]
            source_cluster.crash()
            source_cluster.start()
        bridge.wait_ready()
    world.law(deadline=40)


@pytest.mark.fault(67)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_network_to_both_servers_breaks_in_every_way(
    world: World, proxy_to: Callable[[str], FaultProxy], every: bool
) -> None:
    links = {"source": proxy_to(world.source.bridge_dsn), "target": proxy_to(world.target.bridge_dsn)}
    bridge = world.bridge(source=links["source"].dsn, target=links["target"].dsn, options=IMPATIENT).start()
    bridge.wait_log("streaming")
    slowest = 0.0
    with Traffic(world.source.dsn, producers=1, burst=300) as traffic:
        for name, link in links.items():
            often = [link.reset_all, lambda link=link: link.cut_after(3000), link.half_open]
            rarely = [
                link.refuse,
                lambda link=link: link.cut_after(3000, "up"),
                lambda link=link: link.latency(0.05),
                lambda link=link: link.rate(200_000),
                link.blackhole,
            ]
            for fault in often + (rarely if every else []):
                fault()
                if fault == link.refuse:
                    link.reset_all()
                seen = traffic.transactions
                until(lambda done=seen: traffic.transactions > done + 15, "traffic")  # type: ignore[misc]
                link.clear()
                slowest = max(slowest, world.caught_up(deadline=25))
                assert bridge.running, name
    assert slowest < 12, f"{slowest:.1f} s"
    assert world.dead_letters() == []
    world.law()


@pytest.mark.slow
@pytest.mark.fault(67)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_link_that_stays_half_open_is_given_up_by_our_own_watch(
    world: World, proxy_to: Callable[[str], FaultProxy], side: str
) -> None:
    """The proxy acknowledges and never answers: TCP notices nothing, and nobody clears it."""
    dsn = {"source": world.source.bridge_dsn, "target": world.target.bridge_dsn}
    link = proxy_to(dsn[side])
    bridge = world.bridge(**{side: link.dsn}).start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(3)
        world.caught_up()
        link.half_open()
        producer.transaction(3)
        world.caught_up(deadline=130)
    assert bridge.running
    assert conservation(world.source.dsn, world.target.dsn).holds
