"""Positions of a stream: an LSN within one slot's life, a snapshot outside of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NewType

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
    """`xmin:xmax:xip,...` as pg_current_snapshot() prints it (PostgreSQL manual, 9.27.7).

    An xid is shown (visible, if it committed) when it is below xmin, or below xmax and not in xip.
    """

    xmin: int
    xmax: int
    xip: frozenset[int] = frozenset()

    def shows(self, xid: int) -> bool:
        """True when this snapshot sees what `xid` did, provided it committed."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.xip)

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.xip)))}"


NOTHING = Snapshot(3, 3)
"""Shows no transaction (FirstNormalTransactionId is 3): the floor of a stream from the earliest row."""


def parse_snapshot(text: str) -> Snapshot:
    """Parse the text form. Inside a slot's exported snapshot Postgres can print xmin > xmax, which
    pg_snapshot's own input refuses; the meaning is xmax := xmin (seen on 15 and 18)."""
    xmin, xmax, xip = text.split(":")
    low, high = int(xmin), int(xmax)
    return Snapshot(low, max(low, high), frozenset(int(x) for x in xip.split(",") if x))


def intersection(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Shows what every one of them shows; of at least one snapshot."""
    every = list(snapshots)
    xmax = min(each.xmax for each in every)
    hidden = frozenset(x for each in every for x in each.xip if x < xmax)
    return Snapshot(min(hidden, default=xmax), xmax, hidden)


def union(one: Snapshot, other: Snapshot) -> Snapshot:
    """Shows what either of them shows."""
    xmax = max(one.xmax, other.xmax)
    hidden = frozenset(x for x in one.xip | other.xip if not one.shows(x) and not other.shows(x) and x < xmax)
    return Snapshot(min(hidden, default=xmax), xmax, hidden)
