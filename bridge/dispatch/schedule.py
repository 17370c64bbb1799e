"""What a dispatcher is told (its lanes, as values), and a delivery's life after its first attempt.

Pure: no clock, no chance; both are given. Durable are only `next_attempt_at` and `attempts`; the breaker and the
pacer begin anew with the process, which costs at most one attempt too many.

| state     | set by                                   | stored |
| --------- | ---------------------------------------- | ------ |
| pending   | the apply transaction; a retry; redeliver | yes    |
| sent      | the dispatcher, after the sink took it   | yes    |
| dead      | the dispatcher, with its dead letter     | yes    |
| discarded | an operator                              | yes    |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bridge.errors import BridgeError
from bridge.sinks.model import SinkConnection

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 600.0
_FAILURES = 5
_LONGEST_BREAK = 60.0


def backoff(attempts: int, chance: float) -> float:
    """Seconds until the next attempt after `attempts` failures: doubling, with equal jitter.

    chance: uniform in [0, 1). Half of the interval is fixed and half is random ("Exponential Backoff And Jitter",
    AWS Architecture Blog), so that messages that failed together are not retried together.
    """
    whole = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(max(attempts - 1, 0), 30))
    return whole / 2 + whole / 2 * chance


class Breaker:
    """Pauses a destination that fails repeatedly.

    closed    everything is sent
    open      nothing is sent until `open_until`
    trying    one message is sent, and its outcome decides
    """

    def __init__(self) -> None:
        self.failures = 0
        self.open_until = 0.0

    def room(self, now: float, in_flight: int, capacity: int) -> int:
        """How many more messages may be claimed."""
        if now < self.open_until:
            return 0
        allowed = 1 if self.tripped else capacity
        return max(0, allowed - in_flight)

    @property
    def tripped(self) -> bool:
        """Open or trying."""
        return self.failures >= _FAILURES

    def succeeded(self) -> None:
        """The destination accepted a message, or refused one because of that message."""
        self.failures = 0

    def failed(self, now: float, chance: float) -> bool:
        """The destination is down or refuses us. True if this opens the breaker."""
        self.failures += 1
        if not self.tripped:
            return False
        length = min(_LONGEST_BREAK, 2.0 ** (self.failures - _FAILURES))
        self.open_until = max(self.open_until, now + length / 2 + length / 2 * chance)
        return self.failures == _FAILURES

    def pause(self, until: float) -> None:
        """The destination asked us to wait."""
        self.open_until = max(self.open_until, until)


class Pacer:
    """Spaces messages to one recipient as the vendor's rate limit requires, across all destinations of the process."""

    def __init__(self) -> None:
        self._free: dict[str, float] = {}

    def reserve(self, recipient: str, seconds: float, now: float, longest: float) -> float:
        """Reserve the next free place and return the seconds to wait for it; negative: none within `longest`."""
        at = max(now, self._free.get(recipient, 0.0))
        if at - now > longest:
            return now - at
        if len(self._free) > 10_000:
            self._free = {name: free for name, free in self._free.items() if free > now}
        self._free[recipient] = at + seconds
        return at - now


@dataclass(frozen=True, slots=True)
class LaneSpec:
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
class DispatchSpec:
    """One ledger and the sinks whose deliveries its stream writes there."""

    stream: str
    dsn: str
    lanes: Sequence[LaneSpec]


class DispatchWatcher(Protocol):
    """Receives a dispatcher's reports; called in the loop."""

    def delivered(self, destination: str, outcome: str, seconds: float) -> None: ...

    def works(self, stream: str) -> None: ...

    def troubled(self, stream: str, error: BridgeError) -> None: ...

    def log(self, level: str, event: str, **fields: object) -> None: ...
