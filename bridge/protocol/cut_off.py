"""Streams whose source this machine cannot reach: another bridge of the file may, so they go to it, for a while.

What a stream cannot do for any other reason, it cannot do on another machine either, and stays. Reads no clock.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from bridge.attempts import NO_JITTER, Backoff, Retries
from bridge.protocol.sharing import View

PATIENCE_SECONDS = 10.0
"""A server that restarts is back by then."""

_SHUNNED = Backoff(first=15.0, longest=300.0, jitter=NO_JITTER)
"""Between two attempts to reach the source of such a stream, which this bridge does not want meanwhile: unless no other
one has it or would take it."""


@dataclass(slots=True)
class CutOff:
    """Times are the caller's, in seconds of one clock."""

    _since: dict[str, float] = field(default_factory=dict)
    _until: dict[str, float] = field(default_factory=dict)
    _retries: dict[str, Retries] = field(default_factory=dict)

    def look(
        self, view: View, me: str, *, failing: Collection[str], working: Collection[str], now: float
    ) -> tuple[set[str], set[str]]:
        """(streams to hand over, streams not to want). failing, working: of those that run here, the ones that
        cannot connect, and the ones whose phase is ready."""
        for stream in working:
            self._since.pop(stream, None)
            self._until.pop(stream, None)
            self._retries.pop(stream, None)
        mine = [stream for stream, claimer in view.claims.items() if claimer == me]
        self._since = {s: self._since.get(s, now) for s in mine if s in self._since or s in failing}
        for stream, since in [*self._since.items()]:
            if now - since >= PATIENCE_SECONDS and self._others(view, me, stream):
                self._until[stream] = now + self._retries.setdefault(stream, Retries(_SHUNNED)).failed()
                del self._since[stream]
        shunned = {s for s in self._until if self._others(view, me, s)}
        return {s for s in mine if s in shunned and s in failing}, shunned

    def due(self, now: float) -> set[str]:
        """Streams whose source somebody should try to reach, and then say tried()."""
        found = {stream for stream, until in self._until.items() if until <= now}
        self._until |= dict.fromkeys(found, float("inf"))
        return found

    def tried(self, stream: str, *, reached: bool, now: float) -> None:
        """What came of it."""
        if reached:
            self._until.pop(stream, None)
        elif stream in self._until:
            self._until[stream] = now + self._retries[stream].failed()

    @staticmethod
    def _others(view: View, me: str, stream: str) -> bool:
        """Does another one have it, or would take it?"""
        others = {*view.willing.get(stream, ()), view.claims.get(stream, me)}
        return bool(others - {me})
