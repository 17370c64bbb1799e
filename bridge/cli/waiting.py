"""Why messages wait, for commands, which ask the bridge that runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

    from bridge.config.model import Config
    from bridge.operate.waits import Unit, Waits
    from bridge.stream.spec import StreamSpec

_GONE_SECONDS = 15.0


def running_waits(config: Config, connection: psycopg.Connection[Any], plan: StreamSpec) -> Waits:
    """Asks the running bridge."""
    from bridge.cli.running import status_of  # noqa: PLC0415
    from bridge.operate.waits import Waits  # noqa: PLC0415

    return Waits.of(config, connection, plan, partial(status_of, config))


class Waiting:
    """For `bridge tail`, which looks again and again: the running bridge and the pauses are asked once a look. Units
    that are gone are looked for from time to time."""

    def __init__(self, config: Config, connection: psycopg.Connection[Any], plan: StreamSpec) -> None:
        self._config, self._connection, self._plan = config, connection, plan
        self._gone: list[Unit] = []
        self._look_at = 0.0

    def gone(self) -> list[Unit]:
        """Units that the configuration does not have, and that messages wait for."""
        from bridge.postgres.stranded import find  # noqa: PLC0415

        if time.monotonic() >= self._look_at:
            found = find(self._connection, self._plan.stream, self._plan.sinks)
            self._gone = [(one.pipeline, one.destination) for one in found]
            self._look_at = time.monotonic() + _GONE_SECONDS
        return self._gone

    def why(self, units: Sequence[str]) -> dict[str, str]:
        """Ids of units to what their messages wait for."""
        from bridge.postgres.progress import waiting  # noqa: PLC0415

        rows = waiting(self._connection, units)
        if not rows:
            return {}
        waits = running_waits(self._config, self._connection, self._plan)
        return {unit: waits.why(row) for unit, row in rows.items()}
