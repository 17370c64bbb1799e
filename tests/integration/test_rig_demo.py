"""The demo's verdict can be no. Here its bridge is replaced by a faithful copy in SQL, so that what is
tested is the world, the producers and the checker."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
import yaml

from bridge.demo.checker import check
from bridge.demo.process import CONFIG, Bridge
from bridge.demo.report import figures, html, sentence
from bridge.demo.story import KILLS, OVER, REQUESTS, Outcome, Story, Tamper
from bridge.demo.world import WITH_SLACK, Slack, World

_TRUTH = """
select t.event_id, t.payload->>'customer_id', t.payload->>'metric', (t.payload->>'limit')::numeric,
    (t.payload->>'used')::numeric, t.payload->>'plan', c.mrr, c.csm, c.renewal, t.payload::text
from demo.truth t join crm.customer c on c.customer_id = t.payload->>'customer_id'
where not t.event_id = any(%s)
"""
_INSERT = """
insert into events.usage_limits
    (event_id, customer_id, metric, "limit", used, plan, mrr, csm, renewal, payload)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


class CopyingBridge(Bridge):
    """Reads the truth itself; stopping and killing it are the same."""

    def __init__(self, world: World, slack: Slack) -> None:
        super().__init__({}, world.workspace.root / "copy.log")
        self._world = world
        self._slack = slack
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, **environment: str) -> CopyingBridge:
        self._stop.clear()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()
        return self

    def wait_ready(self, deadline: float = 30.0) -> CopyingBridge:
        return self

    def kill(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def terminate(self, deadline: float = 30.0) -> int:
        self.kill()
        return 0

    def _copy(self) -> None:
        with (
            psycopg.connect(self._world.source_dsn, autocommit=True) as source,
            psycopg.connect(self._world.target_dsn) as target,
        ):
            while not self._stop.wait(0.01):
                done = [row[0] for row in target.execute("select event_id from events.usage_limits")]
                rows = source.execute(_TRUTH, [done]).fetchall()
                target.cursor().executemany(_INSERT, rows)
                target.commit()
                for event_id, *_, limit, used, _, _, csm, _, _ in rows:
                    if used >= 2 * limit:
                        self._tell(str(event_id), csm)

    def _tell(self, event_id: str, csm: str) -> None:
        slack = self._slack
        request = urllib.request.Request(
            f"{slack.api_url}/chat.postMessage",
            json.dumps({"channel": csm, "text": f"event {event_id}"}).encode(),
            {"authorization": f"Bearer {slack.token}", "idempotency-key": event_id},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer) == {"ok": True}


@pytest.fixture(scope="module")
def demo_world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture(scope="module")
def slack() -> Iterator[Slack]:
    with Slack() as made:
        yield made


@pytest.fixture(scope="module")
def story(demo_world: World, slack: Slack) -> Story:
    return Story(demo_world, slack, CopyingBridge(demo_world, slack), 1200)


@pytest.fixture(scope="module")
def outcome(story: Story) -> Outcome:
    return story.run()


@pytest.mark.slow
def test_a_faithful_bridge_loses_and_doubles_nothing(outcome: Outcome) -> None:
    assert outcome.verdict.holds, outcome.verdict.examples
    assert outcome.verdict.events == outcome.verdict.rows >= 1200
    assert len(outcome.kills) == KILLS
    assert outcome.rolled_back > 0
    assert outcome.repeated > len(OVER) * REQUESTS
    assert outcome.slack == replace(
        outcome.slack, expected=len(OVER), missing=0, messages=len(OVER), again=0, channels=4
    )
    assert 0 < outcome.verdict.percentile(50, "steady") < 60
    assert sentence(outcome) == "lost 0  duplicates 0"
    assert outcome.sample["csm"] in html(outcome)


@pytest.mark.parametrize(
    ("tamper", "kind"), [("lose", "lost"), ("double", "duplicates"), ("alter", "altered")]
)
def test_one_tampered_row_turns_the_verdict(
    demo_world: World, story: Story, outcome: Outcome, tamper: Tamper, kind: str
) -> None:
    with psycopg.connect(demo_world.target_dsn) as story._warehouse:
        story._tamper(tamper)
        story._warehouse.commit()
        verdict = check(demo_world.source_dsn, demo_world.target_dsn)
    assert getattr(verdict, kind) == 1
    assert not verdict.holds
    assert any(example.startswith(kind) for example in verdict.examples)


def test_a_backlog_that_came_in_one_commit_is_given_no_rate(outcome: Outcome) -> None:
    once = replace(outcome, verdict=replace(outcome.verdict, span={"backlog": (1.0, 1.0)}))
    assert dict(figures(once))["throughput"] == f"{outcome.backlog:,} drained in one commit"


def test_a_missing_message_turns_the_verdict_and_a_repeated_one_does_not(
    outcome: Outcome,
) -> None:
    assert outcome.holds
    assert not replace(outcome, slack=replace(outcome.slack, missing=1)).holds
    assert replace(outcome, slack=replace(outcome.slack, again=1)).holds


def test_the_demos_slack_tells_missing_messages_from_repeated_ones() -> None:
    with Slack() as slack:
        said = b'{"channel": "ada", "text": "event one"}'
        for _ in range(2):
            assert slack.answer(
                "/api/chat.postMessage", f"Bearer {slack.token}", said, {"idempotency-key": "a"}
            ) == {"ok": True}
        assert slack.answer("/api/chat.postMessage", "Bearer another", said, {}) == {
            "ok": False,
            "error": "invalid_auth",
        }
        found = slack.delivered(["one", "two"])
        assert (found.expected, found.missing, found.messages, found.again) == (2, 1, 2, 1)


def test_the_demo_runs_what_is_measured_and_a_slack_beside_it() -> None:
    measured = yaml.safe_load(CONFIG.read_text())
    shown = yaml.safe_load(WITH_SLACK.read_text())
    del shown["connections"]["team"]
    pipeline = shown["pipelines"]["usage-limit-hits"]
    del pipeline["destinations"]["owner"]
    assert all("events" in branch["to"] for branch in pipeline.pop("branches"))
    assert shown == measured


def test_the_bridge_of_the_demo_may_create_nothing_on_its_target(demo_world: World) -> None:
    with (
        psycopg.connect(demo_world.bridge_environment["WAREHOUSE_DSN"]) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("create table events.t ()")
