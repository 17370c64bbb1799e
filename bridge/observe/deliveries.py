"""What the dispatchers tell, turned into metrics, health and log lines."""

from __future__ import annotations

import structlog

from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics

PART = "dispatcher"


class DispatchWatch:
    """The dispatchers' reporter. A sink that is down is no fault of the bridge: it stays ready."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger("bridge.dispatch")
        self._troubled: set[str] = set()

    def delivered(self, destination: str, outcome: str, seconds: float) -> None:
        self._metrics.deliveries.labels(destination, outcome).inc()
        self._metrics.delivery_seconds.labels(destination).observe(seconds)

    def works(self, stream: str) -> None:
        self._troubled.discard(stream)
        if not self._troubled:
            self._metrics.health.part_works(PART)

    def troubled(self, stream: str, error: BridgeError) -> None:
        self._troubled.add(stream)
        self._metrics.health.part_failed(PART, error)

    def log(self, level: str, event: str, **fields: object) -> None:
        getattr(self._log, level)(event, **fields)
