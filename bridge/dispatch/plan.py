"""What a dispatcher needs to know, as values, and whom it tells. Made by the daemon from the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bridge.errors import BridgeError
from bridge.sinks.model import SinkConnection


@dataclass(frozen=True, slots=True)
class LanePlan:
    """One destination of one pipeline. Times in seconds."""

    pipeline: str
    destination: str
    connection: str
    sink: SinkConnection
    max_age: float = 86400.0
    timeout: float = 10.0

    @property
    def name(self) -> tuple[str, str]:
        return self.pipeline, self.destination


@dataclass(frozen=True, slots=True)
class DispatchPlan:
    """One ledger and the sinks whose deliveries its stream writes there."""

    stream: str
    dsn: str
    lanes: Sequence[LanePlan]


class DispatchWatcher(Protocol):
    """Whom a dispatcher tells what it does; called in the loop."""

    def delivered(self, destination: str, outcome: str, seconds: float) -> None: ...

    def works(self, stream: str) -> None: ...

    def troubled(self, stream: str, error: BridgeError) -> None: ...

    def log(self, level: str, event: str, **fields: object) -> None: ...
