"""`bridge prove`: is every event where it should be? It only reads, and can run beside a running bridge.

For each target it reads in the order of expected.py: the target's snapshot with its ledger, then the source's. It
compares each table and sink as subject.py describes: counts and hashes by bucket, then only the buckets that differ.
Memory is bounded by the differences, the dead letters and the number of buckets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import psycopg

from bridge.errors import BridgeError
from bridge.postgres.catalog import HIDDEN, hides_rows
from bridge.postgres.connect import connect
from bridge.postgres.profiles import PROVE_SOURCE, PROVE_TARGET
from bridge.postgres.safe_error import safe_message
from bridge.postgres.stranded import find
from bridge.postgres.whose import another
from bridge.prove.by_event import compare_by_event
from bridge.prove.by_key import compare_by_key, compare_by_rows
from bridge.prove.census import take
from bridge.prove.digest import Link, Window
from bridge.prove.expected import (
    AppliedPosition,
    ExpectedEffects,
    Pruning,
    begin,
    begin_source,
    read_applied,
    read_pruning,
)
from bridge.prove.side import Comparison, Report, Sides, read_dead
from bridge.prove.subject import Subject, subjects
from bridge.stream.spec import StreamSpec

_BEGINNING = timedelta(minutes=1)
"""For a stream that started at `now`, the exact start is not recorded; events later than this after its start are
compared.
"""


@dataclass(frozen=True, slots=True)
class _Ground:
    """One stream's sessions in their snapshots, with the facts read first."""

    plan: StreamSpec
    source: Link
    target: Link
    cast: Link
    applied: AppliedPosition
    pruning: Pruning


def prove(
    plans: Sequence[StreamSpec],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    pipeline: str | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare every stream. Raises BridgeError if something cannot be compared. told: called with what is compared
    next; what it raises ends the comparison."""
    report = Report()
    for plan in plans:
        _stream(plan, Window(since, until), pipeline, report, told)
    if not report.comparisons:
        raise BridgeError("nothing to compare", reason="no_subject", hint="check the names with: bridge lint")
    return report


def _stream(
    plan: StreamSpec, window: Window, pipeline: str | None, report: Report, told: Callable[[str], None]
) -> None:
    if not plan.outbox.has_xid:
        raise BridgeError(
            "the outbox has no xid column, so it is unknown which of its rows are applied",
            reason="no_xid",
            hint="bridge doctor prints the two ALTERs that add it",
        )
    with (
        closing(connect(plan.target_dsn, PROVE_TARGET, plan.stream)) as target,
        closing(connect(plan.target_dsn, PROVE_TARGET, plan.stream)) as cast,
        closing(connect(plan.source_dsn, PROVE_SOURCE, plan.stream)) as source,
    ):
        try:
            if (halt := another(source, target, plan.stream)) is not None:
                raise halt
            begin(target)
            applied = read_applied(target, plan.rows)
            begin_source(source, applied)
            plan = replace(plan, outbox=plan.outbox.on(source))
            ground = _Ground(plan, source, target, cast, applied, read_pruning(source))
            told(f"the outbox of {plan.stream}")
            report.outboxes.append(take(source, cast, plan, applied))
            window = _window(ground, plan.retention, window, report)
            report.notes += [
                f"{one.pipeline}/{one.destination}: {one.messages} messages wait for a sink that the configuration "
                "does not have; bridge status has the command that moves them"
                for one in find(target, plan.stream, plan.sinks)
                if pipeline in (None, one.pipeline)
            ]
            for subject in subjects(plan, source, target, pipeline):
                told(subject.name)
                report.comparisons.append(_compare(ground, subject, window))
        except psycopg.Error as error:
            raise BridgeError(
                f"stream {plan.stream}: {safe_message(error)} (SQLSTATE {error.sqlstate})",
                reason="refused",
                hint=HIDDEN
                if hides_rows(error)
                else "prove reads outbox.event, the ledger and every table: grant select on them",
            ) from None


def _window(ground: _Ground, retention: timedelta, window: Window, report: Report) -> Window:
    """The requested period; by default since the last possible prune or the stream's own start."""
    plan, applied, pruning = ground.plan, ground.applied, ground.pruning
    if window.since is not None:
        return window
    since: datetime | None = None
    if pruning.at is not None:
        since = pruning.at - retention
        report.notes.append(
            f"{plan.stream}: older events were pruned; compared from {since:%Y-%m-%d %H:%M:%S%z}"
        )
    if plan.since == "infinity" and applied.started_at is not None:
        start = applied.started_at + _BEGINNING
    elif plan.since not in (None, "infinity"):
        start = datetime.fromisoformat(str(plan.since))
    else:
        return Window(since, window.until)
    report.notes.append(
        f"{plan.stream}: started late (source.start); compared from {start:%Y-%m-%d %H:%M:%S%z}"
    )
    return Window(max(start, since) if since else start, window.until)


def _compare(ground: _Ground, subject: Subject, window: Window) -> Comparison:
    plan = ground.plan
    began = time.monotonic()
    found = Comparison(subject.name, ["/".join(unit) for unit in subject.units], subject.by)
    found.left_out = list(subject.left_out)
    if subject.lacking:
        found.notes.append(
            f"not compared, because some events do not have such a field: {', '.join(subject.lacking)}"
        )
    if subject.unnamed:
        found.notes.append(
            f"not compared, because no recent event has such a field: {', '.join(subject.unnamed)}"
        )
    if subject.former:
        names = ", ".join("/".join(unit) for unit in subject.former)
        found.notes.append(
            f"with the messages of {names}, which the configuration no longer has: a former name"
        )
    dead = read_dead(ground.target, subject, window)
    found.dead_open = sum(dead.opened.values())
    found.dead_discarded = sorted(event for event, _ in dead.states if dead.discarded[event])
    expectation = ExpectedEffects(
        subject,
        plan.contracts,
        plan.outbox,
        applied=ground.applied,
        window=window,
        max_payload=plan.max_payload,
    )
    sides = Sides(
        source=ground.source,
        target=ground.target,
        cast=ground.cast,
        outbox=plan.outbox,
        applied=ground.applied,
        subject=subject,
        window=window,
        expectation=expectation,
        dead=dead,
        may_be_pruned=ground.pruning.at is not None,
    )
    {"event": compare_by_event, "key": compare_by_key, "rows": compare_by_rows}[subject.by](sides, found)
    if found.elsewhere:
        found.notes.append(
            f"{found.elsewhere} rows belong to no event of source {plan.source}: of another source, or unexpected. "
            "Map a column to $meta.source, and they are told apart"
        )
    found.seconds = round(time.monotonic() - began, 3)
    if found.lost.count and found.lost.count == found.expected - found.dead_open:
        found.notes.append("nothing has arrived here; if this destination was added later, use --since TIME")
    return found
