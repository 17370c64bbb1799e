"""Named places where a test makes the bridge die, fail or hang.

They are off, and cost nothing, unless a test's environment variable is set. Configuration cannot switch them on.
When on, they print a warning.

`BRIDGE_FAILPOINTS="apply.sent=kill@3;settle.durable=raise"`: SIGKILL at the third pass of the one, an exception at
the first pass of the other. Actions: kill, raise, hang (forever), sleep:SECONDS. `@n`: only at the n-th pass; `@n+`:
from the n-th pass on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

POINTS = {
    "session.start": "a session begins",
    "session.fenced": "the epoch is ours, nothing else has changed",
    "session.judged": "preflight passed, its result is in the ledger",
    "registry.before": "before the source's registry is written",
    "registry.written": "after",
    "slot.before": "the slot's name is durable, the slot is not created yet",
    "slot.made": "the slot exists, its snapshot was read, neither is stored",
    "slot.dropped": "the old slot is gone",
    "ledger.before": "before a transaction that changes only the ledger",
    "ledger.saved": "after it is durable",
    "stream.opening": "before START_REPLICATION",
    "stream.opened": "after it",
    "stream.received": "a batch was taken from the stream",
    "plan.before": "before a batch is planned",
    "plan.lookup": "before an enrichment's lookup",
    "entity.written": "a batch's entities are written to the source, the target has not received the batch",
    "plan.done": "a batch is planned and encoded",
    "publish.before": "before a batch's messages are sent to NATS",
    "publish.settled": "all of them are acknowledged, the target has not received the batch",
    "apply.before": "before a batch is sent to the target",
    "apply.sent": "it was sent, the answer has not arrived",
    "apply.chunk": "a chunk of a huge transaction is in, the transaction is open",
    "settle.refused": "the target refused the batch; before it is retried or bisected",
    "bisect.unit": "a unit failed alone and becomes a dead letter",
    "bisect.commit": "before the commit of a bisected batch",
    "settle.durable": "the commit's answer has arrived, nothing is confirmed yet",
    "observe.before": "before the source is observed",
    "observe.done": "after",
    "confirm.before": "before the slot is confirmed",
    "confirm.sent": "after",
    "missing.read": "rows of a catch-up or poll were read",
    "repartition.fenced": "the old partitions are fenced, no barrier is taken",
    "repartition.brought": "a partition stands at the barrier",
    "repartition.registered": "the source knows the new partitions, the target does not",
    "repartition.divided": "the target has the new partitions, the source still knows the old ones",
    "repartition.forgotten": "the source has forgotten the old ones",
    "relay.before_saved": "a relay's row at the source is about to be written",
    "relay.saved": "after",
    "relay.tails": "a relay knows where its frames end, its slot is not read yet",
    "relay.publish": "before a frame is put into the log",
    "relay.published": "the log has confirmed a frame",
    "log.taken": "a frame of the log was taken by a stream",
    "poll.wait": "polling found nothing and waits",
    "dead.retry": "a dead letter was applied again, its transaction is open",
    "deliver.claimed": "a message is leased, nothing is sent",
    "deliver.sent": "the sink has answered, the delivery is not settled",
    "replay.batch": "a batch of a replay was written, its transaction is open",
    "prune.batch": "a batch of rows was deleted, its transaction is open",
    "decommission.source": "the source has forgotten the stream, the target's transaction is open",
    "decommission.relay": "the relay of the last partitions is forgotten, its slot is not dropped",
    "decommission.target": "the target has forgotten it too, its slots are not dropped",
    "rename.copied": "the slot is copied under the new name, nothing else is durable",
    "rename.source": "the source has the new name, the target's transaction is open",
    "rename.target": "the target has the new name too, the old slot is not dropped",
}
"""Every failpoint and where it is. A test hits each one."""

VARIABLE = "BRIDGE_FAILPOINTS"
_ACTS = ("kill", "raise", "hang")


class FailpointRaised(Exception):
    """A test made this failpoint fail."""


class _Armed:
    def __init__(self, act: str, count: int, on: bool) -> None:
        self.act = act
        self.count = count
        self.on = on  # and at every later pass
        self.passed = 0


def _parse(text: str) -> dict[str, _Armed]:
    armed = {}
    for item in filter(None, text.split(";")):
        name, _, act = item.partition("=")
        if name not in POINTS:
            raise ValueError(f"{VARIABLE}: no failpoint {name!r}")
        act, _, count = act.partition("@")
        if act not in _ACTS and not act.startswith("sleep:"):
            raise ValueError(f"{VARIABLE}: no action {act!r}")
        armed[name] = _Armed(act, int(count.rstrip("+") or 1), count.endswith("+"))
    if armed:
        sys.stderr.write(f"bridge: FAILPOINTS ARE ON: {text}\n")
    return armed


_armed = _parse(os.environ.get(VARIABLE, ""))


def _pass(name: str) -> None:
    point = _armed.get(name)
    if point is None:
        return
    point.passed += 1
    if point.passed != point.count and not (point.on and point.passed > point.count):
        return
    sys.stderr.write(f"bridge: failpoint {name}: {point.act}\n")
    sys.stderr.flush()
    if point.act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.act == "hang":
        threading.Event().wait()
    elif point.act.startswith("sleep:"):
        time.sleep(float(point.act.partition(":")[2]))
    else:
        raise FailpointRaised(name)


_OFF: dict[str, None] = {}

hit: Callable[[str], object]
"""Pass the point of this name. Off, it is a look into an empty dictionary: no frame of ours on the hot path."""
hit = _pass if _armed else _OFF.get
