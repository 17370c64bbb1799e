"""`bridge top`: `bridge status` as a live screen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.options import config_option, read_config
from bridge.cli.status import left_alone, state_of

if TYPE_CHECKING:
    from rich.console import Group


@click.command(panel="Run and watch")
@config_option
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.2, 60), help="Seconds.")
def top(config_path: Path, interval: float) -> None:
    """Show streams and pipelines live, until Ctrl-C. If the output is not a terminal, print once."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    config = read_config(config_path)
    console = Console()
    if not console.is_terminal:
        console.print(screen(state_of(config)))
        return
    with Live(screen(state_of(config)), console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                live.update(screen(state_of(config)), refresh=True)
        except KeyboardInterrupt:
            return


def screen(state: dict[str, Any]) -> Group:
    """The state as tables."""
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from bridge.observe.unmatched import lines as unmatched_lines  # noqa: PLC0415

    ready = state["ready"]
    head = Text("ready" if ready else "not ready", style="bold green" if ready else "bold red")
    problems = [
        Text(f"{one['where']}: {one['reason']}  {one['message']}\n  fix: {one['hint']}", style="red")
        for one in state["problems"]
    ]
    several = len({one["source"] for one in state["streams"]}) > 1
    streams = Table(
        "stream",
        *(["source"] if several else []),
        "phase",
        "applied",
        "events/s",
        "waits",
        "WAL held",
        "epoch",
        box=None,
        pad_edge=False,
    )
    for one in state["streams"]:
        held = one["slot"].get("retained_wal_bytes")
        waits, pending = one["oldest_pending_event_age_seconds"], one["pending_events"]
        streams.add_row(
            one["stream"],
            *([one["source"]] if several else []),
            one["phase"],
            one["applied_lsn"],
            "" if one["events_per_second"] is None else f"{one['events_per_second']:.0f}",
            f"{waits:.1f} s" if waits is not None else f"{'?' if pending is None else pending} events",
            "" if held is None else f"{held >> 20} MiB",
            str(one["epoch"]),
        )
    pipelines = Table(
        "pipeline", "applied", "dead", "filtered", "p50", "p99", "open letters", box=None, pad_edge=False
    )
    for one in state["pipelines"]:
        events = one.get("events", {})
        pipelines.add_row(
            one["pipeline"] or "(no pipeline)",
            *(str(events.get(outcome, 0)) for outcome in ("applied", "dead", "filtered")),
            _milliseconds(one.get("latency_p50_seconds")),
            _milliseconds(one.get("latency_p99_seconds")),
            str(one["dead_letters"]),
        )
        for source, of in state.get("by_source", {}).items():
            events = of["events"].get(one["pipeline"], {})
            pipelines.add_row(
                f"  source {source}",
                *(str(events.get(outcome, 0)) for outcome in ("applied", "dead", "filtered")),
                "",
                "",
                str(of["dead_letters"].get(one["pipeline"], 0)),
            )
    sinks = Table("sink", "sent", "retries", "dead", "wait", "oldest", "why", box=None, pad_edge=False)
    sent, waiting = state.get("deliveries", {}), state.get("waiting_deliveries", {})
    for name in sorted(sent.keys() | waiting.keys()):
        alone = [one for one in state.get("left_alone", ()) if one["destination"] == name]
        why = "; ".join(left_alone(one, several=several) for one in alone)
        sinks.add_row(name, *_messages(name, sent, waiting), why)
        for source, of in state.get("by_source", {}).items():
            sinks.add_row(f"  source {source}", *_messages(name, of["deliveries"], of["waiting_deliveries"]))
    parts = [streams, pipelines, *([sinks] if sinks.row_count else [])]
    stranded = [
        Text(f"left behind: {one['message']}\n  fix: {one['fix']}", style="red")
        for one in state.get("left_behind", ())
    ]
    stray = [Text(line, style="yellow") for line in unmatched_lines(state.get("unmatched"))]
    return Group(head, *problems, *stranded, *(each for part in parts for each in (Text(""), part)), *stray)


def _messages(destination: str, sent: dict[str, Any], waiting: dict[str, Any]) -> list[str]:
    counts, at = sent.get(destination, {}), waiting.get(destination)
    return [
        *(str(counts.get(outcome, 0)) for outcome in ("sent", "retry", "dead")),
        str(at["messages"]) if at else "0",
        f"{at['oldest_seconds']:.0f} s" if at else "",
    ]


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f} ms"
