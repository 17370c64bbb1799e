"""The bridge is killed, stopped, frozen and doubled at the worst moments."""

from __future__ import annotations

import signal

import pytest

from tests.support.producers import Traffic
from tests.support.world import IMPATIENT, World, until


@pytest.mark.fault(2)
@pytest.mark.parametrize("point", ["settle.durable", "confirm.before", "confirm.sent"])
def test_a_kill_between_commit_and_confirmation_applies_nothing_twice(world: World, point: str) -> None:
    with world.producer() as producer:
        producer.burst(300)
        doomed = world.bridge(failpoints=f"{point}=kill@3").start()
        doomed.wait_log("streaming")
        while doomed.running:
            producer.transaction(5)
        assert doomed.wait() == -signal.SIGKILL
        producer.transaction(5)
    world.bridge().start().wait_ready()
    verdict = world.law()
    assert verdict.in_dead_letters == 0


@pytest.mark.fault(3)
def test_sigterm_in_the_middle_of_work_ends_cleanly(world: World) -> None:
    bridge = world.bridge()
    with Traffic(world.source.dsn, producers=2, burst=500):
        for _ in range(3):
            seen = len(bridge.lines)
            bridge.start().wait_log("streaming", since=seen)
            assert bridge.terminate(10) == 0, bridge.log_tail()
    bridge.start().wait_ready()
    world.law()


@pytest.mark.slow
@pytest.mark.fault(3, 19)
def test_sigterm_ends_within_the_grace_while_the_target_blocks(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    with world.target.connect() as lock, lock.transaction():
        lock.execute("lock table events.usage_limits in exclusive mode")
        with world.producer() as producer:
            producer.transaction(5)
        waiting = (
            "select count(*) from pg_locks where not granted and relation = 'events.usage_limits'::regclass"
        )
        until(lambda: world.target.value(waiting), "the batch waits for the lock")
        assert bridge.terminate(30) == 0, bridge.log_tail()
    assert world.dead_letters() == []
    bridge.start().wait_ready()
    world.law()


@pytest.mark.fault(5)
def test_a_second_bridge_stands_by_and_takes_over_when_the_first_is_killed(world: World) -> None:
    first = world.bridge(options=IMPATIENT).start().wait_ready()
    first.wait_log("streaming")
    second = world.bridge(options=IMPATIENT).start()
    second.wait_log("standby")
    assert second.wait_ready().get("/livez")[0] == 200  # standing by is ready
    with Traffic(world.source.dsn, producers=2, burst=300) as traffic:
        until(lambda: traffic.transactions > 50, "traffic")
        epoch = int(world.checkpoint("epoch"))
        first.kill()
        second.wait_log("streaming", 10)
        assert int(world.checkpoint("epoch")) == epoch + 1
        first.start().wait_log("standby")  # the other way round
        second.kill()
        until(lambda: int(world.checkpoint("epoch")) == epoch + 2, "the first takes over again", 10)
    world.law()


@pytest.mark.fault(4)
def test_a_bridge_frozen_past_the_sender_timeout_writes_nothing_on_waking(world: World) -> None:
    frozen = world.bridge(options=IMPATIENT, failpoints="apply.before=sleep:2@3").start().wait_ready()
    successor = world.bridge(options=IMPATIENT).start()
    successor.wait_log("standby")
    with world.producer() as producer:
        while not any("apply.before: sleep" in line for line in frozen.lines):
            producer.transaction(3)
        frozen.pause()  # with a batch planned and not sent
        successor.wait_log("streaming")
        producer.transaction(3)
        world.caught_up()
        before, epoch = world.applied(), world.checkpoint("epoch")
        frozen.resume()
        frozen.wait_log("standby")  # it has lost its stream, and hears of that first
    assert (world.applied(), world.checkpoint("epoch")) == (before, epoch)
    world.law()


@pytest.mark.fault(4)
def test_a_frozen_bridge_that_lost_its_stream_to_another_is_fenced_and_ends(world: World) -> None:
    world.configure(lambda c: c["source"].update(capture="poll", poll_interval="100ms"))
    frozen = world.bridge(failpoints="apply.before=sleep:1@2").start().wait_ready()
    with world.producer() as producer:
        while not any("apply.before: sleep" in line for line in frozen.lines):
            producer.transaction(3)
        frozen.pause()
        successor = world.bridge().start()
        successor.wait_log("polling")
        world.caught_up()
        before = world.applied()
        frozen.resume()
        assert frozen.wait(20) == 1, frozen.log_tail()
        assert '"reason":"fenced"' in frozen.log_tail()
    assert world.applied() == before
    world.law()


@pytest.mark.slow
@pytest.mark.fault(4)
def test_a_bridge_frozen_in_a_transaction_is_evicted_by_its_successor(world: World) -> None:
    world.configure(lambda c: c["source"].update(batch={"max_events": 100}))
    frozen = world.bridge(options=IMPATIENT, failpoints="apply.chunk=sleep:2@2").start().wait_ready()
    successor = world.bridge(options=IMPATIENT).start()
    successor.wait_log("standby")
    with world.producer() as producer:
        producer.burst(2000)
        frozen.wait_log("apply.chunk: sleep")
        frozen.pause()
        # Its transaction is open and holds the checkpoint row: the fence ends that backend.
        successor.wait_log("streaming", 60)
        producer.transaction(3)
        world.caught_up()
        frozen.resume()
        frozen.wait_log("standby")
    world.law()


@pytest.mark.fault(7)
def test_a_reload_of_a_broken_configuration_keeps_the_old_one(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    good = world.config.read_text()
    broken = [
        good.replace("$event.customer_id", "$event.(", 1),
        good.replace("mode: upsert", "mode: sideways"),
        "version: [",
        "",
        "\x00\xff",
    ]
    with world.producer() as producer:
        for text in broken:
            seen = len(bridge.lines)
            world.config.write_text(text)
            bridge.signal(signal.SIGHUP)
            bridge.wait_log("reload refused", since=seen)
            assert "outbox_bridge_config_last_reload_successful 0.0" in bridge.get("/metrics")[1]
            producer.transaction(2)
            world.caught_up()
        seen = len(bridge.lines)
        world.config.unlink()
        bridge.signal(signal.SIGHUP)
        bridge.wait_log("reload refused", since=seen)
        world.config.write_text(good)
        bridge.signal(signal.SIGHUP)
        bridge.wait_log('"reloaded"', since=seen)
        assert "outbox_bridge_config_last_reload_successful 1.0" in bridge.get("/metrics")[1]
        # a changed mapping counts from the next event on
        world.configure(
            lambda c: c["pipelines"]["usage-limit-hits"]["destinations"]["events"]["columns"].update(
                ratio="$event.used / $event.limit"
            )
        )
        bridge_lines = len(bridge.lines)
        bridge.signal(signal.SIGHUP)
        bridge.wait_log('"streaming"', since=bridge_lines)
        [event] = producer.transaction(1)
        world.caught_up()
    assert world.target.value(
        "select ratio is not null from events.usage_limits where event_id = %s", [event]
    )
    world.law()


@pytest.mark.fault(5)
def test_two_bridges_that_poll_do_not_fence_each_other(world: World) -> None:
    world.configure(lambda c: c["source"].update(capture="poll", poll_interval="100ms"))
    first = world.bridge().start()
    first.wait_log("polling")
    second = world.bridge().start()
    second.wait_log("standby")
    with Traffic(world.source.dsn, producers=1):
        epoch = world.checkpoint("epoch")
        world.caught_up()
        first.kill()
        second.wait_log("polling", 20)
    assert int(world.checkpoint("epoch")) == int(epoch) + 1
    assert (
        world.source.value("select count(*) from pg_replication_slots where database = current_database()")
        == 0
    )
    world.law()
