"""A minute at a time: what is kept, and what charts show of it. Jobs: one at a time, stopped at their next step."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bridge.console.desk import by_minute
from bridge.console.running_jobs import Job, Jobs
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.observe.samples import Plan, Sample, Sampler, headroom
from bridge.observe.state import Health, StreamState


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def sampled(clock: Clock) -> tuple[Sampler, StreamState, Metrics, list[Plan]]:
    metrics = Metrics(Health(clock=clock))
    stream = metrics.health.add(StreamState("s", "c", clock=clock))
    stream.enter("streaming")
    plan = cast(Plan, SimpleNamespace(stream="s", source="source", max_retained_wal=1 << 20))
    return Sampler(metrics), stream, metrics, [plan]


def test_a_minute_in_which_nothing_happened_is_not_kept() -> None:
    clock = Clock()
    sampler, stream, metrics, plans = sampled(clock)
    assert sampler.take(plans) == []
    stream.applied(5)
    metrics.count_events({("p", "applied"): 4, ("p", "filtered"): 1})
    assert sampler.take(plans) == []  # the minute is not over
    assert [one.events for one in sampler.present()] == [5]
    assert sampler.since("source")[0] == {"p": {"applied": 4, "filtered": 1}}
    clock.now += 60
    [one] = sampler.take(plans)
    assert (one.events, one.pipelines) == (5, {"p": {"applied": 4, "filtered": 1}})
    assert sampler.since("source")[0] == {}
    clock.now += 60
    assert sampler.take(plans) == []
    stream.update(pending_since=clock.now - 7)
    clock.now += 60
    assert [(one.events, one.lag) for one in sampler.take(plans)] == [(0, 67.0)]
    clock.now += 25 * 3600
    sampler.take(plans)
    assert all(one.at > clock.now - 24 * 3600 for one in sampler.kept)


def test_one_that_stands_by_or_begins_anew_counts_nothing_twice() -> None:
    clock = Clock()
    sampler, stream, metrics, plans = sampled(clock)
    stream.applied(5)
    assert [one.events for one in sampler.take(plans)] == [5]
    clock.now += 60
    metrics.health.add(StreamState("s", "c", clock=clock)).enter("streaming")  # a reload
    metrics.health.streams["s"].applied(2)
    assert [one.events for one in sampler.take(plans)] == [2]
    clock.now += 60
    metrics.health.streams["s"].enter("standby")
    metrics.health.streams["s"].applied(9)
    assert sampler.take(plans) == []


def test_headroom_is_the_nearer_of_both_limits() -> None:
    clock = Clock()
    _, stream, _, _ = sampled(clock)
    assert headroom(stream.snapshot, 100) is None
    stream.update(slot_retained_bytes=30, slot_safe_bytes=None)
    assert headroom(stream.snapshot, 100) == 70
    stream.update(slot_retained_bytes=30, slot_safe_bytes=20)
    assert headroom(stream.snapshot, 100) == 20
    stream.update(slot_retained_bytes=300, slot_safe_bytes=None)
    assert headroom(stream.snapshot, 100) == 0


def test_charts_have_every_minute_and_keep_the_headroom_between_samples() -> None:
    now = 600.0 * 60
    told = by_minute(
        [Sample("s", now - 120, 30, p99=0.5, headroom=7), Sample("t", now - 120, 30, p99=0.7)], now, 300
    )
    assert len({len(values) for values in told.values()}) == 1
    assert told["rate"] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert told["p99"] == [None, None, 0.7, None, None]
    assert told["headroom"] == [None, None, 7, 7, 7]


def test_a_job_is_stopped_at_its_next_step_and_another_waits_for_its_end() -> None:
    jobs = Jobs()
    step = threading.Event()

    def work(job: Job) -> tuple[str, Any, bool]:
        for number in range(1000):
            step.wait(5)
            job.tell(f"step {number}")
        return "never", None, True

    job = jobs.start("prove", "anna", "everything", work)
    with pytest.raises(BridgeError, match="another job runs"):
        jobs.start("replay", "anna", "x", work)
    job.stopping = True
    step.set()
    ended(job)
    assert (job.state, job.text) == ("stopped", "stopped while at: begins")
    assert jobs.find(job.number) is job
    with pytest.raises(BridgeError, match="there is no job 7"):
        jobs.find(7)


def test_what_a_job_raises_is_told_without_values() -> None:
    jobs = Jobs()

    def refused(_: Job) -> tuple[str, Any, bool]:
        raise BridgeError("not so", hint="do this")

    def broken(_: Job) -> tuple[str, Any, bool]:
        raise ValueError("cus_secret")

    first = jobs.start("prove", "anna", "x", refused)
    ended(first)
    assert (first.state, first.text, first.hint) == ("failed", "not so", "do this")
    second = jobs.start("prove", "anna", "x", broken)
    ended(second)
    assert (second.state, second.text) == ("failed", "a defect in the bridge: ValueError")


def ended(job: Job) -> None:
    until = time.monotonic() + 10
    while job.ended is None:
        assert time.monotonic() < until
        time.sleep(0.01)
