"""What one stream needs from the configuration, as values, and the protocol of its observer. Built by plans.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Protocol

from bridge.errors import BridgeError
from bridge.planning.plan import Owner
from bridge.planning.spec import ContractSpec, PipelineSpec
from bridge.postgres.outbox import Outbox
from bridge.postgres.source import SlotHealth
from bridge.protocol.events import Batch, Lsn
from bridge.protocol.facts import Ledger, Phase
from bridge.section import SOURCE

if TYPE_CHECKING:
    from bridge.bus.settings import BusSettings
    from bridge.config.nats import NatsConnection


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One target database and everything that its stream writes there. Sizes in bytes, times in seconds."""

    stream: str  # <slot>_<connection>; slots are <stream>_<n>
    connection: str
    source: str  # its name in the file
    publication: str
    source_dsn: str
    target_dsn: str
    dsns: Mapping[str, str]  # enrichment sources by name
    pipelines: Sequence[PipelineSpec]
    contracts: Mapping[str, ContractSpec]
    sinks: frozenset[tuple[str, str]]  # (pipeline, destination) whose deliveries this stream writes
    retention: timedelta = timedelta(days=7)  # of delivered rows of the source
    # Units of upsert.entity whose dead letters are this stream's.
    entities: frozenset[tuple[str, str]] = frozenset()
    family: frozenset[str] = frozenset()  # all streams of the configuration
    several: bool = False  # it has other sources
    outbox: Outbox = field(default_factory=Outbox)
    capture: Literal["slot", "poll", "auto"] = "slot"
    since: str | None = None
    unmatched: Literal["ignore", "dead"] = "ignore"
    ignored: tuple[str, ...] = ()  # patterns of types that may be passed over
    counts_unmatched: bool = (
        True  # every stream reads all events; one of them counts those that no pipeline takes
    )
    max_events: int = 2000
    max_bytes: int = 16 << 20
    max_payload: int = 64 << 20
    max_retained_wal: int = 8 << 30
    failover: bool = False
    poll_interval: float = 1.0
    strict: bool = False
    log: LogSpec | None = None  # None: it reads a slot of its own
    group: str = ""  # with a log: the name that the partitions of this target have in common; else empty
    partitions: int = 0  # of a plan for all partitions of a target together; 0: it is one stream
    # (pipeline, destination) that this stream publishes to NATS, and the connections for it, by name
    subjects: frozenset[tuple[str, str]] = frozenset()
    buses: Mapping[str, NatsConnection] = field(default_factory=dict)

    @property
    def owner(self) -> Owner:
        """Of its rows in the ledger."""
        return Owner(self.name, "" if self.source == SOURCE else self.source)

    @property
    def name(self) -> str:
        """The stream as its dead letters and messages have it: that of all its partitions."""
        return self.group or self.stream

    @property
    def rows(self) -> tuple[str, ...]:
        """What its rows in the ledger and in the registry are called."""
        if self.group or not self.partitions:
            return (self.stream,)
        numbers = range(1, self.partitions + 1)
        return tuple(partition_name(self.stream, number, self.partitions) for number in numbers)

    def each(self) -> list[StreamSpec]:
        """A plan for each row: for what concerns each partition by itself."""
        if self.rows == (self.stream,):
            return [self]
        return [replace(self, stream=row, group=self.stream) for row in self.rows]

    @property
    def messages(self) -> frozenset[tuple[str, str]]:
        """The units that are messages: deliveries, and what is published."""
        return self.sinks | self.subjects

    @property
    def source_label(self) -> str:
        """Its source where the file has several; otherwise "": nobody needs to be told."""
        return self.source if self.several else ""

    def units(self) -> Iterator[tuple[str, str]]:
        """Every (pipeline, destination) of the configuration, and the units of this stream's entities."""
        yield from ((pipeline.name, name) for pipeline in self.pipelines for name in pipeline.destinations)
        yield from self.entities


def partition_name(stream: str, partition: int, of: int) -> str:
    """What a partition of a stream is called, in the ledger and at the source."""
    return f"{stream}.{partition}of{of}"


def together(plans: Sequence[StreamSpec]) -> list[StreamSpec]:
    """One plan for the partitions of each target, as stream_plans() has it: for what concerns a target once."""
    found: dict[str, StreamSpec] = {}
    for plan in plans:
        if plan.log is None:
            found[plan.stream] = plan
        elif plan.name not in found:
            found[plan.name] = replace(
                plan, stream=plan.name, group="", log=None, partitions=plan.log.partitions
            )
    return list(found.values())


@dataclass(frozen=True, slots=True)
class LogSpec:
    """Where a partition's rows come from: the frames of this relay. partition: from 1 on, of `partitions`."""

    relay: str
    bus: BusSettings
    partition: int
    partitions: int
    max_bytes: int = 16 << 20  # of frames that wait to be applied


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """One source, and the log that its rows go into. relay: its name at the source, and the prefix of its slots."""

    relay: str
    source: str
    source_dsn: str
    publication: str
    outbox: Outbox
    bus: BusSettings
    partitions: int
    max_log_bytes: int
    max_retained_wal: int = 8 << 30
    failover: bool = False
    several: bool = False

    @property
    def source_label(self) -> str:
        return self.source if self.several else ""


class RelayWatcher(Protocol):
    """Receives a relay's reports; called from its thread."""

    def phase(self, phase: Phase, *, slot: str | None = None) -> None: ...

    def read(self, position: Lsn) -> None: ...

    def framed(self, partition: int, rows: int, size: int) -> None: ...

    def observed(self, health: SlotHealth | None, confirmed: Lsn) -> None: ...

    def lags(self, confirmed: Mapping[str, Lsn | None]) -> None: ...

    def again(self, partition: int) -> None: ...

    def log_holds(self, size: int, limit: int) -> None: ...

    def waiting(self, what: str) -> None: ...

    def retried(self, reason: str) -> None: ...

    def halted(self, error: BridgeError) -> None: ...

    def troubled(self, error: BridgeError) -> None: ...

    def log(self, event: str, **fields: object) -> None: ...


class Watcher(Protocol):
    """Receives a stream's reports; called from the stream's thread."""

    def phase(self, phase: Phase, ledger: Ledger | None = None, *, slot: str | None = None) -> None: ...

    def saved(self, ledger: Ledger) -> None: ...

    def waiting(self, what: str) -> None: ...

    def applied(
        self, ledger: Ledger, outcomes: Mapping[tuple[str, str], int], batch: Batch, seconds: float
    ) -> None: ...

    def deliveries(self, count: int) -> None: ...

    def published(self, destination: str, outcome: str, count: int) -> None: ...

    def unmatched(self, events: Mapping[bytes, int]) -> None: ...

    def pending(self, oldest: float | None) -> None: ...

    def observed(self, health: SlotHealth | None, confirmed: Lsn) -> None: ...

    def enriched(self, entity: str, result: str, count: int) -> None: ...

    def retried(self, reason: str) -> None: ...

    def halted(self, error: BridgeError) -> None: ...

    def troubled(self, error: BridgeError) -> None: ...

    def altered(self, table: str, what: str) -> None: ...

    def log(self, event: str, **fields: object) -> None: ...
