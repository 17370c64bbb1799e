"""Relays and partitions as text, for `bridge status` and `bridge scale status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

_WELL = ("streaming", "standby")


def relay_lines(relay: dict[str, Any]) -> Iterator[str]:
    """relay: of /status, with what is beside every stream's."""
    from bridge.cli.status import size  # noqa: PLC0415  it imports this

    told = relay["relay"]
    words = [relay["phase"]]
    if relay.get("events_per_second") is not None and told["frames"] is not None:
        words.append(f"{told['rows']} events in {told['frames']} frames")
    if told["log_bytes"] is not None:
        most = f" of {size(told['log_limit_bytes'])}" if told["log_limit_bytes"] else ""
        words.append(f"the log holds {size(told['log_bytes'])}{most}")
    yield f"relay {relay['stream']}: {', '.join(words)}"
    behind = {name: lag for name, lag in told["lag_bytes"].items() if lag}
    if behind:
        most_behind = max(behind, key=lambda name: behind[name])
        yield f"  furthest behind: {most_behind}, by {size(behind[most_behind])} of WAL"
    elsewhere = sorted(name for name, lag in told["lag_bytes"].items() if lag is None)
    if elsewhere:
        yield f"  read the table, and are not waited for: {', '.join(elsewhere)}"


def partition_lines(group: str, partitions: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The partitions of one target: together, and each that does not work."""
    phases = Counter(one["phase"] for one in partitions)
    said = ", ".join(f"{count} {phase}" for phase, count in phases.most_common())
    words = [f"{len(partitions)} partitions over the log, {said}"]
    waiting = [one["pending_events"] for one in partitions if one.get("pending_events") is not None]
    if waiting:
        words.append(f"{sum(waiting)} events wait")
    ages = [one.get("oldest_pending_event_age_seconds") for one in partitions]
    known = [age for age in ages if age is not None]
    if known:
        words.append(f"oldest event waits {max(known):.1f} s" if max(known) else "nothing waits")
    rates = [one["events_per_second"] for one in partitions if one.get("events_per_second") is not None]
    if rates:
        words.append(f"{sum(rates):.0f} events/s")
    yield f"stream {group}: {', '.join(words)}"
    for one in partitions:
        odd = one["phase"] not in _WELL and len(phases) > 1
        if odd or one.get("reason") or one.get("altered") or one.get("waiting_for"):
            name = one["stream"].removeprefix(f"{group}.")
            more = [one["phase"], f"applied to {one['applied_lsn']}"]
            more += [one["reason"]] if one.get("reason") else []
            more += [one["waiting_for"]] if one.get("waiting_for") else []
            more += [f"altered while it ran: {one['altered']}"] if one.get("altered") else []
            yield f"  {name}: {', '.join(more)}"
