"""Dead letters on real servers: grouped, shown, applied again exactly once, or discarded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.integration.ops.conftest import emit, letters, rows, usage
from tests.support.bridge_process import FAILPOINTS, BridgeProcess
from tests.support.receiver import Receiver, Reply
from tests.support.servers import Database
from tests.support.world import World, until

Start = Callable[[], BridgeProcess]

_SMALL = "alter table events.usage_limits add constraint small check (used < 1000)"
_ANY = "alter table events.usage_limits drop constraint small"
_BY_CUSTOMER = "key: [customer_id]"


@pytest.fixture
def refused(world: World, bridge: Start, source: Database, target: Database) -> BridgeProcess:
    """A running bridge, and three letters that a CHECK of the table refused; one event was applied."""
    target.execute(_SMALL)
    running = bridge()
    emit(source, usage(used=5000), usage(used=6000), usage(used=1), usage(used=7000))
    until(lambda: letters(target) == 3 and rows(target) == 1, "three letters, one row")
    return running


def test_letters_are_listed_by_cause_and_shown_with_their_values(
    world: World, refused: BridgeProcess, source: Database
) -> None:
    [group] = world.json("dead", "list")
    assert (group["letters"], group["code"]) == (3, "23514")
    assert "small" in group["cause"]
    said = world.command("dead", "list")
    assert "3  usage-limit-hits -> events  23514:" in said
    assert "5000" not in said
    shown = world.command("dead", "show", group["ids"][0][:8])
    assert '"used": 5000' in shown
    assert "23514" in shown
    assert world.json("dead", "show", group["ids"][0])["event_type"] == "usage.limit_reached"
    assert world.command("dead", "list", "--cause", "contract") == "no open dead letter matches\n"
    for command in ("list", "retry", "discard"):
        for words, said in (
            (
                ("--pipeline", "usage-limit-hit"),
                "no pipeline usage-limit-hit\n  fix: did you mean usage-limit-hits?",
            ),
            (("--cause", "23541"), "no open dead letter has the code 23541\n  fix: did you mean 23514?"),
        ):
            refused_words = world.run("dead", command, *words)
            assert refused_words.returncode == 2
            assert said in refused_words.stderr
    assert "there is no dead letter 00000000" in world.run("dead", "show", "00000000").stderr


def test_a_retry_applies_each_letter_once_when_the_table_is_mended(
    world: World, refused: BridgeProcess, target: Database, source: Database
) -> None:
    failed = world.command("dead", "retry", "--all", code=1)
    assert "3  failed  23514:" in failed
    assert (letters(target), rows(target)) == (3, 1)
    target.execute(_ANY)
    dry = world.json("dead", "retry", "--all", "--dry-run")
    assert [each["result"] for each in dry["letters"]] == ["applied"] * 3
    assert (letters(target), rows(target)) == (3, 1)
    done = world.json("dead", "retry", "--pipeline", "usage-limit-hits", "--cause", "23514")
    assert [each["result"] for each in done["letters"]] == ["applied"] * 3
    assert (letters(target), letters(target, "resolved"), rows(target)) == (0, 3, 4)
    assert target.value("select count(*) from rig.effects") == 4
    assert target.value("select array_agg(distinct mrr)::text from events.usage_limits") == "{10.50}"
    assert "no open dead letter" in world.command("dead", "retry", "--all")


@pytest.mark.parametrize(("act", "code"), [("kill", -9), ("raise", 1), ("hang", -9)])
def test_a_retry_that_dies_before_its_commit_leaves_the_dead_letter_open(
    world: World, refused: BridgeProcess, target: Database, act: str, code: int
) -> None:
    target.execute(_ANY)
    world.environment[FAILPOINTS] = f"dead.retry={act}@2"
    assert world.run("dead", "retry", "--all").returncode == code
    assert (letters(target), letters(target, "resolved"), rows(target)) == (2, 1, 2)
    del world.environment[FAILPOINTS]
    world.command("dead", "retry", "--all")
    assert (letters(target), rows(target)) == (0, 4)
    assert target.value("select count(*) from rig.effects") == 4


def test_two_retries_at_once_apply_each_letter_once(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    target.execute(_SMALL)
    bridge()
    emit(source, *(usage(used=1000 + number) for number in range(40)))
    until(lambda: letters(target) == 40, "forty letters")
    target.execute(_ANY)
    config = str(world.config)
    environment = {
        "SOURCE_DSN": source.bridge_dsn,
        "WAREHOUSE_DSN": target.bridge_dsn,
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "bridge", "dead", "retry", "--all", "-c", config],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for each in both:
        each.communicate(timeout=60)
        assert each.returncode == 0
    assert (letters(target), letters(target, "resolved"), rows(target)) == (0, 40, 40)
    assert target.value("select count(*) from rig.effects") == 40


def test_discarded_letters_are_kept_and_not_retried(
    world: World, refused: BridgeProcess, target: Database
) -> None:
    target.execute(_ANY)
    [group] = world.json("dead", "list")
    assert world.command("dead", "discard", group["ids"][0], "--dry-run") == "1 would be discarded\n"
    assert letters(target) == 3
    assert world.command("dead", "discard", group["ids"][0]) == "1 discarded\n"
    world.command("dead", "retry", "--all")
    assert (letters(target, "discarded"), letters(target, "resolved"), rows(target)) == (1, 2, 3)


def test_which_letters_must_be_said(world: World) -> None:
    ran = world.run("dead", "retry")
    assert ran.returncode == 2
    assert "--all" in ran.stderr
    assert world.run("dead", "discard", "zz").returncode == 2


def test_an_earlier_event_is_applied_over_a_later_one_only_if_forced(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    world.text = world.text.replace("key: [event_id]", _BY_CUSTOMER)
    target.execute("create unique index by_customer on events.usage_limits (customer_id)")
    target.execute(_SMALL)
    bridge()
    for number, (customer, used) in enumerate((("cus_1", 5000), ("cus_1", 6000), ("cus_2", 7000)), 1):
        emit(source, usage(customer_id=customer, used=used), key=customer)
        until(lambda number=number: letters(target) == number, "its letter")  # a batch folds what has one key
    emit(source, usage(customer_id="cus_2", used=2), key="cus_2")
    until(lambda: rows(target) == 1, "the later event of cus_2")
    target.execute(_ANY)

    outcome = world.json("dead", "retry", "--all", code=1)["letters"]
    assert [each["result"] for each in outcome] == ["applied", "applied", "refused"]
    assert "a later event of its key was applied" in outcome[2]["why"]
    used = "select used::int from events.usage_limits where customer_id = %s"
    assert target.value(used, ["cus_1"]) == 6000  # of two letters of a key, in their order
    assert target.value(used, ["cus_2"]) == 2
    assert "overtaken" in world.command("dead", "list")
    world.command("dead", "retry", "--all", "--force")
    assert target.value(used, ["cus_2"]) == 7000


def test_a_version_lets_the_earlier_event_through_and_the_later_row_stand(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    columns = "version: $meta.seq\n        columns:\n          version: $meta.seq"
    world.text = world.text.replace("key: [event_id]", _BY_CUSTOMER).replace("columns:", columns, 1)
    target.execute("create unique index by_customer on events.usage_limits (customer_id)")
    target.execute("alter table events.usage_limits add column version bigint")
    target.execute(_SMALL)
    bridge()
    emit(source, usage(used=5000))
    until(lambda: letters(target) == 1, "a letter")  # in one batch the later event would take its place
    emit(source, usage(used=2))
    until(lambda: rows(target) == 1, "a row")
    target.execute(_ANY)
    world.command("dead", "retry", "--all")
    assert letters(target, "resolved") == 1
    assert target.value("select used::int from events.usage_limits") == 2


def test_a_missing_table_stops_the_retry_with_what_to_do(
    world: World, refused: BridgeProcess, target: Database
) -> None:
    refused.terminate()
    target.execute("alter table events.usage_limits rename to elsewhere")
    ran = world.run("dead", "retry", "--all")
    assert ran.returncode == 1
    assert "events.usage_limits does not exist" in ran.stderr
    assert letters(target) == 3


def test_a_letter_whose_destination_is_gone_stays_open(
    world: World, refused: BridgeProcess, target: Database
) -> None:
    refused.terminate()
    world.text = world.text.replace("usage-limit-hits:", "renamed:")
    assert "is not in the configuration any more" in world.command("dead", "retry", "--all", code=1)
    assert letters(target) == 3


def test_an_event_that_the_pipeline_filters_by_now_is_settled_without_a_row(
    world: World, refused: BridgeProcess, target: Database
) -> None:
    refused.terminate()
    world.text = world.text.replace("steps:", "steps:\n      - filter: $event.used < 1000", 1)
    outcome = world.json("dead", "retry", "--all")["letters"]
    assert [each["result"] for each in outcome] == ["filtered"] * 3
    assert (letters(target, "resolved"), rows(target)) == (3, 1)


def test_an_event_that_no_pipeline_took_goes_where_one_takes_it_now(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    world.text = world.text.replace("  capture: slot", "  capture: slot\n  unmatched: dead")
    running = bridge()
    source.execute(
        "insert into outbox.event (type, payload) values ('usage.other', %s)", ['{"customer_id": "x"}']
    )
    until(lambda: letters(target) == 1, "an unmatched letter")
    assert "1  failed  unmatched" in world.command("dead", "retry", "--all", code=1)
    running.terminate()
    world.text = world.text.replace("event: usage.limit_reached", 'event: ["usage.*"]')
    world.command("dead", "retry", "--all")
    assert (letters(target), rows(target)) == (0, 1)


def test_parked_letters_retry_themselves_until_the_row_comes(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    world.text = world.text.replace("missing: continue", "missing: retry")
    running = bridge()
    emit(source, usage(customer_id="new_1"), usage(customer_id="never"))
    until(lambda: letters(target) == 2, "two parked letters")
    assert world.json("dead", "list")[0]["parked"] == 2
    source.execute("insert into crm.customer values ('new_1', 5, 'ada', '2027-01-01')")
    # not to wait ten seconds: the time of both has come, and the patience for one is over
    target.execute(
        "update bridge.dead_letter set retry_at = now() - interval '1 second', retry_until ="
        " case when payload->>'customer_id' = 'never' then now() - interval '1 second' else retry_until end"
    )
    until(lambda: letters(target, "resolved") == 1, "the daemon's retry")
    until(
        lambda: (
            target.value("select count(*) from bridge.dead_letter where state = 'open' and retry_at is null")
            == 1
        ),
        "the other one waits for a person",
    )
    until(
        lambda: 'outbox_bridge_dead_letters{pipeline="usage-limit-hits"} 1.0' in running.get("/metrics")[1],
        "the gauge",
    )
    assert target.value("select csm from events.usage_limits") == "ada"
    assert target.value("select count(*) from rig.effects") == 1


def test_a_retry_that_fails_names_the_column_as_the_stream_does(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    target.execute("alter table events.usage_limits alter column plan type varchar(3)")
    bridge()
    emit(source, usage(plan="canary"))
    until(lambda: letters(target) == 1, "a letter")
    [before] = world.json("dead", "list")
    said = world.command("dead", "retry", "--all", code=1)
    assert before["cause"].startswith("column plan: ")
    assert before["cause"] in said
    assert "canary" not in said


def test_a_message_that_its_receiver_refused_is_sent_again_with_the_same_id(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    receiver = Receiver()
    try:
        receiver.replies = [Reply(400)]
        world.text = world.text.replace(
            "connections:", f'connections:\n  csm: {{ type: slack, webhook_url: "{receiver.url}/slack" }}', 1
        ).replace(
            "    destinations:",
            '    destinations:\n      nudge: { connection: csm, text: "{{ event.customer_id }}" }',
            1,
        )
        bridge()
        emit(source, usage())
        until(lambda: letters(target) == 1, "the letter of the message")
        [group] = world.json("dead", "list")
        assert (group["destination"], group["letters"]) == ("nudge", 1)
        assert '"text": "cus_1"' in world.command("dead", "show", group["ids"][0])
        assert world.json("dead", "retry", "--all")["letters"][0]["result"] == "sent"
        first, second = receiver.wait(2)
        assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
        until(lambda: target.value("select state from bridge.delivery") == "sent", "it is sent")
        assert (letters(target), rows(target)) == (0, 1)
        until(lambda: "sink nudge:" in world.command("status"), "status counts it")
    finally:
        receiver.close()


def test_what_was_discarded_comes_back_after_its_event_is_pruned(
    world: World, refused: BridgeProcess, source: Database, target: Database
) -> None:
    """A dead letter has its event: pruning takes nothing of it."""
    [group] = world.json("dead", "list")
    assert "3 discarded" in world.command("dead", "discard", "--all")
    source.execute("update outbox.event set occurred_at = now() - interval '9 days'")
    left = "select count(*) from outbox.event where payload ->> 'used' in ('5000', '6000')"

    def pruned() -> bool:
        emit(source, usage(used=1))  # the floor rises with events
        world.command("prune")
        return source.value(left) == 0

    until(pruned, "the events are pruned", 10)
    assert "3 restored" in world.command("dead", "restore", *group["ids"])
    target.execute(_ANY)
    assert "3  applied" in world.command("dead", "retry", "--all")
    assert "0 restored" in world.command("dead", "restore", "--all")
