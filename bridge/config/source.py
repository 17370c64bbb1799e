"""The database whose outbox is read, and how."""

from __future__ import annotations

from datetime import timedelta
from hashlib import blake2s
from typing import Annotated, Literal

from pydantic import Field

from bridge.config.connection import Libpq
from bridge.config.quantity import Duration, Integer, Size, Start
from bridge.config.section import Section, SlotWord

MiB = 2**20


class OutboxColumns(Section):
    """Names of the columns of an outbox of your own. id, type and payload keep these names when absent;
    the others are then taken to be missing from that table."""

    id: str = "id"
    """The event's id: unique, uuid or text."""
    type: str = "type"
    """The event's type."""
    payload: str = "payload"
    """json, jsonb, text or bytea that holds JSON."""
    key: str | None = None
    """The ordering key."""
    idempotency_key: str | None = None
    """The producer's idempotency key."""
    headers: str | None = None
    """json or jsonb."""
    occurred_at: str | None = None
    """When it happened, timestamptz."""
    seq: str | None = None
    """An identity column: order in polling and catch-up."""
    xid: str | None = None
    """xid8 default pg_current_xact_id(). Without it the outbox is slot-only and has no catch-up."""


class BatchLimits(Section):
    """How much one target transaction takes."""

    max_events: Annotated[Integer, Field(ge=1, le=100_000)] = 2000
    """Events at most; a source transaction is cut only when it alone is larger."""
    max_bytes: Annotated[Size, Field(ge=65536)] = 16 * MiB
    """Payload bytes at most, roughly."""


class Source(Libpq):
    """The outbox and its reader. The parameters of the connection stand here too."""

    capture: Literal["slot", "poll", "auto"] = "slot"
    """slot: logical replication. poll: queries, the least privilege. auto: slot where it is possible."""
    slot: SlotWord = "outbox_bridge"
    """Slots are named <slot>_<connection>_<n>; the publication is <slot>."""
    max_retained_wal: Size = 8 * 1024 * MiB
    """The WAL brake: past it the slot is given up, and catch-up takes over without loss."""
    failover: bool = False
    """Make slots that a standby synchronizes, so that a promotion keeps them. PostgreSQL 17 and later."""
    table: str = "outbox.event"
    """The outbox, schema-qualified. Another than outbox.event is an outbox of your own."""
    columns: OutboxColumns | None = None
    """Names of the columns of an outbox of your own."""
    retention: Duration = timedelta(days=7)
    """How long delivered events stay in the outbox."""
    start: Start = "earliest"
    """Where a new stream starts: earliest, now, or a timestamp."""
    unmatched: Literal["ignore", "dead"] = "ignore"
    """Events with no pipeline and no contract: counted only, or dead letters."""
    poll_interval: Duration = timedelta(seconds=1)
    """How often polling looks when no NOTIFY wakes it."""
    batch: BatchLimits = BatchLimits()
    """How much one target transaction takes."""
    max_payload: Size = 64 * MiB
    """A larger payload is a dead letter (too_large)."""

    def instance(self) -> str:
        """Which bridge reads this source by this slot, for a running one to say to everybody: a digest, made of
        nothing secret. `1-`: how it is made, so that another version can tell that it makes it otherwise."""
        named = f"{self.slot}\n{self.place()}"
        return f"1-{blake2s(named.encode(), digest_size=8).hexdigest()}"
