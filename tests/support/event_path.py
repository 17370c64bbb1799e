"""Which files of bridge/ one committed event passes, from the slot's bytes to the durable commit.

A worker runs in this process against real servers, under a profile function: every call into bridge/ is noted from
the moment the event's bytes reach the decoder until its batch is settled.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

import bridge
from bridge.config.load import load
from bridge.observe.metrics import Metrics
from bridge.observe.state import Health, StreamState
from bridge.observe.watch import StreamWatch
from bridge.plans import stream_plans
from bridge.stream.planned import FailureGuard
from bridge.stream.worker import Worker
from tests.support.producers import Producer

PACKAGE = Path(bridge.__file__).parent
CONFIG = PACKAGE / "demo" / "bridge.yaml"
_QUESTION = "_query"
"""Of Enricher: what a server is asked, where the cache has no row. The table of the path says that it is left out."""
_INSERT = 0x49
_TAG = 25  # of the message inside an XLogData: its header has so many bytes
_SECONDS = 30.0


@dataclass(slots=True)
class EventPath:
    """What one event passed. modules: in the order of the first call. changes: calls into another file than the call
    before, of the same thread. depth: frames of bridge/ at most."""

    modules: list[str] = field(default_factory=list)
    changes: int = 0
    depth: int = 0

    @property
    def lines(self) -> int:
        """Of all those modules together."""
        return sum(len((PACKAGE / name).read_text().splitlines()) for name in self.modules)


class _Recorder:
    """A profile function. It begins when the decoder is fed an insert and ends when the batch is settled."""

    def __init__(self) -> None:
        self.path = EventPath()
        self.armed = False
        self.done = threading.Event()
        self._recording = False
        self._asking = False
        self._last: dict[int, str] = {}
        self._names: dict[str, str] = {}  # a code's file -> its name below bridge/, "" of anything else

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if not self.armed or event not in ("call", "return"):
            return
        code = frame.f_code
        name = self._name(code.co_filename)
        if not name:
            return
        if not self._recording:
            messages = frame.f_locals.get("messages", ()) if code.co_name == "feed" else ()
            self._recording = any(len(each) > _TAG and each[_TAG] == _INSERT for each in messages)
            if not self._recording:
                return
            if frame.f_back is not None and (reader := self._name(frame.f_back.f_code.co_filename)):
                self._call(reader, frame.f_back)  # who read its bytes
        if code.co_name == _QUESTION:
            self._asking = event == "call"
        if event == "call":
            if not self._asking:
                self._call(name, frame)
        elif code.co_name == "settle" and name == "stream/engine.py":
            self.armed = False
            self.done.set()

    def _name(self, file: str) -> str:
        if file not in self._names:
            path = Path(file)
            self._names[file] = str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else ""
        return self._names[file]

    def _call(self, name: str, frame: FrameType) -> None:
        path, thread = self.path, threading.get_ident()
        if name not in path.modules:
            path.modules.append(name)
        depth, at = 0, frame
        while at is not None:
            depth += bool(self._name(at.f_code.co_filename))
            at = at.f_back  # type: ignore[assignment]  # None ends it
        path.depth = max(path.depth, depth)
        path.changes += self._last.get(thread, name) != name
        self._last[thread] = name


def trace_event(source_dsn: str, target_dsn: str, producer_dsn: str) -> EventPath:
    """Run a worker, let it deliver two events, and trace the third."""
    environment = {**os.environ, "SOURCE_DSN": source_dsn, "WAREHOUSE_DSN": target_dsn}
    (spec,) = stream_plans(load(CONFIG, environment))
    state = StreamState(
        spec.stream, spec.connection, alive=lambda: True, max_retained_wal=spec.max_retained_wal
    )
    worker = Worker(spec, StreamWatch(Metrics(Health()), state), FailureGuard(), lambda: None)
    recorder = _Recorder()
    threading.setprofile(recorder)
    try:
        worker.start()
    finally:
        threading.setprofile(None)
    try:
        with Producer(producer_dsn) as producer:
            for count in (1, 2):
                producer.transaction(1)
                _until(lambda count=count: _rows(target_dsn) == count)  # type: ignore[misc]
            _until(lambda: state.snapshot.pending_since is None)
            recorder.armed = True
            producer.transaction(1)
            assert recorder.done.wait(_SECONDS), "the event was not settled"
    finally:
        worker.stop()
        worker.thread.join(_SECONDS)
    return recorder.path


def _rows(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        (count,) = connection.execute("select count(*) from events.usage_limits").fetchone() or (0,)
    return int(count)


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < end, "nothing arrives"
        time.sleep(0.02)
