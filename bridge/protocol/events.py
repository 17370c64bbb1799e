"""Events, the batches they travel in, and a stream's positions between them: LSN, snapshot, what is applied.

An event's values are the bytes that Postgres prints (text format), untouched: most of them go into the target as they
came, so nothing is decoded before somebody asks. An LSN is a position within one slot's life, a snapshot outside of
it. `Done` says which rows must not be applied again (invariant I6).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, compress, pairwise, repeat
from operator import itemgetter
from typing import NamedTuple, NewType

import orjson

Lsn = NewType("Lsn", int)

ZERO = Lsn(0)


def parse_lsn(text: str) -> Lsn:
    """'16/B374D848' (PostgreSQL manual, 8.20 pg_lsn Type) to an integer."""
    high, low = text.split("/")
    return Lsn((int(high, 16) << 32) | int(low, 16))


def format_lsn(lsn: int) -> str:
    """The form that Postgres prints."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`xmin:xmax:xip,...` as pg_current_snapshot() prints it (PostgreSQL manual, 9.27.7). An xid is visible (if it
    committed) when it is below xmin, or below xmax and not in xip."""

    xmin: int
    xmax: int
    xip: frozenset[int] = frozenset()

    def shows(self, xid: int) -> bool:
        """True if `xid` is visible, provided that it committed."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.xip)

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.xip)))}"


NOTHING = Snapshot(3, 3)
"""No transaction is visible (FirstNormalTransactionId is 3): the floor of a stream that starts at the earliest row."""


def parse_snapshot(text: str) -> Snapshot:
    """Parse the text form. Inside a slot's exported snapshot Postgres can print xmin > xmax, which
    pg_snapshot's own input refuses; the meaning is xmax := xmin (seen on 15 and 18)."""
    xmin, xmax, xip = text.split(":")
    low, high = int(xmin), int(xmax)
    return Snapshot(low, max(low, high), frozenset(int(x) for x in xip.split(",") if x))


def intersection(snapshots: Iterable[Snapshot]) -> Snapshot:
    """What is visible in all of them; needs at least one snapshot."""
    every = list(snapshots)
    xmax = min(each.xmax for each in every)
    hidden = frozenset(x for each in every for x in each.xip if x < xmax)
    return Snapshot(min(hidden, default=xmax), xmax, hidden)


def union(one: Snapshot, other: Snapshot) -> Snapshot:
    """What is visible in either of them."""
    xmax = max(one.xmax, other.xmax)
    hidden = frozenset(x for x in one.xip | other.xip if not one.shows(x) and not other.shows(x) and x < xmax)
    return Snapshot(min(hidden, default=xmax), xmax, hidden)


NULL = b"\0"
"""SQL NULL in a field that an event must have; no text of Postgres has this byte. Such a row is a dead letter."""
NULL_SEQ = b"-0"
"""The same for seq: a number (0) that Postgres does not print."""


class Event(NamedTuple):
    """A row of the outbox. Every field is Postgres's text output as bytes; None is SQL NULL."""

    id: bytes
    seq: bytes  # decimal; b"0" where the customer's own outbox has none
    xid: bytes  # xid8, decimal; b"0" where the customer's own outbox has none
    type: bytes
    key: bytes | None
    payload: bytes  # JSON text, verbatim
    idempotency_key: bytes | None
    headers: bytes | None  # JSON text
    occurred_at: bytes | None  # timestamptz text


MUST_HAVE = {"id": NULL, "seq": NULL_SEQ, "type": NULL, "payload": NULL}
"""What stands for SQL NULL in each field that an event must have."""
_MARKS = tuple((Event._fields.index(name), mark) for name, mark in MUST_HAVE.items())


def event_of(values: Sequence[bytes | None]) -> Event:
    """The event of a row read from the table."""
    if None in [values[at] for at, _ in _MARKS]:
        filled = list(values)
        for at, mark in _MARKS:
            filled[at] = mark if filled[at] is None else filled[at]
        values = filled
    return Event._make(values)


type_of = itemgetter(Event._fields.index("type"))
payload_of = itemgetter(Event._fields.index("payload"))
xid_of = itemgetter(Event._fields.index("xid"))
seq_of = itemgetter(Event._fields.index("seq"))
id_of = itemgetter(Event._fields.index("id"))
"""Readers for map(): the field of every event of a list without a step of the interpreter."""


def numbers(texts: Iterable[bytes]) -> list[int]:
    """Integers as Postgres prints them, read together: half the cost of int() for each. TypeError for a None."""
    found: list[int] = orjson.loads(b"[" + b",".join(texts) + b"]")
    return found


@dataclass(slots=True)
class Batch:
    """Whole transactions in commit order, or a chunk of one that is larger than memory allows."""

    events: list[Event] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)  # xid8 of each transaction that ends here with events
    end_lsns: list[Lsn] = field(default_factory=list)  # of each of them
    commit_times: list[int] = field(default_factory=list)  # unix microseconds of each transaction
    commit_rows: list[int] = field(default_factory=list)  # and how many of the events belong to it
    end_lsn: Lsn = ZERO  # just after the last commit record; the only kind of stream position
    size: int = 0  # payload bytes, roughly
    chunk: bool = False  # part of a transaction that came in chunks; the last one is whole
    whole: bool = True  # False: more of the same transaction follows
    strays: list[Event] = field(default_factory=list)  # rows that say another xid than their transaction's
    replicated: bool = False  # native replication wrote this transaction: pgoutput names its origin


_RUN = re.compile(r"\[(-?\d+),(-?\d+)\)")


@dataclass(frozen=True, slots=True)
class Seqs:
    """A set of seqs, as runs: a million consecutive rows are one run. Printed as an int8multirange, `{[1,4),[7,8)}`."""

    starts: tuple[int, ...]
    stops: tuple[int, ...]  # exclusive

    @classmethod
    def of(cls, seqs: Iterable[int]) -> Seqs:
        ordered = sorted(set(seqs))
        if not ordered:
            return cls((), ())
        if ordered[-1] - ordered[0] == len(ordered) - 1:  # nothing between them is missing
            return cls((ordered[0],), (ordered[-1] + 1,))
        gaps = [at for at, (seq, after) in enumerate(pairwise(ordered), 1) if after > seq + 1]
        return cls(
            tuple(ordered[at] for at in (0, *gaps)),
            tuple(ordered[at - 1] + 1 for at in (*gaps, len(ordered))),
        )

    @classmethod
    def together(cls, parts: Iterable[Seqs]) -> Seqs:
        """The union."""
        runs: list[list[int]] = []
        for start, stop in sorted(run for part in parts for run in zip(part.starts, part.stops, strict=True)):
            if runs and start <= runs[-1][1]:
                runs[-1][1] = max(runs[-1][1], stop)
            else:
                runs.append([start, stop])
        return cls(tuple(start for start, _ in runs), tuple(stop for _, stop in runs))

    @classmethod
    def parse(cls, text: str) -> Seqs:
        runs = _RUN.findall(text)
        return cls(tuple(int(start) for start, _ in runs), tuple(int(stop) for _, stop in runs))

    def __contains__(self, seq: int) -> bool:
        at = bisect_right(self.starts, seq) - 1
        return at >= 0 and seq < self.stops[at]

    def __str__(self) -> str:
        runs = zip(self.starts, self.stops, strict=True)
        return "{" + ",".join(f"[{start},{stop})" for start, stop in runs) + "}"


Listed = Mapping[int, Sequence[Seqs]]
"""What bridge.applied lists: xid to the seqs of its applied rows (and of rows beside them). Not whole transactions,
because a publication that is altered in the middle of one withholds some of its rows.
"""


def listed(rows: Iterable[tuple[Iterable[int], Seqs]]) -> Listed:
    """From rows of bridge.applied: (xids, seqs)."""
    found: dict[int, list[Seqs]] = {}
    for xids, seqs in rows:
        for xid in xids:
            found.setdefault(xid, []).append(seqs)
    return found


class Done:
    """The rows that were applied before this session started: visible in the floor, or listed by polling or by an
    earlier slot. A slot or the table may deliver them again."""

    def __init__(self, listed: Listed, floor: Snapshot) -> None:
        self.listed = listed
        self.floor = floor
        self.beyond = max(floor.xmax, max(listed, default=0) + 1)  # no xid from here on is done

    def without(self, batch: Batch) -> Batch:
        """The batch without rows that are already applied; usually the same object."""
        lowest = min(batch.xids, default=int(batch.events[0].xid) if batch.events else self.beyond)
        if lowest >= self.beyond:
            return batch
        events = [event for event in batch.events if not self.has(event)]
        left = {int(event.xid) for event in events}
        # The last chunk of a huge transaction names it, whatever an earlier chunk has left of it.
        pairs = zip(batch.xids, batch.end_lsns, strict=True)
        kept = [pair for pair in pairs if batch.chunk or pair[0] in left]
        return replace(batch, events=events, xids=[xid for xid, _ in kept], end_lsns=[lsn for _, lsn in kept])

    def has(self, event: Event) -> bool:
        return self.shows(int(event.xid), int(event.seq))

    def shows(self, xid: int, seq: int) -> bool:
        if self.floor.shows(xid):
            return True
        return any(seq in seqs for seqs in self.listed.get(xid, ()))


def after(batch: Batch, lsn: Lsn) -> Batch:
    """The batch without the transactions that end at `lsn` or before. Where parts of the stream were read twice, each
    is kept the first time."""
    if sorted(set(batch.end_lsns)) != batch.end_lsns:
        return _once(batch, lsn)
    gone = bisect_right(batch.end_lsns, lsn)
    rows = sum(batch.commit_rows[:gone])
    return replace(
        batch,
        events=batch.events[rows:],
        xids=batch.xids[gone:],
        end_lsns=batch.end_lsns[gone:],
        commit_times=batch.commit_times[gone:],
        commit_rows=batch.commit_rows[gone:],
        strays=batch.strays if batch.end_lsn > lsn else [],
    )


def _once(batch: Batch, lsn: Lsn) -> Batch:
    """The transactions that end after `lsn` and after all before them."""
    greatest = accumulate(batch.end_lsns, max, initial=lsn)
    kept = [end > before for end, before in zip(batch.end_lsns, greatest, strict=False)]
    rows = list(chain.from_iterable(map(repeat, kept, batch.commit_rows)))
    return replace(
        batch,
        events=[*compress(batch.events, rows)],
        xids=[*compress(batch.xids, kept)],
        end_lsns=[*compress(batch.end_lsns, kept)],
        commit_times=[*compress(batch.commit_times, kept)],
        commit_rows=[*compress(batch.commit_rows, kept)],
        end_lsn=max(batch.end_lsns),
        strays=batch.strays if batch.end_lsn > lsn else [],
    )


def located(batch: Batch, lsn: Lsn) -> Batch:
    """Rows read from the table have no LSN; they committed before `lsn`."""
    return replace(batch, end_lsns=[lsn] * len(batch.xids))


class Bound(NamedTuple):
    """Rows of transactions from `xmax` on have a seq above `seq`.

    exact: such a row with a lower one went back. Otherwise it may be an older one: its seq in the table counts, and
    stays.
    """

    xmax: int
    seq: int
    exact: bool


FROM_ONE = Bound(0, 0, exact=True)
"""Nothing is known of earlier rows."""


class Behind(NamedTuple):
    """A row whose seq is not above that of its bound."""

    event: Event
    bound: Bound


class SeqOrder:
    """Sees a `seq` that went back: every row of a transaction that began after an applied row was visible has a greater
    `seq` than that row. Exact: rows of older transactions are not compared.

    A bound holds for ever. It is kept beside later ones, because rows may arrive that are older than the later ones.
    """

    KEPT = 4096
    """Bounds, about one a second: transactions that are open for an hour are compared exactly. More bounds are thinned:
    rows between two that are left are compared with the first."""

    def __init__(self) -> None:
        self.greatest = 0  # seq that has arrived
        self._bounds: list[Bound] = [FROM_ONE]  # xmax and seq ascend
        self._applied: deque[tuple[list[int], int]] = deque()  # of each batch: its xids, its greatest seq

    def begin(self, bounds: list[Bound]) -> None:
        """What is known as a session begins; xmax and seq ascend."""
        self._bounds = bounds
        self.greatest = bounds[-1].seq

    def behind(self, batch: Batch) -> list[Behind]:
        """The rows that went back."""
        seqs = numbers(map(seq_of, batch.events))
        self.greatest = max(self.greatest, max(seqs, default=0))
        if min(seqs, default=0) > self._bounds[-1].seq:
            return []
        found = [Behind(row, self._bound_of(int(row.xid))) for row in batch.events if row.seq != NULL_SEQ]
        return [one for one in found if int(one.event.seq) <= one.bound.seq]

    def _bound_of(self, xid: int) -> Bound:
        at = bisect_right(self._bounds, xid, key=itemgetter(0))
        return self._bounds[at - 1] if at else Bound(0, -(1 << 63), exact=True)

    @property
    def waits(self) -> bool:
        """Is there anything that a snapshot may show?"""
        return bool(self._applied)

    def learn(self, batch: Batch) -> None:
        """It will be visible with its seqs."""
        if batch.events:
            greatest = max(numbers(map(seq_of, batch.events)))
            self.greatest = max(self.greatest, greatest)
            self._applied.append((batch.xids or [int(batch.events[0].xid)], greatest))

    def seen(self, snapshot: Snapshot) -> None:
        """Everything learned that this snapshot shows was visible to whoever begins from now on. Not for a snapshot
        beside which a transaction had drawn its seq before it had an xid (stream/renumber.py, drawn_ahead)."""
        last = self._bounds[-1]
        new = last
        while self._applied and all(map(snapshot.shows, self._applied[0][0])):
            seq = max(new.seq, self._applied.popleft()[1])
            new = Bound(max(last.xmax, snapshot.xmax), seq, exact=True)
        if new.seq == last.seq and new.exact == last.exact:
            return
        if new.xmax == last.xmax:
            self._bounds.pop()
        self._bounds.append(new)
        if len(self._bounds) > self.KEPT:
            del self._bounds[1:-1:2]
