"""`bridge tail`: the newest events and their outcome, one line each."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bridge.cli.options import config_option, read_one, source_option

if TYPE_CHECKING:
    import psycopg

    from bridge.cli.waiting import Waiting
    from bridge.planning.pipeline import Pipeline
    from bridge.planning.taken import TypesTaken
    from bridge.protocol.events import Event
    from bridge.stream.spec import StreamSpec

_WINDOW = 500  # newest events looked at each time
_SECONDS = 0.5
_APPLIED = "applied"
_CLOCK = re.compile(r"\d\d:\d\d:\d\d")


@click.command(panel="Run and watch")
@config_option
@source_option
@click.option("-n", "--last", default=10, show_default=True, help="Begin with the last N events.")
@click.option("--values", is_flag=True, help="Print payloads too.")
@click.option("--no-follow", is_flag=True, help="Print those and exit.")
@click.argument("pipeline", required=False, metavar="[PIPELINE]")
def tail(config_path: Path, last: int, values: bool, no_follow: bool, pipeline: str | None) -> None:
    """Print events as they arrive, with the outcome of each. Until Ctrl-C.

    waiting; applied; no pipeline takes it; PIPELINE: filtered out, or the branch without destination that it took (by
    the current configuration); a dead letter.
    """
    from bridge.cli.waiting import Waiting  # noqa: PLC0415
    from bridge.operate.connect import connect_ledger, connect_source, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.operate.names import check_pipeline  # noqa: PLC0415
    from bridge.plans import stream_plans, types_taken  # noqa: PLC0415

    config = read_one(config_path)
    plans = stream_plans(config)
    check_pipeline(plans, pipeline)
    with ExitStack() as stack:
        source = stack.enter_context(connect_source(config, command="tail", grant="outbox_bridge"))
        stack.enter_context(target_errors("tail"))
        looking = stack.enter_context(closing(Tail(plans, types_taken(config), source, pipeline)))
        for plan in plans:
            looking.targets[plan.stream] = stack.enter_context(connect_ledger(plan, "tail"))
            looking.waiting[plan.stream] = Waiting(config, looking.targets[plan.stream], plan)
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
    from bridge.planning.taken import shown  # noqa: PLC0415  (loads psycopg)

    at = (event.occurred_at or b"").decode()[:19]
    key = f" key {shown(event.key.decode())}" if event.key is not None else ""
    payload = f"  {event.payload.decode()}" if values else ""
    return f"{at}  {event.id.decode()}  {shown(event.type.decode())}{key}  {fate}{payload}"


class Tail:
    """Remembers what was printed for each event; `news` returns what is new or has changed."""

    def __init__(
        self, plans: list[StreamSpec], taken: TypesTaken, source: psycopg.Connection, pipeline: str | None
    ) -> None:
        from bridge.planning.pipeline import Pipeline  # noqa: PLC0415
        from bridge.postgres.entities import Enricher  # noqa: PLC0415

        self.waiting: dict[str, Waiting] = {}
        self.targets: dict[str, psycopg.Connection] = {}
        self._plans = plans
        self._taken = taken
        self._source = source
        self._pipelines = [
            Pipeline(spec, {}, ()) for spec in plans[0].pipelines if pipeline in (None, spec.name)
        ]
        self._enricher = Enricher(plans[0].dsns, "tail")
        self._every = pipeline is None
        self._told: dict[bytes, str] = {}
        self._ends: dict[bytes, list[str]] = {}
        self._first = True

    def close(self) -> None:
        self._enricher.close()

    def news(self, limit: int) -> Iterator[tuple[Event, str]]:
        """(event, outcome) of at most `limit` newest events."""
        from bridge.operate.connect import source_errors  # noqa: PLC0415  (loads psycopg)
        from bridge.postgres.progress import newest  # noqa: PLC0415

        with source_errors(self._source, "tail", grant="outbox_bridge"):
            found = newest(self._source, self._plans[0].outbox, _WINDOW)
        events = [one for one in found if self._wanted(one)]
        fates = self._fates(events)
        present = {event.id for event in events}
        self._told = {name: fate for name, fate in self._told.items() if name in present}
        self._ends = {name: ends for name, ends in self._ends.items() if name in present}
        begin = len(events) - limit if self._first else 0
        self._first = False
        for place, event in enumerate(events):
            fate = ", ".join(fates[event.id])
            known = _CLOCK.sub("", fate)  # when it is tried again is no news
            if self._told.get(event.id) != known:
                self._told[event.id] = known
                if place >= begin:
                    yield event, ", ".join(dict.fromkeys(self._told_of(event, fates[event.id])))

    def _told_of(self, event: Event, words: list[str]) -> list[str]:
        """`applied` says that the target has committed the event's transaction; here, what came of the event."""
        kind = event.type.decode()
        if _APPLIED not in words:
            return words
        if not self._taken.takes(kind):
            dead = [word for word in words if word != _APPLIED]
            return dead or [self._taken.said(kind)]
        takers = [pipeline for pipeline in self._pipelines if pipeline.takes(kind)]
        if event.id not in self._ends:
            self._ends[event.id] = list(filter(None, (self._end(pipeline, event) for pipeline in takers)))
        ends = self._ends[event.id]
        return [
            *([] if len(ends) == len(takers) else [_APPLIED]),
            *ends,
            *(w for w in words if w != _APPLIED),
        ]

    def _end(self, pipeline: Pipeline, event: Event) -> str:
        """Where the event ends in a pipeline without reaching a destination; empty: it does not, or cannot be told."""
        from bridge.errors import BridgeError  # noqa: PLC0415
        from bridge.planning.contract import Contract  # noqa: PLC0415
        from bridge.planning.pipeline import trace  # noqa: PLC0415
        from bridge.planning.planner import answered  # noqa: PLC0415

        contract = self._plans[0].contracts.get(event.type.decode())
        try:
            found = answered(
                trace(pipeline, Contract(contract) if contract else None, event), self._enricher.answer
            )
        except BridgeError:
            return ""  # a lookup's server is away
        return f"{pipeline.name}: {found.ended}" if found.passed_over else ""

    def _wanted(self, event: Event) -> bool:
        kind = event.type.decode()
        return self._every or any(pipeline.takes(kind) for pipeline in self._pipelines)

    def _fates(self, events: list[Event]) -> dict[bytes, list[str]]:
        """What the ledgers say of each event."""
        from bridge.postgres.progress import Applied, letters  # noqa: PLC0415

        words: dict[bytes, list[str]] = {event.id: [] for event in events}
        for plan in self._plans:
            target = self.targets[plan.stream]
            applied = Applied(target, plan.rows)
            units = {
                str(plan.owner.unit_id(event.id.decode(), pipeline, name)): (
                    event,
                    f"{pipeline} -> {name}: " if name else "",
                )
                for event in events
                for pipeline, name in self._units()
            }
            if self._every:
                units |= {
                    str(plan.owner.unit_id(event.id.decode(), *unit)): (event, f"{unit[0]} -> {unit[1]}: ")
                    for event in events
                    for unit in self.waiting[plan.stream].gone()
                }
            dead = letters(target, list(units))
            for event in events:
                how = applied.how(event)
                words[event.id].append({"": "waiting", "unknown": "sent"}.get(how, _APPLIED))
            for unit, why in self.waiting[plan.stream].why(list(units)).items():
                event, where = units[unit]
                words[event.id].append(f"{where}waits: {why}")
            for unit, letter in dead.items():
                event, where = units[unit]
                words[event.id].append(f"{where}dead letter {letter['state']} ({letter['code']})")
        return {name: list(dict.fromkeys(said)) for name, said in words.items()}

    def _units(self) -> list[tuple[str, str]]:
        """Every unit of the pipelines; ("", "") is that of an event that no pipeline took."""
        units = [(pipeline.name, name) for pipeline in self._pipelines for name in pipeline.spec.destinations]
        return [*units, ("", "")] if self._every else units
