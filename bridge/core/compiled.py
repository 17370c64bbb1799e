"""One pipeline compiled for one stream: its steps, branches and the units the stream owns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from itertools import compress

from bridge.core.destination import Sink, Table
from bridge.core.entity import unit_name
from bridge.core.expressions.expression import Expression, compile_expression
from bridge.core.plan import TableShape
from bridge.core.rows import Rows
from bridge.core.spec import EnrichSpec, PipelineSpec, SinkSpec, TableSpec, UpsertSpec
from bridge.core.steps import Step, compile_step

Unit = tuple[str, str]
"""(pipeline, destination)."""
Walk = list[tuple[Step, list[str]]]
"""Each step with the units that a failure there costs: those that come of it or of what follows."""


class Pipeline:
    """One pipeline, compiled, with the destinations that this stream owns."""

    def __init__(
        self,
        spec: PipelineSpec,
        tables: Mapping[Unit, TableShape],
        sinks: Collection[Unit],
        entities: Collection[Unit] = (),
        only: Collection[Unit] | None = None,
    ) -> None:
        """entities: the units of upsert.entity whose dead letters are this stream's. What they keep is written by
        every stream, since each reads it, unless `only` other units are wanted."""
        self.spec = spec
        self.name = spec.name
        self.tables: dict[str, Table] = {}
        self.sinks: dict[str, Sink] = {}
        for name, destination in spec.destinations.items():
            unit = (spec.name, name)
            if isinstance(destination, TableSpec) and unit in tables:
                self.tables[name] = Table(spec.name, destination, tables[unit])
            elif isinstance(destination, SinkSpec) and unit in sinks:
                self.sinks[name] = Sink(spec.name, destination)
        self.owned = [name for name in spec.destinations if name in self.tables or name in self.sinks]
        self.branches: list[tuple[Expression | None, frozenset[str]]] = [
            (None if b.when is None else compile_expression(b.when), frozenset(b.to))
            for b in spec.branches or ()
        ]
        self.reads = self._names()
        names = [step.as_name for step in spec.steps if isinstance(step, EnrichSpec)]
        fields = {name: frozenset(_fields(name, self.reads)) for name in names}
        kept = [unit_name(step.entity) if isinstance(step, UpsertSpec) else "" for step in spec.steps]
        keeps = [bool(name) and (only is None or (spec.name, name) in only) for name in kept]
        self.steps = [
            compile_step(step, fields, spec.name, keeps=here)
            for step, here in zip(spec.steps, keeps, strict=True)
        ]
        mine = [here and (spec.name, name) in entities for name, here in zip(kept, keeps, strict=True)]
        self.walk: Walk = [
            (step, [*dict.fromkeys(compress(kept[at:], mine[at:])), *self.owned])
            for at, step in enumerate(self.steps)
        ]
        # So many steps to the last upsert.entity: they run before anything is looked up for another pipeline.
        self.head = len(keeps) - keeps[::-1].index(True) if True in keeps else 0
        self.units = self.walk[0][1] if self.walk else self.owned
        self.needs_document = (
            "event" in self.reads
            or any(name.startswith("event.") for name in self.reads)
            or any(table.spec.columns is None for table in self.tables.values())
        )

    @property
    def active(self) -> bool:
        """False where nothing of it concerns this stream."""
        return bool(self.units or self.head)

    def _names(self) -> frozenset[str]:
        names: set[str] = set()
        for step in self.spec.steps:
            names |= compile_step(step, {}).reads
        for when, _ in self.branches:
            names |= when.names if when is not None else frozenset()
        for table in self.tables.values():
            names |= table.reads
        for sink in self.sinks.values():
            names |= sink.reads
        return frozenset(names)

    def takes(self, event_type: str) -> bool:
        """True when one of its patterns matches the type."""
        return any(fnmatchcase(event_type, pattern) for pattern in self.spec.events)

    def branch(self, rows: Rows) -> list[int]:
        """The first branch that matches, for every row; one past the last where none does."""
        chosen = [len(self.branches)] * len(rows)
        left = list(range(len(rows)))
        for number, (when, _) in enumerate(self.branches):
            if not left:
                break
            matches = [True] * len(left) if when is None else list(map(bool, rows.evaluate(when)))
            if True not in matches:
                continue
            for row, match in zip(left, matches, strict=True):
                if match:
                    chosen[row] = number
            left = [row for row, match in zip(left, matches, strict=True) if not match]
            if left:
                rows = rows.keep([not match for match in matches])
        return chosen


def entity_units(spec: PipelineSpec) -> list[Unit]:
    """The units of its upsert.entity steps."""
    return [(spec.name, unit_name(step.entity)) for step in spec.steps if isinstance(step, UpsertSpec)]


def _fields(root: str, names: Collection[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith(root + ".")}
