"""Events become messages of a JetStream stream, through `bridge run` and a real nats-server."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from bridge.postgres.schema import target_sql
from tests.integration.bus.conftest import TYPE, Log, publishing
from tests.support.bridge_process import BridgeProcess
from tests.support.world import World, until


def payload(**more: object) -> dict[str, object]:
    return {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 9, "plan": "pro"} | more


def started(world: World, **arguments: str) -> BridgeProcess:
    bridge = world.bridge(**arguments).start()
    bridge.wait_log("streaming")
    return bridge


def test_each_event_is_a_row_and_a_message_with_its_ids(world: World, log: Log) -> None:
    log.stream()
    publishing(
        world,
        log.node.url,
        {"subject": "usage.{{ event.metric }}", "headers": {"plan": "$event.plan", "odd": "ä % 1 "}},
    )
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=n) for n in range(50)], key="k 1")
        until(lambda: log.count() >= 50, "all are stored")
        world.law()
    messages = [one for one in log.messages() if one.headers.get("Bridge-Event-Key") == "k 1"]
    assert [one.json["n"] for one in messages] == list(range(50))
    assert {one.subject for one in messages} == {"usage.seats"}
    rows = world.source.execute(
        "select id::text, seq, occurred_at::text from outbox.event where key = 'k 1' order by seq"
    )
    assert [one.headers["Bridge-Event-Id"] for one in messages] == [row[0] for row in rows]
    assert [one.headers["Bridge-Event-Seq"] for one in messages] == [str(row[1]) for row in rows]
    first = messages[0]
    assert first.headers["Bridge-Event-Type"] == TYPE
    assert first.headers["Bridge-Event-Key"] == "k 1"
    assert first.headers["plan"] == "pro"
    assert first.headers["odd"] == "%C3%A4 %25 1%20"
    assert len({one.identity for one in messages}) == 50
    assert bridge.terminate() == 0


def test_nats_alone_keeps_its_ledger_in_the_source(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url, table=False)
    world.configure(lambda document: document["connections"].pop("warehouse"))
    with world.source.connect() as connection:
        connection.execute(target_sql().encode())
        connection.execute("grant usage on schema bridge to outbox_bridge")
        connection.execute(
            "grant select, insert, update, delete on all tables in schema bridge to outbox_bridge"
        )
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(5)
        until(lambda: log.count() == 5, "all are stored")
    assert bridge.terminate() == 0


@pytest.mark.fault(102)
@pytest.mark.parametrize(
    "point", ["publish.before", "publish.settled", "apply.sent", "settle.durable", "plan.done"]
)
def test_a_kill_at_any_step_loses_nothing_and_keeps_the_ids(world: World, log: Log, point: str) -> None:
    log.stream(duplicate_window=120)
    publishing(world, log.node.url)
    bridge = world.bridge(failpoints=f"{point}=kill@2").start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        for number in range(4):
            producer.transaction(payloads=[payload(n=number)], key="k")
            until(lambda n=number: log.count() > n or not bridge.running, "it is stored, or the bridge died")
        bridge.wait(30)
        bridge.environment.pop("BRIDGE_FAILPOINTS")
        bridge.start()
        world.law()
    numbers = [one.json["n"] for one in log.messages() if "n" in one.json]
    assert numbers == [0, 1, 2, 3], "each once within the server's window, in order"


@pytest.mark.slow
@pytest.mark.fault(102)
def test_a_crash_beyond_the_window_publishes_again_with_the_same_id(world: World, log: Log) -> None:
    log.stream(duplicate_window=0.1)
    publishing(world, log.node.url)
    bridge = world.bridge(failpoints="publish.settled=kill@1").start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=1)], key="k")
        bridge.wait(30)
        assert log.count() == 1
        bridge.environment.pop("BRIDGE_FAILPOINTS")
        bridge.start()
        world.law()
    first, second = [one for one in log.messages() if one.json.get("n") == 1]
    assert first.identity == second.identity
    assert first.data == second.data


@pytest.mark.fault(101)
def test_while_nats_is_away_nothing_is_applied_and_then_everything_is(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url)
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=0)])
        until(lambda: world.applied() == 1, "the first is applied")
        log.node.kill()
        producer.transaction(payloads=[payload(n=n) for n in range(1, 4)])
        until(lambda: world.applied() > 1 or _troubled(bridge), "it notices")
        assert world.applied() == 1, "the ledger did not pass what is not published"
        log.node.start()
        world.law()
    assert sorted(one.json["n"] for one in log.messages() if "n" in one.json) == [0, 1, 2, 3]
    assert world.dead_letters() == []


@pytest.mark.slow
@pytest.mark.fault(101)
def test_a_server_that_answers_nothing_has_stored_nothing(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url)
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=0)])
        until(lambda: world.applied() == 1, "the first is applied")
        log.node.freeze()
        producer.transaction(payloads=[payload(n=1)])
        until(lambda: world.applied() > 1 or _troubled(bridge), "it notices", 60)
        assert world.applied() == 1
        log.node.thaw()
        world.law()
    assert {one.json["n"] for one in log.messages() if "n" in one.json} == {0, 1}


def _troubled(bridge: BridgeProcess) -> bool:
    return any("trouble" in line for line in bridge.lines)


@pytest.mark.slow
@pytest.mark.fault(101)
def test_a_full_stream_waits_and_goes_on_when_there_is_room(world: World, log: Log) -> None:
    log.stream(max_msgs=3, discard="new")
    publishing(world, log.node.url)
    bridge = started(world)
    with world.producer() as producer:
        for number in range(5):
            producer.transaction(payloads=[payload(n=number)])
        trouble = bridge.wait_log("trouble")
        assert '"reason": "bus_full"' in trouble or "bus_full" in trouble
        log.bus.call(lambda js: js.purge_stream("USAGE"), doing="purge")
        until(lambda: world.applied() >= 5, "all are applied")
    assert world.dead_letters() == []
    assert bridge.terminate() == 0


@pytest.mark.fault(104)
def test_a_subject_of_no_stream_halts_with_the_command_that_makes_one(world: World, log: Log) -> None:
    publishing(world, log.node.url)
    bridge = world.bridge().start()
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=1)])
        halted = bridge.wait_log("halted")
        assert "no JetStream stream takes it" in halted
        assert 'nats stream add USAGE --subjects \\"usage.reached\\"' in halted
        assert world.applied() == 0
        log.stream()
        world.law()
    assert log.count() >= 1


@pytest.mark.fault(104)
def test_what_can_never_be_published_is_a_dead_letter_and_the_rest_goes_on(
    world: World, log_with: Callable[..., Log]
) -> None:
    log = log_with(max_payload="2KB")
    log.stream()
    publishing(world, log.node.url, {"subject": "usage.{{ event.metric }}"})
    world.configure(lambda document: document.pop("events"))
    started(world)
    with world.producer() as producer:
        wrong = [
            payload(n=1),
            payload(n=2, metric="two words"),
            payload(n=3, plan="x" * 5000),
            payload(n=4, metric=""),
            payload(n=5),
        ]
        producer.transaction(payloads=wrong)
        until(lambda: len(world.dead_letters()) == 3, "three are dead letters")
        until(lambda: log.count() >= 2, "the others are stored")
    letters = world.dead_letters()
    assert [code for _, code, _ in letters] == ["subject", "too_large", "subject"]
    assert all("two words" not in cause and "xxx" not in cause for _, _, cause in letters)
    assert {one.json["n"] for one in log.messages() if "n" in one.json} == {1, 5}
    assert world.applied() >= 5, "the rows are there all the same"


@pytest.mark.slow
@pytest.mark.fault(104)
def test_an_events_own_subject_that_no_stream_takes_is_its_dead_letter(world: World, log: Log) -> None:
    log.stream(subjects=("usage.seats", "usage.storage"))
    publishing(world, log.node.url, {"subject": "usage.{{ event.metric }}"})
    started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=1)])
        until(lambda: log.count() == 1, "the first is stored")
        producer.transaction(payloads=[payload(n=2, metric="api-calls"), payload(n=3, metric="storage")])
        until(lambda: log.count() == 2, "the last is stored")
        until(lambda: len(world.dead_letters()) == 1, "the one between is a dead letter")
    ((_, code, cause),) = world.dead_letters()
    assert (code, cause) == ("subject", "no JetStream stream takes this event's subject")


def test_a_dead_letter_is_published_when_it_is_retried(world: World, log: Log) -> None:
    log.stream(subjects=("usage.seats",))
    publishing(world, log.node.url, {"subject": "usage.{{ event.metric }}"})
    started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=1)])
        producer.transaction(payloads=[payload(n=2, metric="storage")])
        until(lambda: len(world.dead_letters()) == 1, "a dead letter")
        log.bus.call(lambda js: js.add_stream(name="MORE", subjects=["usage.storage"]), doing="make")
        said = world.command("dead", "retry", "--all")
        assert "1" in said
    assert world.dead_letters() == []
    (again,) = log.messages("MORE")
    assert again.json["n"] == 2


@pytest.mark.slow
def test_a_replay_publishes_once_more_with_ids_of_its_own(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url)
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=n) for n in range(3)], key="k")
        until(lambda: log.count() == 3, "all are stored")
    assert bridge.terminate() == 0
    refused = world.run("replay", "--destination", "log", "--since", "1h")
    assert refused.returncode == 1
    assert "--deliver" in refused.stderr
    world.command("replay", "--destination", "log", "--since", "1h", "--deliver")
    messages = log.messages()
    assert [one.json["n"] for one in messages] == [0, 1, 2, 0, 1, 2]
    assert not {one.identity for one in messages[:3]} & {one.identity for one in messages[3:]}


@pytest.mark.slow
@pytest.mark.fault(101)
def test_a_frozen_server_does_not_keep_the_bridge_from_stopping(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url)
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=0)])
        until(lambda: world.applied() == 1, "the first is applied")
        log.node.freeze()
        producer.transaction(payloads=[payload(n=1)])
        bridge.signal(signal.SIGTERM)
        assert bridge.wait(60) == 0
        log.node.thaw()
        bridge.start()
        world.law()
    assert {one.json["n"] for one in log.messages() if "n" in one.json} == {0, 1}


def test_explain_and_status_tell_of_published_messages(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url)
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=7)])
        until(lambda: log.count() == 1, "it is stored")
        world.caught_up()
        event = world.source.value("select id::text from outbox.event order by seq limit 1")
        said = world.command("explain", event)
        assert "usage.reached" in said
        assert 'outbox_bridge_deliveries_total{destination="log",outcome="sent"' in bridge.get("/metrics")[1]
        assert world.json("status")["deliveries"]["log"]["sent"] >= 1


def test_commands_for_the_delivery_table_say_what_to_use_instead(world: World, log: Log) -> None:
    publishing(world, log.node.url)
    for command in ("test", "preview", "pause", "resume"):
        ran = world.run("sink", command, "log")
        assert ran.returncode == 2, command
        assert "usage-limit-hits/log is a subject of NATS" in ran.stderr
        assert "bridge doctor checks it" in ran.stderr


@pytest.mark.slow
def test_a_transaction_larger_than_a_batch_is_published_whole(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url)
    world.configure(lambda document: document["source"].update(batch={"max_events": 50}))
    world.target.execute("alter table events.usage_limits add constraint plan_is_good check (plan <> 'bad')")
    started(world)
    with world.producer() as producer:
        plans = ["bad" if n == 120 else "pro" for n in range(300)]
        producer.transaction(payloads=[payload(n=n, plan=plan) for n, plan in enumerate(plans)], key="k")
        until(lambda: log.count() >= 300, "all are stored", 60)
        until(lambda: len(world.dead_letters()) == 1, "the row alone is a dead letter")
        world.caught_up()
    assert [one.json["n"] for one in log.messages() if "n" in one.json] == list(range(300))


@pytest.mark.slow
def test_a_polled_source_publishes_too(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url)
    world.configure(lambda document: document["source"].update(capture="poll", poll_interval="100ms"))
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=n) for n in range(20)], key="k")
        until(lambda: log.count() >= 20, "all are stored")
        world.caught_up()
    assert [one.json["n"] for one in log.messages() if "n" in one.json] == list(range(20))


@pytest.mark.slow
def test_a_reload_adds_the_destination_and_takes_it_away(world: World, log: Log) -> None:
    log.stream()
    before = world.text
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=0)])
        world.caught_up()
        publishing(world, log.node.url)
        bridge.signal(signal.SIGHUP)
        bridge.wait_log("reloaded")
        producer.transaction(payloads=[payload(n=1)])
        until(lambda: any(one.json.get("n") == 1 for one in log.messages()), "the second is published")
        world.caught_up()
        world.text = before
        seen = len(bridge.lines)
        bridge.signal(signal.SIGHUP)
        bridge.wait_log("reloaded", since=seen)
        producer.transaction(payloads=[payload(n=2)])
        world.law()
    assert {one.json["n"] for one in log.messages() if "n" in one.json} == {1}


@pytest.mark.slow
def test_prove_counts_the_table_and_asks_nothing_of_the_log(world: World, log: Log) -> None:
    log.stream()
    publishing(world, log.node.url)
    bridge = started(world)
    with world.producer() as producer:
        producer.transaction(payloads=[payload(n=n) for n in range(5)])
        world.caught_up()
    assert bridge.terminate() == 0
    said = world.command("prove")
    assert "usage-limit-hits/log" not in said
