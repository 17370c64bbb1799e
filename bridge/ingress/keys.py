"""API keys: who may put events in, and how many a second."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable
from hashlib import sha256

BURST_SECONDS = 1.0  # an idle key has saved up so much


class Keys:
    """The live keys. A key is known by its digest; the keys themselves are not kept."""

    def __init__(
        self, keys: Iterable[str], rate: int | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """rate: events a second for each key; None: no limit."""
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._rate = rate
        self._clock = clock
        self._levels: dict[bytes, tuple[float, float]] = {}  # digest -> (events saved up, when)

    def find(self, authorization: bytes) -> bytes | None:
        """The digest of the key in an Authorization header; None for a wrong or malformed one.

        Takes the same time whichever key is given: all are compared, as digests.
        """
        scheme, _, token = authorization.partition(b" ")
        given = sha256(token.strip()).digest()
        found = None
        for digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = digest
        return found if scheme.lower() == b"bearer" else None

    def take(self, digest: bytes, events: int) -> float:
        """Take this many events from the key's rate: 0.0, or the seconds after which to come again.

        More events at once than a burst has are let through when the burst is full, and owed.
        """
        if self._rate is None:
            return 0.0
        now, most = self._clock(), self._rate * BURST_SECONDS
        level, at = self._levels.get(digest, (most, now))
        level = min(most, level + (now - at) * self._rate)
        wanted = min(float(events), most)
        if level < wanted:
            self._levels[digest] = (level, now)
            return (wanted - level) / self._rate
        self._levels[digest] = (level - events, now)
        return 0.0
