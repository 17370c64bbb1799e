"""The section `scale` of bridge.yaml: several machines, this one file; and a log between one reader and many."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from bridge.quantity import Boolean, Integer, Size
from bridge.section import Section, SlotWord


class ScaleSection(Section):
    """How several bridges with this file divide its streams. Absent: one runs them, and others stand by."""

    share: Boolean = False
    """Divide the streams fairly between all bridges that run this file."""
    max_streams: Annotated[Integer, Field(ge=1)] | None = None
    """Streams that one bridge runs at most. Absent: any number."""
    log: SlotWord | None = None
    """A connection of type nats: each source is read once, by `bridge relay`, and applied by any number of
    `bridge worker`. Absent: every stream reads its source itself."""
    partitions: Annotated[Integer, Field(ge=1, le=256)] = 8
    """With a log: into how many parts the events of a source are divided, by their key. Each is applied by one worker
    at a time. To change it later: `bridge scale repartition`."""
    log_size: Annotated[Size, Field(ge=16 << 20)] = 8 << 30
    """With a log: how much it holds of a source's events that are not applied everywhere. When it is full, the relay
    waits."""

    @model_validator(mode="after")
    def _of_log(self) -> ScaleSection:
        lost = [name for name in ("partitions", "log_size") if name in self.model_fields_set]
        if self.log is None and lost:
            raise ValueError(f"has {lost[0]} and no log: add log, a connection of type nats")
        return self
