"""A bridge that stands by takes the stream as soon as the other one's session has ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bridge.config.load import load
from bridge.observe.metrics import Metrics
from bridge.observe.state import Health, StreamState
from bridge.observe.watch import StreamWatch
from bridge.plans import stream_plans
from bridge.stream import sessions as module
from bridge.stream.planned import FailureGuard
from bridge.stream.worker import Worker
from tests.support.event_path import CONFIG
from tests.support.producers import Producer
from tests.support.servers import Database
from tests.support.world import until

pytestmark = pytest.mark.timeout(120)


@contextmanager
def running(source: Database, target: Database) -> Iterator[tuple[Worker, Callable[[], str]]]:
    """A stream's thread, and its phase."""
    environment = {**os.environ, "SOURCE_DSN": source.bridge_dsn, "WAREHOUSE_DSN": target.bridge_dsn}
    (spec,) = stream_plans(load(CONFIG, environment))
    state = StreamState(
        spec.stream, spec.connection, alive=lambda: True, max_retained_wal=spec.max_retained_wal
    )
    worker = Worker(spec, StreamWatch(Metrics(Health()), state), FailureGuard(), lambda: None)
    worker.start()
    try:
        yield worker, lambda: state.snapshot.phase
    finally:
        worker.stop()
        worker.thread.join(30)


def test_a_stand_by_takes_over_when_the_other_session_ends(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(source, target) as (first, first_phase):
        until(lambda: first_phase() == "streaming", "the first one streams")
        monkeypatch.setattr(module, "_STAND_BY_SECONDS", 600.0)
        with running(source, target) as (_, second_phase):
            until(lambda: second_phase() == "standby", "the second one stands by")
            first.stop()
            first.thread.join(30)
            until(lambda: second_phase() == "streaming", "the second one streams")
            with Producer(source.dsn) as producer:
                producer.transaction(1)
            rows = "select count(*) from events.usage_limits"
            until(lambda: target.execute(rows) == [(1,)], "its event arrives")
