"""What a replay is asked for, and how a destination can be filled again without harm. Apart from replay.py,
which does it: here nothing is connected to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bridge.apply.stream_plan import StreamPlan
from bridge.core.plan import TableShape
from bridge.core.spec import DestinationSpec, PipelineSpec, TableSpec
from bridge.errors import BridgeError, ConfigError

Way = Literal["upsert", "absent", "empty", "deliver"]
"""upsert: the key decides. absent: insert what is not there, by the column that holds `$meta.id`. empty: a
table without identity, in one transaction. deliver: a sink."""


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for. name: of this replay, part of the ids of a sink's deliveries."""

    pipeline: PipelineSpec
    destination: DestinationSpec
    since: datetime
    until: datetime | None = None
    name: str = ""
    dry_run: bool = False

    @property
    def unit(self) -> tuple[str, str]:
        return self.pipeline.name, self.destination.name


def find(plans: Sequence[StreamPlan], wanted: str) -> tuple[StreamPlan, PipelineSpec, DestinationSpec]:
    """The destination by `PIPELINE/NAME`, or by its name where that is enough. Raises ConfigError."""
    found = [
        (plan, pipeline, spec)
        for plan in plans
        for pipeline in plan.pipelines
        for name, spec in pipeline.destinations.items()
        if wanted in (name, f"{pipeline.name}/{name}") and _owns(plan, (pipeline.name, name), spec)
    ]
    if len(found) == 1:
        return found[0]
    every = [f"{pipeline.name}/{name}" for pipeline in plans[0].pipelines for name in pipeline.destinations]
    several = "is the name of several destinations" if found else "is no destination"
    raise ConfigError(f"{wanted} {several}", hint=f"--destination with one of: {', '.join(every)}")


def _owns(plan: StreamPlan, unit: tuple[str, str], spec: DestinationSpec) -> bool:
    return spec.connection == plan.connection if isinstance(spec, TableSpec) else unit in plan.sinks


def way_of(spec: DestinationSpec, shape: TableShape | None, *, force: bool, deliver: bool) -> Way:
    """How this destination can be filled again. Raises BridgeError where it must not be."""
    if not isinstance(spec, TableSpec) or shape is None:
        if deliver:
            return "deliver"
        raise BridgeError(
            f"{spec.name} is a sink: every event would be sent once more",
            reason="sink",
            hint="if that is meant: --deliver",
        )
    identity = identity_of(spec, shape)
    if not spec.key:
        return "absent" if identity else "empty"
    if spec.mode == "upsert" and identity not in spec.key and spec.version is None and not force:
        raise BridgeError(
            f"{spec.name} keeps the last event of a key ({', '.join(spec.key)}) and has no `version`: an older event "
            "replayed now would overwrite what a newer one has written",
            reason="older_over_newer",
            hint="add `version: $meta.seq` with a column for it; or stop the bridge, replay up to now, and say --force",
        )
    return "upsert"


def identity_of(spec: TableSpec, shape: TableShape) -> str | None:
    """The column that holds the event's id."""
    if spec.columns is None:
        return "event_id" if "event_id" in shape.columns else None
    return next((name for name, value in spec.columns.items() if value == "$meta.id"), None)
