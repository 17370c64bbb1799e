"""`bridge tail`: the newest events and their outcome, one line each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bridge.cli.options import config_option, read_config

if TYPE_CHECKING:
    import psycopg

    from bridge.protocol.events import Event
    from bridge.stream.spec import StreamSpec

_WINDOW = 500  # newest events looked at each time
_SECONDS = 0.5


@click.command()
@config_option
@click.option("-n", "--last", default=10, show_default=True, help="Begin with the last N events.")
@click.option("--values", is_flag=True, help="Print payloads too.")
@click.option("--no-follow", is_flag=True, help="Print those and exit.")
@click.argument("pipeline", required=False, metavar="[PIPELINE]")
def tail(config_path: Path, last: int, values: bool, no_follow: bool, pipeline: str | None) -> None:
    """Print events as they arrive, with the outcome of each: applied, waiting, dead. Until Ctrl-C."""
    from bridge.cli.connect import connect_ledger, connect_source, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.errors import ConfigError  # noqa: PLC0415
    from bridge.plans import stream_plans  # noqa: PLC0415

    config = read_config(config_path)
    plans = stream_plans(config)
    known = [spec.name for spec in plans[0].pipelines]
    if pipeline is not None and pipeline not in known:
        raise ConfigError(f"there is no pipeline {pipeline!r}", hint=f"one of: {', '.join(known)}")
    with ExitStack() as stack:
        source = stack.enter_context(connect_source(config, command="tail", grant="outbox_bridge"))
        stack.enter_context(target_errors("tail"))
        looking = Tail(plans, source, pipeline)
        for plan in plans:
            looking.targets[plan.stream] = stack.enter_context(connect_ledger(plan, "tail"))
        try:
            for event, fate in looking.news(last):
                click.echo(_line(event, fate, values=values))
            while not no_follow:
                time.sleep(_SECONDS)
                for event, fate in looking.news(_WINDOW):
                    click.echo(_line(event, fate, values=values))
        except KeyboardInterrupt:
            return


def _line(event: Event, fate: str, *, values: bool) -> str:
    at = (event.occurred_at or b"").decode()[:19]
    key = f" key {event.key.decode()}" if event.key is not None else ""
    payload = f"  {event.payload.decode()}" if values else ""
    return f"{at}  {event.id.decode()}  {event.type.decode()}{key}  {fate}{payload}"


class Tail:
    """Remembers what was printed for each event; `news` returns what is new or has changed."""

    def __init__(self, plans: list[StreamSpec], source: psycopg.Connection, pipeline: str | None) -> None:
        self.targets: dict[str, psycopg.Connection] = {}
        self._plans = plans
        self._source = source
        self._pipelines = [spec for spec in plans[0].pipelines if pipeline in (None, spec.name)]
        self._every = pipeline is None
        self._told: dict[bytes, str] = {}
        self._first = True

    def news(self, limit: int) -> Iterator[tuple[Event, str]]:
        """(event, outcome) of at most `limit` newest events."""
        from bridge.postgres.progress import newest  # noqa: PLC0415

        events = [one for one in newest(self._source, self._plans[0].outbox, _WINDOW) if self._wanted(one)]
        fates = self._fates(events)
        present = {event.id for event in events}
        self._told = {name: fate for name, fate in self._told.items() if name in present}
        begin = len(events) - limit if self._first else 0
        self._first = False
        for place, event in enumerate(events):
            fate = fates[event.id]
            if self._told.get(event.id) != fate:
                self._told[event.id] = fate
                if place >= begin:
                    yield event, fate

    def _wanted(self, event: Event) -> bool:
        kind = event.type.decode()
        return self._every or any(fnmatchcase(kind, one) for spec in self._pipelines for one in spec.events)

    def _fates(self, events: list[Event]) -> dict[bytes, str]:
        from bridge.planning.plan import unit_id  # noqa: PLC0415
        from bridge.postgres.progress import Applied, letters  # noqa: PLC0415

        words: dict[bytes, list[str]] = {event.id: [] for event in events}
        for plan in self._plans:
            target = self.targets[plan.stream]
            applied = Applied(target, plan.stream)
            units = {
                str(unit_id(event.id.decode(), spec.name, name)): (event, spec.name, name)
                for event in events
                for spec in self._pipelines
                for name in spec.destinations
            }
            dead = letters(target, list(units))
            for event in events:
                how = applied.how(event)
                words[event.id].append({"": "waiting", "unknown": "sent"}.get(how, "applied"))
            for unit, letter in dead.items():
                event, spec, name = units[unit]
                words[event.id].append(f"{spec} -> {name}: dead letter {letter['state']} ({letter['code']})")
        return {name: ", ".join(dict.fromkeys(said)) for name, said in words.items()}
