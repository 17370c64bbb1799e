"""The picture of the overview: sources, pipelines and destinations as nodes, with what passed as numbers on the edges.

The numbers are of the last 24 hours: of the ledgers' samples, and what has been counted since the last of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.observe.samples import Counts, added
from bridge.planning.spec import DestinationSpec, PipelineSpec, SinkSpec, SubjectSpec, TableSpec

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.console.desk import Day, Desk

NODE = (230, 54)  # width and height in the picture's units
_COLUMNS = (4, 330, 656)
_ROW, _GAP = 66, 10
_WIDTH = 890


@dataclass(slots=True)
class Node:
    """kind: source, pipeline, table, or a sink's type. state: good, wait or bad. lines: what stands under its name."""

    kind: str
    name: str
    lines: list[str] = field(default_factory=list)
    state: str = "good"
    link: str = ""
    x: int = 0
    y: float = 0.0


@dataclass(slots=True)
class Edge:
    """count: None where it is not known apart from others'."""

    start: Node
    end: Node
    count: int | None = None
    live: bool = False  # something has passed since the last sample

    @property
    def path(self) -> str:
        width, height = NODE
        x1, y1 = self.start.x + width, self.start.y + height / 2
        x2, y2 = self.end.x, self.end.y + height / 2
        middle = (x1 + x2) / 2
        return f"M{x1} {y1:.0f} C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2} {y2:.0f}"

    @property
    def at(self) -> tuple[float, float]:
        width, height = NODE
        x1, y1 = self.start.x + width, self.start.y + height / 2
        return (x1 + self.end.x) / 2, (y1 + self.end.y + height / 2) / 2 - 5


@dataclass(slots=True)
class Flow:
    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    height: float = 0.0
    width: int = _WIDTH

    def rows(self) -> list[dict[str, Any]]:
        """The same as a list: each pipeline with where it reads and where it leads."""
        return [
            {
                "pipeline": node,
                "sources": [edge for edge in self.edges if edge.end is node],
                "destinations": [edge for edge in self.edges if edge.start is node],
            }
            for node in self.nodes
            if node.kind == "pipeline"
        ]


@dataclass(frozen=True, slots=True)
class Passed:
    """Source -> pipeline or destination -> outcome -> how many. live: of them, since the last sample."""

    pipelines: Mapping[str, Counts]
    destinations: Mapping[str, Counts]
    live: Mapping[str, Counts]


def passed(desk: Desk, day: Day, sources: Mapping[str, str]) -> Passed:
    """sources: stream -> its source."""
    of: dict[str, tuple[list[Counts], list[Counts]]] = {name: ([], []) for name in sources.values()}
    for one in day.samples:
        if one.stream in sources:
            pipelines, destinations = of[sources[one.stream]]
            pipelines.append(one.pipelines)
            destinations.append(one.destinations)
    live = {}
    for name, (pipelines, destinations) in of.items():
        fresh, sent = desk.sampler.since(name)
        pipelines.append(fresh)
        destinations.append(sent)
        live[name] = added([fresh, sent])
    return Passed(
        {name: added(both[0]) for name, both in of.items()},
        {name: added(both[1]) for name, both in of.items()},
        live,
    )


def flow_of(config: Config, status: Mapping[str, Any], desk: Desk, day: Day) -> Flow:
    from bridge.plans import stream_plans  # noqa: PLC0415

    plans = stream_plans(config)
    counts = passed(desk, day, {row: plan.source for plan in plans for row in plan.rows})
    flow = Flow()
    sources = {plan.source: _source(plan.source, status) for plan in plans}
    y = 0.0
    dead = {one["pipeline"]: one["dead_letters"] for one in status["pipelines"]}
    specs = {spec.name: spec for plan in plans for spec in plan.pipelines}
    for name, spec in specs.items():
        reads = [
            source
            for source in sources
            if any(
                plan.source == source and any(one.name == name for one in plan.pipelines) for plan in plans
            )
        ]
        node = Node(
            "pipeline", name, link=f"/dead?pipeline={name}" if dead.get(name) else f"/events?pipeline={name}"
        )
        node.lines = [_outcomes(counts, name, reads)]
        if dead.get(name):
            node.state = "bad"
            node.lines.append(f"{dead[name]} dead letters")
        flow.nodes.append(node)
        ends = []
        for destination, target in spec.destinations.items():
            twice = sum(destination in one.destinations for one in specs.values()) > 1
            end = _destination(name, destination, target, status)
            end.x, end.y = _COLUMNS[2], y
            y += _ROW
            ends.append(end)
            flow.nodes.append(end)
            flow.edges.append(_leads(node, end, spec, counts, reads, twice=twice))
        if not ends:
            y += _ROW
        node.x = _COLUMNS[1]
        node.y = (ends[0].y + ends[-1].y) / 2 if ends else y - _ROW
        for source in reads:
            outcomes = counts.pipelines.get(source, {}).get(name, {})
            live = bool(counts.live.get(source, {}).get(name))
            flow.edges.append(Edge(sources[source], node, sum(outcomes.values()), live))
        y += _GAP
    flow.height = max(y, len(sources) * _ROW + _GAP)
    room = flow.height / max(1, len(sources))
    for number, node in enumerate(sources.values()):
        node.x, node.y = _COLUMNS[0], room * number + (room - _ROW) / 2
        flow.nodes.insert(number, node)
    return flow


def _outcomes(counts: Passed, pipeline: str, sources: list[str]) -> str:
    found: Counter[str] = Counter()
    for source in sources:
        found.update(counts.pipelines.get(source, {}).get(pipeline, {}))
    return ", ".join(f"{count:,} {outcome}".replace(",", "\u2009") for outcome, count in found.most_common(2))


def _source(name: str, status: Mapping[str, Any]) -> Node:
    streams = [one for one in status["streams"] if one["source"] == name]
    phases = {one["phase"] for one in streams}
    bad = any(one["reason"] or one["phase"] == "halted" for one in streams)
    works = phases and phases <= {"streaming", "polling", "standby"}
    rate = sum(one["events_per_second"] for one in streams)
    node = Node("source", name, [f"{rate:.1f} events/s", ", ".join(sorted(phases)) or "not started"])
    node.state = "bad" if bad else "good" if works else "wait"
    return node


def _destination(pipeline: str, name: str, spec: DestinationSpec, status: Mapping[str, Any]) -> Node:
    if isinstance(spec, TableSpec):
        return Node("table", name, [f"{spec.connection}: {spec.table_name}"])
    if isinstance(spec, SubjectSpec):
        return Node("nats", name, [f"{spec.connection}: published with the batch"])
    kind = spec.kind
    node = Node(kind, name, link=f"/deliveries?pipeline={pipeline}&destination={name}")
    alone = [
        one for one in status["left_alone"] if one["pipeline"] == pipeline and one["destination"] == name
    ]
    waiting = status["waiting_deliveries"].get(name, {}).get("messages", 0)
    node.lines = [f"{waiting} waiting" if waiting else f"{kind}, nothing waits"]
    if alone:
        node.state = "wait"
        paused = any(one["until"] is None for one in alone)
        node.lines.append("paused" if paused else f"left alone: {alone[0]['code']}")
    return node


def _leads(
    node: Node, end: Node, spec: PipelineSpec, counts: Passed, sources: list[str], *, twice: bool
) -> Edge:
    """What one table of several got is not counted apart, nor what one of two sinks of a name got."""
    if not isinstance(spec.destinations[end.name], SinkSpec):
        if sum(not isinstance(one, SinkSpec) for one in spec.destinations.values()) > 1:
            return Edge(node, end)
        of, name, outcome = counts.pipelines, node.name, "applied"
    elif twice:
        return Edge(node, end)
    else:
        of, name, outcome = counts.destinations, end.name, "sent"
    count = sum(of.get(source, {}).get(name, {}).get(outcome, 0) for source in sources)
    live = any(counts.live.get(source, {}).get(name, {}).get(outcome) for source in sources)
    return Edge(node, end, count, live)
