"""The recipients that messages name: which of them are left alone, and how many messages each has in flight.

Where a recipient comes from an event (a customer's own endpoint, a mailbox), one that fails must not hold up the
others. Only what is in flight or in trouble is remembered. Pure: time is an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bridge.attempts import Backoff
from bridge.dispatch.schedule import Breaker, LeftAlone

BREAK = Backoff(first=1.0, longest=600.0)
_MOST = 20_000


@dataclass(slots=True)
class _Known:
    in_flight: int = 0
    proven: bool = False
    """It has accepted a message since something was last in flight to it."""
    code: str = ""
    breaker: Breaker = field(default_factory=lambda: Breaker(BREAK))


class Recipients:
    """Of one lane. capacity: messages in flight of the whole lane."""

    def __init__(self, capacity: int) -> None:
        self._known: dict[str, _Known] = {}
        self._most_proven = max(1, capacity * 3 // 4)
        self._most_new = max(1, capacity // 4)

    def wait(self, name: str, now: float) -> float:
        """Seconds for which nothing is sent to it; 0.0: it may have a message."""
        known = self._known.get(name)
        return 0.0 if known is None else max(0.0, known.breaker.open_until - now)

    def begin(self, name: str) -> bool:
        """Take a place for one message. False: it has as many in flight as it may have: the rest is for others."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= _MOST:
                self._forget()
            known = self._known[name] = _Known()
        most = self._most_proven if known.proven else self._most_new
        if known.in_flight >= (1 if known.breaker.failures else most):
            return False
        known.in_flight += 1
        return True

    def end(self, name: str, now: float) -> None:
        """The message of a place has its outcome, or went back."""
        known = self._known.get(name)
        if known is not None:
            known.in_flight -= 1
            if not known.in_flight and not known.breaker.failures and known.breaker.open_until <= now:
                del self._known[name]

    def works(self, name: str) -> bool:
        """It took a message, or refused one because of that message. True: it was left alone before."""
        known = self._known.get(name)
        if known is None:
            return False
        before = known.breaker.tripped
        known.breaker.succeeded()
        known.proven, known.code = True, ""
        return before

    def failed(self, name: str, now: float, code: str, retry_after: float | None = None) -> bool:
        """It is down, full or refuses us. True: from now on it is left alone."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _Known()
        known.proven, known.code = False, code
        open_before = now < known.breaker.open_until
        known.breaker.failed(now)
        if retry_after:
            known.breaker.pause(now + retry_after)
        return not open_before and now < known.breaker.open_until

    def left_alone(self, now: float) -> Iterator[LeftAlone]:
        """Those to whom nothing is sent now."""
        for name, known in self._known.items():
            if known.breaker.open_until > now:
                yield LeftAlone(label(name), known.breaker.open_until - now, known.code)

    def try_now(self, now: float) -> bool:
        """A person says so: each that is left alone may have a message. False: none was."""
        return sum(known.breaker.try_now(now) for known in self._known.values()) > 0

    def any_alone(self, now: float) -> bool:
        """Is one of them left alone?"""
        return any(known.breaker.open_until > now for known in self._known.values())

    @property
    def remembered(self) -> int:
        """How many recipients are in flight or in trouble."""
        return len(self._known)

    def _forget(self) -> None:
        """Those that are in the least trouble: they cost an attempt each to learn again."""
        idle = [(one.breaker.open_until, name) for name, one in self._known.items() if not one.in_flight]
        for _, name in sorted(idle)[: _MOST // 10]:
            del self._known[name]


def label(name: str) -> str:
    """A recipient for logs and status, which must not have values: the host or domain, and a digest."""
    host = urlsplit(name).hostname if "://" in name else name.rpartition("@")[2] if "@" in name else ""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{host} {digest}" if host and host.isascii() else digest
