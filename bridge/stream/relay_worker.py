"""One relay's thread: session after session (sessions.py), of the protocol in protocol/relay.py."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import psycopg

from bridge.bus.shared import Buses
from bridge.errors import BridgeError
from bridge.postgres.slots import give_up_relays_slot
from bridge.protocol.relay import RelaySettings, relay
from bridge.protocol.requests import drive
from bridge.stream.relay_engine import RelayEngine
from bridge.stream.sessions import Sessions
from bridge.stream.spec import RelaySpec, RelayWatcher


class RelayWorker(Sessions[RelaySpec]):
    """Runs one relay until it is stopped."""

    def __init__(
        self, plan: RelaySpec, watcher: RelayWatcher, ended: Callable[[], None], buses: Buses | None
    ) -> None:
        super().__init__(f"relay {plan.relay}", plan, watcher, ended)
        self.watcher = watcher
        self._buses = buses

    def session(self) -> None:
        plan = self.plan
        if self._buses is None:
            raise RuntimeError("a relay has a log")
        settings = RelaySettings(plan.relay, str(uuid.uuid4()), plan.partitions)
        engine: RelayEngine | None = None
        try:
            engine = RelayEngine(
                plan, self._buses, self.watcher, waker=self._waker, stop=self._session_over.is_set
            )
            drive(relay(settings), engine)
        finally:
            if engine is not None:
                engine.close()

    def failed_with(self, error: BridgeError) -> BridgeError:
        """The WAL brake: a relay that cannot continue must not fill the source's disk. The events stay in the outbox,
        and every stream catches up from there."""
        try:
            given_up = give_up_relays_slot(self.plan.source_dsn, self.plan.relay, self.plan.max_retained_wal)
        except (psycopg.Error, BridgeError):
            return error  # the source is away too: next time
        if given_up:
            self.watcher.retried("wal_brake")
            self.watcher.log("wal brake: slot dropped", slot=given_up, limit=self.plan.max_retained_wal)
        return error
