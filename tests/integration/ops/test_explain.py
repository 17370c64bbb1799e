"""bridge explain, tail and top: what a person sees of events that are on their way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from bridge.cli.explain import delivery_lines
from bridge.dispatch.schedule import LaneSpec
from bridge.operate.waits import Waits, clock
from bridge.postgres.progress import deliveries
from bridge.sinks.model import SINKS
from tests.integration.ops.conftest import emit, letters, rows, usage
from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database
from tests.support.world import World, until

Start = Callable[[], BridgeProcess]

_BRANCHES = """steps:
      - filter: $event.used > 0
      - set: { ratio: $event.used / $event.limit }"""
_TO = """branches:
      - { name: blocked, when: "$event.used >= $event.limit", to: [events] }
      - { name: close, when: "$ratio >= 0.9", to: [events] }
      - { name: rest, to: [] }
    destinations:"""


def test_explain_tells_the_way_of_an_event_with_the_values_it_saw(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    world.text = world.text.replace("steps:", _BRANCHES).replace("destinations:", _TO)
    [waiting] = emit(source, usage())
    assert "not applied yet" in world.command("explain", waiting)
    bridge()
    filtered, nowhere, broken = emit(source, usage(used=0), usage(used=1), usage(plan=7))
    until(lambda: rows(target) == 1 and letters(target) == 1, "a row and a letter")
    said = world.command("explain", waiting)
    for line in (
        "filter: $event.used > 0",
        "$event.used is 9",
        '-> {"ratio": 0.9}',
        "branch blocked: $event.used >= $event.limit",
        "-> false",
        "branch close: $ratio >= 0.9",
        "goes to events",
        'mrr = "10.50"',
        "its transaction is applied",
    ):
        assert line in said, f"{line!r} is not in\n{said}"
    assert "filtered out" in world.command("explain", filtered)
    assert "branch rest has no destination" in world.command("explain", nowhere)
    [stream] = world.json("explain", broken)["streams"]
    [pipeline] = stream["pipelines"]
    assert pipeline["ended"].startswith('dead letter, contract: field "plan"')
    assert pipeline["destinations"]["events"]["dead_letter"]["state"] == "open"
    ran = world.run("explain", "00000000-0000-7000-8000-000000000000")
    assert ran.returncode == 1
    assert "pruned" in ran.stderr


def test_explain_shows_the_row_that_an_enrichment_finds(world: World, source: Database) -> None:
    [known] = emit(source, usage())
    [unknown] = emit(source, usage(customer_id="nobody"))
    assert '"csm": "grace"' in world.command("explain", known)
    assert '-> "no row"' in world.command("explain", unknown)


def test_tail_prints_what_became_of_each_event_and_no_values_unasked(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    bridge()
    good, bad = emit(source, usage(note="canary"), usage(plan=7), key="cus_1")
    until(lambda: rows(target) == 1 and letters(target) == 1, "a row and a letter")
    said = world.command("tail", "--no-follow").splitlines()
    assert [line.split()[2] for line in said] == [good, bad]
    assert "key cus_1  applied" in said[0]
    assert said[1].endswith("applied, usage-limit-hits -> events: dead letter open (contract)")
    assert "canary" not in "".join(said)
    assert "canary" in world.command("tail", "usage-limit-hits", "--no-follow", "--values", "--last", "2")
    assert world.command("tail", "--no-follow", "-n", "1").split()[2] == bad
    ran = world.run("tail", "usage")
    assert ran.returncode == 2
    assert "usage-limit-hits" in ran.stderr
    source.execute("revoke select on outbox.event from outbox_bridge")
    ran = world.run("tail", "--no-follow")
    assert ran.returncode == 1
    assert "the source refused `bridge tail`: permission denied for table event" in ran.stderr


def test_tail_follows_until_it_is_interrupted(world: World, source: Database, target: Database) -> None:
    environment = {
        "SOURCE_DSN": source.bridge_dsn,
        "WAREHOUSE_DSN": target.bridge_dsn,
        "PYTHONPATH": ":".join(sys.path),
    }
    following = subprocess.Popen(
        [sys.executable, "-u", "-m", "bridge", "tail", "-c", str(world.config)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # a shell starts what it puts in the background with SIGINT ignored, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no threads here
    )
    with following:
        assert following.stdout is not None
        [event] = emit(source, usage())
        line = following.stdout.readline()
        following.send_signal(signal.SIGINT)
    assert event in line
    assert "waiting" in line
    assert following.returncode == 0


def test_top_prints_one_screen_where_there_is_no_terminal(
    world: World, bridge: Start, source: Database, target: Database
) -> None:
    assert "not ready" in world.command("top")
    bridge()
    emit(source, usage())
    until(lambda: rows(target) == 1, "a row")
    said = world.command("top")
    assert said.startswith("ready")
    assert "usage-limit-hits" in said


def test_explain_tells_what_a_message_waits_for(target: Database) -> None:
    target.execute(
        "insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, event_key,"
        " body, state, attempts, next_attempt_at, last_error)"
        " select ('00000000-0000-7000-8000-00000000000' || n)::uuid, 's', 'p', 'nudge',"
        " n::text, n, 't', 'cus_1', '{}', case n when 1 then 'sent' else 'pending' end,"
        " 3 - n, '2027-03-01 09:00+00', case n when 2 then 'http_503' end from generate_series(1, 3) n"
    )
    ids = [f"00000000-0000-7000-8000-00000000000{n}" for n in (1, 2, 3)]
    with target.connect() as connection:
        sink = SINKS["webhook"](type="webhook", url="https://example.com", secret="whsec_" + "A" * 32)
        found = deliveries(connection, ids)
        waits = Waits(connection, "s", {("p", "nudge"): LaneSpec("p", "nudge", "c", sink)}, {})
    told = [
        {**row, "waits": waits.why(row) if row["state"] == "pending" else None}
        for row in (found[one] for one in ids)
    ]
    due = clock(datetime(2027, 3, 1, 9, tzinfo=UTC).timestamp())
    assert [delivery_lines(one)[0] for one in told] == [
        "delivery sent after 2 attempts",
        f"delivery pending after 1 attempt, waits: it is tried again at {due}, after http_503",
        "delivery pending after 0 attempts, waits: it is behind an earlier message of its key",
    ]
