"""A simulated log between relays and streams, which keeps nothing of what it was given as it was given: frames are
dropped, repeated, out of order, taken back and forgotten, and those of former lives stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from bridge.protocol.chain import Chain, Frame, Look, Origin, Verdict
from bridge.protocol.events import ZERO, Lsn
from tests.model.source import Commit


class Entry(NamedTuple):
    """A frame with its rows. commits: with the rows of its partition that were published."""

    frame: Frame
    commits: tuple[Commit, ...]


class Log:
    """Entries by partition, in the order in which they are read."""

    def __init__(self, partitions: int) -> None:
        self.entries: dict[int, list[Entry]] = {n: [] for n in range(1, partitions + 1)}
        self.late: list[Entry] = []  # published, and not there yet
        self.asked: dict[int, Lsn] = {}  # by partition: from where a reader misses rows

    def publish(self, entry: Entry) -> None:
        self.entries[entry.frame.partition].append(entry)

    def ask_again(self, partition: int, position: Lsn) -> None:
        self.asked[partition] = min(position, self.asked.get(partition, position))

    def tails(self, origin: Origin) -> dict[int, Lsn]:
        tails = {}
        for partition, entries in self.entries.items():
            ends = [each.frame.end for each in entries if each.frame.origin == origin]
            if ends:
                tails[partition] = ends[-1]
        return tails

    def look(self, origin: Origin, partition: int) -> Look | None:
        """The newest one."""
        looks = (each.frame.look for each in reversed(self.entries[partition]) if each.frame.origin == origin)
        return next((look for look in looks if look is not None), None)

    # --- faults -------------------------------------------------------------------------------

    def _some(self, rng: Random) -> list[Entry]:
        """Entries of one partition. What happened last is likelier to matter."""
        return self.entries[rng.choice(list(self.entries))]

    def drop(self, rng: Random) -> bool:
        entries = self._some(rng)
        if not entries:
            return False
        del entries[max(0, len(entries) - rng.randint(1, 4))]
        return True

    def repeat(self, rng: Random) -> bool:
        """A frame, or all from there on."""
        entries = self._some(rng)
        if not entries:
            return False
        at = rng.randrange(len(entries))
        entries += entries[at:] if rng.random() < 0.5 else [entries[at]]
        return True

    def reorder(self, rng: Random) -> bool:
        entries = self._some(rng)
        if len(entries) < 2:
            return False
        at = max(0, len(entries) - rng.randint(1, 4))
        entries.insert(rng.randint(0, at), entries.pop(at))
        return True

    def rewind(self, rng: Random) -> bool:
        """The last ones are gone, as when the log comes back from an older copy."""
        entries = self._some(rng)
        had = len(entries)
        del entries[max(0, had - rng.randint(1, 8)) :]
        return had > 0

    def expire(self, rng: Random) -> bool:
        """The first ones are gone."""
        entries = self._some(rng)
        had = len(entries)
        del entries[: rng.randint(0, had)]
        return had > 0

    def forget(self) -> bool:
        had = any(self.entries.values())
        for entries in self.entries.values():
            entries.clear()
        return had


@dataclass(eq=False)
class Reader:
    """A stream's place in the log, and what it read ahead. at: where what was handed out last ends."""

    chain: Chain
    index: int
    at: int
    waiting: list[Commit] = field(default_factory=list)  # of frames that were taken, and not handed out
    asked: bool = False  # for what is missing here

    def frames(self, entries: list[Entry]) -> Iterator[tuple[Verdict, Entry]]:
        """What comes next, judged. Frames may be taken out of the log meanwhile."""
        while self.index < len(entries):
            entry = entries[self.index]
            self.index += 1
            yield self.chain.judge(entry.frame), entry

    @property
    def position(self) -> Lsn:
        return Lsn(self.at)

    def handed_out(self, ends: list[int]) -> None:
        """The commits that end there, the first that waited. A frame that overlaps has older ones."""
        del self.waiting[: len(ends)]
        self.at = ends[-1] if ends else self.at
        if not self.waiting:
            self.at = max(self.at, self.chain.reached)


class Ends:
    """Takes the place of a connection whose position is set: where, and how often."""

    def __init__(self, at: int) -> None:
        self.ends: list[int] = []
        self._at = at

    @property
    def at(self) -> int:
        return self._at

    @at.setter
    def at(self, end: int) -> None:
        self._at = end
        self.ends.append(end)


__all__ = ["ZERO", "Ends", "Entry", "Log", "Reader"]
