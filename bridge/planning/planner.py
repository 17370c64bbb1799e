"""From a batch of events to what it does to a target.

Columnar and pure: a generator that reads documents, holds them to their contracts, asks for the rows it wants to
enrich with, and ends with the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from secrets import randbits
from typing import Any, Literal, TypeVar

import orjson

from bridge.errors import Incomplete, PayloadFailure, TooLarge, UnitFailure, Unmatched
from bridge.expressions.document import parse
from bridge.planning.contract import Contract
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.pipeline import Pipeline, Walk
from bridge.planning.plan import DeadLetter, Planned, TableShape
from bridge.planning.rows import Failures, Rows, survivors
from bridge.planning.spec import ContractSpec, PipelineSpec, Unit
from bridge.planning.steps.step import Answers
from bridge.protocol.events import MUST_HAVE, NULL, Event, payload_of, type_of
from bridge.section import SOURCE

_TOGETHER = 64  # payloads a call: most of what a small document costs is the call
_MARK = 1 << 62 | randbits(62)
_BETWEEN = b",%d," % _MARK
"""The separator between payloads, so that two texts that are not JSON cannot form valid JSON together."""


def _together(payloads: list[bytes]) -> list[Any]:
    """Parse each payload with orjson. Raises ValueError if one is not valid."""
    if len(payloads) == 1:
        return [orjson.loads(payloads[0])]
    parsed: list[Any] = []
    for at in range(0, len(payloads), _TOGETHER):
        some = payloads[at : at + _TOGETHER]
        values = orjson.loads(b"[%b]" % _BETWEEN.join(some))
        if len(values) != 2 * len(some) - 1 or values[1::2] != [_MARK] * (len(some) - 1):
            raise ValueError
        parsed += values[::2]
    return parsed


def read_documents(
    contract: Contract | None, events: list[Event], group: list[int], documents: list[dict[str, Any]]
) -> tuple[list[int], Failures]:
    """Parse the events of one type and check their contract; fills `documents`."""
    failures: Failures = []
    try:
        parsed = _together([events[place].payload for place in group])
    except ValueError:
        parsed = []
    if set(map(type, parsed)) != {dict}:
        parsed, good = [], []
        for place in group:
            try:
                parsed.append(parse(events[place].payload))
                good.append(place)
            except PayloadFailure as failure:
                failures.append((place, events[place], failure))
        group = good
    if contract is not None:
        broken: dict[int, UnitFailure] = {}
        for row in contract.check(parsed):
            violation = contract.violation(parsed[row], events[group[row]].payload)
            if violation is not None:
                broken[row] = violation
        if broken:
            failures += [(group[row], events[group[row]], failure) for row, failure in broken.items()]
            parsed = [document for row, document in enumerate(parsed) if row not in broken]
            group = [place for row, place in enumerate(group) if row not in broken]
    if len(group) == len(documents):
        documents[:] = parsed
    else:
        for place, document in zip(group, parsed, strict=True):
            documents[place] = document
    return group, failures


T = TypeVar("T")

_ROUTES = 10_000  # types remembered; a producer that makes types up must not fill the memory


Left = Literal["", "ignored", "unmatched", "dead"]
"""What becomes of an event that no pipeline takes; "": a pipeline takes it."""


class Route:
    """The contract and pipelines of one event type."""

    __slots__ = ("contract", "left", "needs_document", "pipelines")

    def __init__(self, contract: Contract | None, pipelines: list[int], needs: bool, left: Left) -> None:
        self.contract = contract
        self.pipelines = pipelines
        self.needs_document = needs
        self.left = left


class Planner:
    """Plans batches for one stream. Raises ConfigError if something does not compile, Halt if a table lacks a mapped
    column.

    tables: shapes of the tables that this stream's connection owns, by (pipeline, destination); units of other
    destinations are not planned. sinks: the sink destinations that it owns. entities: the units of upsert.entity
    that it owns. only: plan only these units (for a replay or a retry of dead letters).
    nulls: the outbox is the customer's own, and may have NULL where an event must have a value.
    unmatched: what becomes of types that no pipeline takes and no contract knows; ignored: patterns of types that may
    be passed over (`source.ignore_types`).
    """

    def __init__(
        self,
        pipelines: Sequence[PipelineSpec],
        contracts: Mapping[str, ContractSpec],
        tables: Mapping[Unit, TableShape],
        *,
        sinks: Collection[Unit] = (),
        entities: Collection[Unit] = (),
        unmatched: Literal["ignore", "dead"] = "ignore",
        ignored: Collection[str] = (),
        only: Collection[Unit] | None = None,
        max_payload: int = 1 << 30,
        nulls: bool = False,
    ) -> None:
        if only is not None:
            tables = {unit: shape for unit, shape in tables.items() if unit in only}
            sinks = [unit for unit in sinks if unit in only]
        self.pipelines = [Pipeline(spec, tables, sinks, entities, only) for spec in pipelines]
        self._source = next((spec.source for spec in pipelines), SOURCE)  # they are of one source
        self._contracts = {name: Contract(spec) for name, spec in contracts.items()}
        self._unmatched = unmatched
        self._ignored = tuple(ignored)
        self._max_payload = max_payload
        self._nulls = nulls
        self._every = only is None
        self._routes: dict[bytes, Route] = {}
        self.on_branch: Callable[[str, str | None, Rows], None] | None = None
        """Called with (pipeline, branch taken or None, row) for each event, for config tests."""

    def shapes(self) -> dict[Unit, TableShape]:
        """The tables that it plans for."""
        return {
            (pipeline.name, name): table.shape
            for pipeline in self.pipelines
            for name, table in pipeline.tables.items()
        }

    def lookups(self) -> list[Lookup]:
        """What its pipelines will ask, without keys."""
        steps = (step for pipeline in self.pipelines if pipeline.active for step in pipeline.steps)
        return [lookup for step in steps if (lookup := step.lookup()) is not None]

    def plan(self, events: Sequence[Event]) -> Generator[Lookup, Answer, Planned]:
        """Yields Lookups, is sent key -> row (column -> value as psycopg loads it), and returns the plan.

        All upsert.entity steps of a batch run before its lookups, so that an event sees the values of earlier events
        of the batch, whichever pipelines they went through.
        """
        planned = Planned()
        answers = Answers()
        rows, places = self._read(list(events), planned)
        ways = []
        for number, pipeline in enumerate(self.pipelines):
            if pipeline.active and number in places:
                chosen, failures = places[number]
                some = rows if len(chosen) == len(rows) else rows.pick(chosen)
                ways.append(_Way(pipeline, some, _Outcomes(pipeline, planned)))
                ways[-1].outcomes.fail(failures, pipeline.units)
        for way in ways:
            yield from self._walk(way, way.pipeline.walk[: way.pipeline.head], answers)
        planned.keeps = answers.kept.keeps
        for way in ways:
            if way.pipeline.units:
                yield from self._walk(way, way.pipeline.walk[way.pipeline.head :], answers)
                if way.rows:
                    self._deliver(way.pipeline, way.rows, way.outcomes, planned)
                way.outcomes.settle()
        return planned

    # -- reading: parse, contract, which pipeline takes what

    def _route(self, event_type: bytes) -> Route:
        route = self._routes.get(event_type)
        if route is None:
            if len(self._routes) >= _ROUTES:
                self._routes.clear()
            name = event_type.decode(errors="surrogateescape")
            contract = self._contracts.get(name)
            taken = [number for number, pipeline in enumerate(self.pipelines) if pipeline.takes(name)]
            owned = [number for number in taken if self.pipelines[number].active]
            needs = contract is not None or any(self.pipelines[number].needs_document for number in owned)
            left = "" if taken else self._left(name, contract)
            route = Route(contract, owned, needs and bool(owned), left)
            self._routes[event_type] = route
        return route

    def _left(self, event_type: str, contract: Contract | None) -> Left:
        if any(fnmatchcase(event_type, pattern) for pattern in self._ignored):
            return "ignored"
        return "dead" if contract is None and self._unmatched == "dead" else "unmatched"

    def _read(
        self, events: list[Event], planned: Planned
    ) -> tuple[Rows, dict[int, tuple[list[int], Failures]]]:
        """All events with documents, and for each pipeline the rows that reach it and the rows that failed."""
        groups: dict[bytes, list[int]] = {}
        types = set(map(type_of, events))
        if len(types) == 1:
            groups[types.pop()] = list(range(len(events)))
        else:
            for place, event in enumerate(events):
                groups.setdefault(event.type, []).append(place)
        documents: list[dict[str, Any]] = [{}] * len(events)
        places: dict[int, tuple[list[int], Failures]] = {}
        self._nameless([events[place] for place in groups.pop(NULL, ())], planned)
        for event_type, group in groups.items():
            route = self._route(event_type)
            if route.left:
                self._leave(event_type, route.left, [events[place] for place in group], planned)
            if not route.pipelines:
                continue
            good, failures = self._sound(events, group)
            if route.needs_document:
                good, broken = read_documents(route.contract, events, good, documents)
                failures += broken
            for number in route.pipelines:
                if number in places:
                    places[number][0].extend(good)
                    places[number][1].extend(failures)
                else:
                    places[number] = (list(good), list(failures))
        if len(groups) > 1:
            for chosen, _ in places.values():
                chosen.sort()
        return Rows(list(range(len(events))), events, documents, source=self._source), places

    def _sound(self, events: list[Event], group: list[int]) -> tuple[list[int], Failures]:
        good, failures = _of_size(events, group, self._max_payload)
        if self._nulls:
            good, lacking = _complete(events, good)
            failures += lacking
        return good, failures

    def _nameless(self, events: list[Event], planned: Planned) -> None:
        """Whose type is NULL: no pipeline's, and not to be passed over."""
        if not events or not self._every:
            return
        planned.outcomes["", "dead"] += len(events)
        planned.dead_letters += [
            DeadLetter("", "", event, Incomplete.code, "the row's type is NULL") for event in events
        ]

    def _leave(self, event_type: bytes, left: Left, events: list[Event], planned: Planned) -> None:
        planned.outcomes["", left] += len(events)
        if left == "unmatched":
            planned.unmatched[event_type] += len(events)
        if left != "dead":
            return
        why = Unmatched("no pipeline and no contract takes this type of event")
        planned.dead_letters += [DeadLetter("", "", event, why.code, why.cause) for event in events]

    # -- one pipeline

    def _walk(self, way: _Way, steps: Walk, answers: Answers) -> Generator[Lookup, Answer, None]:
        for step, units in steps:
            if not way.rows:
                break
            passed = yield from step.run(way.rows, answers)
            way.outcomes.fail(passed.failures, units)
            way.outcomes.count("filtered", passed.filtered)
            way.rows = passed.rows

    def _deliver(self, pipeline: Pipeline, rows: Rows, outcomes: _Outcomes, planned: Planned) -> None:
        if pipeline.spec.branches is None:
            outcomes.route(len(rows))
            parts = dict.fromkeys(pipeline.owned, rows)
        else:
            rows, chosen, failures = survivors(pipeline.branch, rows)
            outcomes.fail(failures, pipeline.owned)
            if self.on_branch is not None:
                self._tell(pipeline, rows, chosen)
            parts = {}
            targets = [to for _, to in pipeline.branches] + [frozenset[str]()]
            counts = Counter(chosen)
            outcomes.count("unrouted", sum(n for branch, n in counts.items() if not targets[branch]))
            owned = frozenset(pipeline.owned)
            outcomes.route(sum(n for branch, n in counts.items() if targets[branch] & owned))
            for name in pipeline.owned:
                mask = [name in targets[branch] for branch in chosen]
                parts[name] = rows if all(mask) else rows.keep(mask)
        for name, part in parts.items():
            if not part:
                continue
            if name in pipeline.tables:
                _, writes, failures = survivors(pipeline.tables[name].writes, part)
                planned.writes += [write for write in writes if write.events]
            elif name in pipeline.subjects:
                _, publications, failures = survivors(pipeline.subjects[name].publications, part)
                planned.publications += publications
            else:
                _, deliveries, failures = survivors(pipeline.sinks[name].deliveries, part)
                planned.deliveries += deliveries
            outcomes.fail(failures, [name], routed=True)

    def _tell(self, pipeline: Pipeline, rows: Rows, chosen: list[int]) -> None:
        names = [branch.name for branch in pipeline.spec.branches or ()]
        for row, branch in enumerate(chosen):
            if self.on_branch is not None:
                name = names[branch] if branch < len(names) else None
                self.on_branch(pipeline.name, name, rows.part(row, row + 1))


def answered(planning: Generator[Lookup, Answer, T], answer: Callable[[Lookup], Answer]) -> T:
    """Run a plan (or a trace) to its end, answering its lookups; returns its result."""
    try:
        lookup = next(planning)
        while True:
            lookup = planning.send(answer(lookup))
    except StopIteration as finished:
        result: T = finished.value
        return result


def _of_size(events: list[Event], group: list[int], limit: int) -> tuple[list[int], Failures]:
    """The indexes of payloads that are not too large, and the failures of the others."""
    if max(map(len, map(payload_of, events))) <= limit:
        return group, []
    failures: Failures = []
    for place in group:
        size = len(events[place].payload)
        if size > limit:
            failure = TooLarge(f"the payload has {size} bytes, source.max_payload is {limit}")
            failures.append((place, events[place], failure))
    large = {place for place, _, _ in failures}
    return [place for place in group if place not in large], failures


def _complete(events: list[Event], group: list[int]) -> tuple[list[int], Failures]:
    """The places whose events have everything, and the failures of the others."""
    failures: Failures = []
    for place in group:
        event = events[place]
        lacking = [name for name, mark in MUST_HAVE.items() if getattr(event, name) == mark]
        if lacking:
            failures.append((place, event, Incomplete(f"the row's {', '.join(lacking)} is NULL")))
    if not failures:
        return group, failures
    broken = {place for place, _, _ in failures}
    return [place for place in group if place not in broken], failures


@dataclass(slots=True)
class _Way:
    """The progress of a batch in one pipeline."""

    pipeline: Pipeline
    rows: Rows
    outcomes: _Outcomes


class _Outcomes:
    """Counts each event once per pipeline; it is dead if any of its units is dead."""

    def __init__(self, pipeline: Pipeline, planned: Planned) -> None:
        self.pipeline = pipeline
        self.planned = planned
        self.routed = 0
        self.dead: set[int] = set()
        self.dead_routed: set[int] = set()

    def count(self, outcome: str, events: int) -> None:
        if events and self.pipeline.units:
            self.planned.outcomes[self.pipeline.name, outcome] += events

    def route(self, events: int) -> None:
        self.routed = events

    def fail(self, failures: Failures, destinations: Sequence[str], *, routed: bool = False) -> None:
        for place, event, failure in failures:
            (self.dead_routed if routed else self.dead).add(place)
            self.planned.dead_letters += [
                DeadLetter(
                    self.pipeline.name, name, event, failure.code, failure.cause, failure.retry_for_seconds
                )
                for name in destinations
            ]

    def settle(self) -> None:
        self.count("dead", len(self.dead) + len(self.dead_routed))
        self.count("applied", self.routed - len(self.dead_routed))
