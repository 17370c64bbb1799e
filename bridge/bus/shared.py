"""The connections to NATS of one process: one for each server group and login, opened when somebody needs it."""

from __future__ import annotations

import threading

from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings


class Buses:
    """Get them from any thread; close them all at the end."""

    def __init__(self, name: str) -> None:
        """name: what the server shows of this process."""
        self._name = name
        self._open: dict[BusSettings, Bus] = {}
        self._lock = threading.Lock()

    def get(self, settings: BusSettings) -> Bus:
        """Connected, or raises BridgeError."""
        with self._lock:
            bus = self._open.get(settings)
            if bus is None:
                bus = self._open[settings] = Bus(settings, self._name)
        bus.connect()
        return bus

    def close(self) -> None:
        with self._lock:
            every, self._open = list(self._open.values()), {}
        for bus in every:
            bus.close()
