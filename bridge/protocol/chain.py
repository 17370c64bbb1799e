"""Frames of a log, and the chain that they must form. The log is not believed: it may drop, repeat, reorder, rewind or
forget what a relay put into it. docs/guarantees.md, "Frames over a log".

A relay reads the slot once and cuts what it reads into frames, a chain for each partition: each frame has all rows of
its partition of the transactions that end after `prev` and up to `end`. A frame is a function of the WAL between the
two, so that two relays of one origin say the same, and whoever has everything up to `prev` has everything up to `end`
afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from hashlib import sha256

from bridge.protocol.events import ZERO, Lsn, Snapshot


@dataclass(frozen=True, slots=True)
class Origin:
    """What a frame was made of; frames of two origins say nothing about each other.

    incarnation: of the relay's slot. life: the server process that the WAL was read from: a source that was restored,
    promoted or only started again has another one. partitions: how many the rows were divided into.
    """

    incarnation: int
    life: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Look:
    """The relay looked at the source after everything up to `lsn` was read: every transaction of the outbox that ends
    up to there is visible in the snapshot. insert_lsn: read after the snapshot, which shows nothing that ends later."""

    snapshot: Snapshot
    lsn: Lsn
    insert_lsn: Lsn


@dataclass(frozen=True, slots=True)
class Frame:
    """What a frame says of itself; its rows are beside it.

    A transaction that is larger than a frame comes in parts. Each says where its commit record begins (`commit`), how
    many rows of this partition were in earlier parts (`offset`), and has no end before the last one (`is_open`).
    """

    origin: Origin
    partition: int  # from 1 on
    prev: Lsn
    end: Lsn  # ZERO while is_open
    rows: int = 0
    commit: Lsn = ZERO  # of a transaction in parts; ZERO: whole transactions
    offset: int = 0
    is_open: bool = False
    look: Look | None = None


class Verdict(Enum):
    """What to do with a frame."""

    TAKE = "take"
    SKIP = "skip"  # its rows were taken before
    GAP = "gap"  # rows before it are missing
    VOID = "void"  # of another origin or partition


class Chain:
    """One reader's place in one partition's chain.

    reached: everything up to here was taken. What the target has applied when a session begins, and nothing else, says
    where that is.
    """

    def __init__(self, origin: Origin, partition: int, reached: Lsn) -> None:
        self.origin = origin
        self.partition = partition
        self.reached = reached
        self._open: tuple[Lsn, int] | None = None  # a transaction in parts: its commit, and rows taken

    @property
    def inside(self) -> bool:
        """Are parts of a transaction taken, and its end is not?"""
        return self._open is not None

    def judge(self, frame: Frame) -> Verdict:
        """What to do with this one, which came next."""
        if frame.origin != self.origin or frame.partition != self.partition:
            return Verdict.VOID
        if self._is_before(frame):
            return Verdict.SKIP
        if self._open is not None:
            commit, taken = self._open
            if (
                frame.commit != commit
            ):  # whole transactions that end before this one have no rows of the partition
                return Verdict.SKIP if not frame.is_open and frame.end <= commit else Verdict.GAP
            if frame.is_open and frame.offset + frame.rows <= taken:
                return Verdict.SKIP
            return Verdict.TAKE if frame.offset == taken else Verdict.GAP
        return Verdict.TAKE if frame.prev <= self.reached and frame.offset == 0 else Verdict.GAP

    def _is_before(self, frame: Frame) -> bool:
        """Does it end where we are? No position lies inside a commit record."""
        if frame.is_open:
            return frame.commit < self.reached
        return frame.end <= self.reached

    def took(self, frame: Frame) -> None:
        """This one was judged to be taken, and was."""
        if frame.is_open:
            self._open = (frame.commit, frame.offset + frame.rows)
        else:
            self._open, self.reached = None, frame.end


def partition_of(key: bytes | None, event_id: bytes, partitions: int) -> int:
    """The partition of an event, from 1 on: by its key, so that events of one key keep their order; else by its id.

    SQL for outbox.event: sha256 of the text in UTF-8, its first four bytes as a number (postgres/outbox.py).
    """
    digest = sha256(event_id if key is None else key).digest()
    return int.from_bytes(digest[:4], "big") % partitions + 1


def covers(one: Snapshot, other: Snapshot) -> bool:
    """Does it show everything that the other shows?"""
    return one.xmax >= other.xmax and not any(map(other.shows, one.xip))
