"""`bridge sink list`: what waits. It prints no values of events but ids, types and keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich_click as click

from bridge.cli.options import config_option, of_source, read_config
from bridge.cli.sink_search import searches, selection
from bridge.operate.queue import listed

_SHOWN = 20


@click.command("list")
@config_option
@searches
@click.option(
    "--state",
    type=click.Choice(["pending", "sent", "dead", "discarded"]),
    default="pending",
    show_default=True,
    help="Those in this state.",
)
@click.option(
    "-n", "--limit", default=_SHOWN, show_default=True, type=click.IntRange(1), help="At most so many."
)
def list_sink(config_path: Path, *, as_json: bool, state: str, limit: int, **given: Any) -> None:
    """List messages: what waits, for what, and until when.

    First how many by destination and last answer, then the oldest of them. --json has the answer to each attempt.
    """
    from functools import partial  # noqa: PLC0415

    from bridge.cli.running import status_of  # noqa: PLC0415

    config = read_config(config_path)
    told = listed(config, selection(given, state), limit, partial(status_of, config))
    if as_json:
        click.echo(json.dumps({"groups": told.groups, "messages": told.rows}, default=str, indent=2))
        return
    for line in _lines(told.groups, told.rows, state, several=told.several):
        click.echo(line)


def _lines(
    groups: list[dict[str, Any]], rows: list[dict[str, Any]], state: str, *, several: bool
) -> Iterator[str]:
    def place(row: dict[str, Any]) -> str:
        return f"{of_source(row['source'] if several else '')}{row['pipeline']}/{row['destination']}"

    if not rows:
        yield "no message waits" if state == "pending" else f"no message is {state}"
    for one in groups:
        after = f"after {one['code']}" if one["code"] else "without an answer yet"
        yield (f"{one['messages']:>6}  {place(one)}  {after}, the oldest for {one['oldest_seconds']:.0f} s")
    if rows and groups:
        yield ""
    for row in rows:
        key = f"  key {row['event_key']}" if row["event_key"] is not None else ""
        yield f"{row['id']}  {place(row)}  {row['event_type']}  event {row['event_id']}{key}"
        attempts = f"{row['attempts']} attempt{'' if row['attempts'] == 1 else 's'}"
        yield f"        {row['waits'] or row['state']}; {attempts}, written {row['created_at']:%Y-%m-%d %H:%M:%S%z}"
        for entry in row["history"] or ():
            yield f"        {history_line(entry)}"


def history_line(entry: dict[str, Any]) -> str:
    """An answer, or what a person did."""
    at = str(entry.get("at", ""))[:19].replace("T", " ")
    if "did" in entry:
        why = f": {entry['reason']}" if entry.get("reason") else ""
        return f"{at}  {entry['did']} by {entry.get('by', '')}{why}"
    return f"{at}  {entry.get('said', '')}"
