"""What a dispatcher needs from the configuration (its lanes, as values), and a delivery's states and retries.

Pure: time and randomness are arguments. Only `next_attempt_at` and `attempts` are durable; the breaker and the pacer
start again with the process, which costs at most one extra attempt.

| state     | set by                                    | stored |
| --------- | ----------------------------------------- | ------ |
| pending   | the apply transaction; a retry; redeliver | yes    |
| sent      | the dispatcher, after the sink accepted it | yes    |
| dead      | the dispatcher, with its dead letter      | yes    |
| discarded | an operator                               | yes    |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bridge.attempts import Backoff
from bridge.dispatch.noise import Quiet
from bridge.errors import BridgeError
from bridge.section import SOURCE
from bridge.sinks.model import SinkConnection

RETRY = Backoff(first=1.0, longest=600.0)
"""Of one message."""
_FAILURES = 5
_BREAK = Backoff(first=1.0, longest=60.0)


class Breaker:
    """Pauses a destination, or a recipient, that fails repeatedly.

    closed    everything is sent
    open      nothing is sent until `open_until`
    trying    one message is sent, and its outcome decides
    """

    def __init__(self, pauses: Backoff = _BREAK) -> None:
        self._pauses = pauses
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
        """It accepted a message, or refused one because of that message."""
        self.failures = 0

    def failed(self, now: float, chance: float | None = None) -> bool:
        """It is down or refuses us; True if this opens the breaker. chance: as in Backoff.after."""
        if now < self.open_until:
            return False  # of one that was sent before
        self.failures += 1
        if not self.tripped:
            return False
        length = self._pauses.after(self.failures - _FAILURES + 1, chance)
        self.open_until = max(self.open_until, now + length)
        return self.failures == _FAILURES

    def try_now(self, now: float) -> bool:
        """A person says so: one message is sent, whatever it asked us for. False: it was not open."""
        if now >= self.open_until:
            return False
        self.failures = max(self.failures, _FAILURES)
        self.open_until = 0.0
        return True

    def pause(self, until: float) -> None:
        """It asked us to wait."""
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
    by_recipient: bool = False
    """The recipient comes from the event."""
    digest: tuple[float, int] | None = None
    """Messages of one group go as one: seconds that the first of them waits, most in one."""
    throttle: tuple[int, int] | None = None
    """Most messages to one recipient in so many seconds."""
    quiet: Quiet | None = None
    source: str = SOURCE  # its events' source, as the file names it

    @property
    def name(self) -> tuple[str, str]:
        return self.pipeline, self.destination


@dataclass(frozen=True, slots=True)
class DispatchSpec:
    """One ledger and the sinks whose deliveries its stream writes there."""

    stream: str
    source_dsn: str
    dsn: str
    lanes: Sequence[LaneSpec]
    source: str = SOURCE  # its name in the file
    several: bool = False  # the file has other sources

    @property
    def source_label(self) -> str:
        """As the stream's."""
        return self.source if self.several else ""


class LeftAlone(NamedTuple):
    """Nothing is sent to it for a while. who: a recipient's label; "": the whole destination. seconds: None, until a
    person resumes it."""

    who: str
    seconds: float | None
    code: str


class DispatchWatcher(Protocol):
    """Receives a dispatcher's reports; called in the loop."""

    def delivered(self, lane: LaneSpec, outcome: str, seconds: float) -> None: ...

    def left_alone(self, lane: LaneSpec, found: Sequence[tuple[str, float | None, str]]) -> None: ...

    def works(self, stream: str) -> None: ...

    def troubled(self, stream: str, error: BridgeError) -> None: ...

    def log(self, level: str, event: str, **fields: object) -> None: ...
