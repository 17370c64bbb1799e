"""One outbox row, and the batch it travels in.

Values are the bytes that Postgres prints (text format), untouched: most of them go into the target
as they came, so nothing is decoded before somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from bridge.core.lsn import ZERO, Lsn


class Event(NamedTuple):
    """A row of the outbox. Every field is Postgres' text output as bytes; None is SQL NULL."""

    id: bytes
    seq: bytes  # decimal; b"0" where the customer's own outbox has none
    xid: bytes  # xid8, decimal; b"0" where the customer's own outbox has none
    type: bytes
    key: bytes | None
    payload: bytes  # JSON text, verbatim
    idempotency_key: bytes | None
    headers: bytes | None  # JSON text
    occurred_at: bytes | None  # timestamptz text


@dataclass(slots=True)
class Batch:
    """Whole transactions in commit order, or a chunk of one that is larger than memory allows."""

    events: list[Event] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)  # xid8 of each transaction that ends here with events
    end_lsns: list[Lsn] = field(default_factory=list)  # of each of them
    commit_times: list[int] = field(default_factory=list)  # unix microseconds of each transaction
    commit_rows: list[int] = field(default_factory=list)  # and how many of the events are its
    end_lsn: Lsn = ZERO  # just after the last commit record; the only kind of stream position
    size: int = 0  # payload bytes, roughly
    chunk: bool = False  # part of a transaction that came in chunks; the last one is whole
    whole: bool = True  # False: more of the same transaction follows
