"""What one stream needs from the configuration, as values, and the protocol of its observer. Built by plans.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from datetime import timedelta
from typing import Literal, Protocol

from bridge.errors import BridgeError
from bridge.planning.plan import Owner
from bridge.planning.spec import ContractSpec, PipelineSpec
from bridge.postgres.outbox import Outbox
from bridge.postgres.source import SlotHealth
from bridge.protocol.events import Batch, Lsn
from bridge.protocol.facts import Ledger, Phase
from bridge.records import dataclass
from bridge.section import SOURCE


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

    @property
    def owner(self) -> Owner:
        """Of its rows in the ledger."""
        return Owner(self.stream, "" if self.source == SOURCE else self.source)

    @property
    def source_label(self) -> str:
        """Its source where the file has several; otherwise "": nobody needs to be told."""
        return self.source if self.several else ""

    def units(self) -> Iterator[tuple[str, str]]:
        """Every (pipeline, destination) of the configuration, and the units of this stream's entities."""
        yield from ((pipeline.name, name) for pipeline in self.pipelines for name in pipeline.destinations)
        yield from self.entities


class Watcher(Protocol):
    """Receives a stream's reports; called from the stream's thread."""

    def phase(self, phase: Phase, ledger: Ledger | None = None, *, slot: str | None = None) -> None: ...

    def saved(self, ledger: Ledger) -> None: ...

    def waiting(self, what: str) -> None: ...

    def applied(
        self, ledger: Ledger, outcomes: Mapping[tuple[str, str], int], batch: Batch, seconds: float
    ) -> None: ...

    def deliveries(self, count: int) -> None: ...

    def unmatched(self, events: Mapping[bytes, int]) -> None: ...

    def pending(self, oldest: float | None) -> None: ...

    def observed(self, health: SlotHealth | None, confirmed: Lsn) -> None: ...

    def enriched(self, entity: str, result: str, count: int) -> None: ...

    def retried(self, reason: str) -> None: ...

    def halted(self, error: BridgeError) -> None: ...

    def troubled(self, error: BridgeError) -> None: ...

    def altered(self, table: str, what: str) -> None: ...

    def log(self, event: str, **fields: object) -> None: ...
