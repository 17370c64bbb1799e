"""Who runs which stream, where several bridges share one file: decided by each bridge alone, from what all of them see.

A bridge that is ready to run a stream holds that stream's shared lock (it is *willing*), and the one that runs it holds
its exclusive lock (the *claim*). postgres/sharing.py reads and takes both. Whoever looks sees the same locks, and the
rules below have one answer for each picture, so bridges need not talk to each other:

- A free stream belongs to the willing bridge with the fewest streams.
- Streams move one at a time from the bridge with the most to the one with the fewest, until these differ by at most
  one. Each move makes the split more even, so moves end. Nothing moves while a stream is free that somebody may take.
- A bridge at its limit gives a stream to one that may have it, to take one that nobody else may.

Two bridges that see different pictures for a moment do no harm: one of them gets the lock, and whatever happens the
ledger's fence lets one epoch commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

MOVES_AT_ONCE = 2
"""Streams that are handed over at a time: each is without a bridge for the moment of a start, and starts cost CPU."""


@dataclass(frozen=True, slots=True)
class View:
    """What one look saw. streams: those whose targets answer, in the order of the file. willing: a stream's bridges.
    claims: stream to the bridge that runs it; a free stream is absent."""

    streams: Sequence[str]
    willing: Mapping[str, Collection[str]]
    claims: Mapping[str, str]

    @property
    def members(self) -> frozenset[str]:
        """Every bridge that is willing to run a stream, or runs one."""
        return frozenset(self.claims.values()).union(*self.willing.values())

    def loads(self) -> Counter[str]:
        """How many streams each member runs."""
        return Counter(dict.fromkeys(self.members, 0) | Counter(self.claims.values()))

    def free(self) -> list[str]:
        """Streams that nobody runs."""
        return [stream for stream in self.streams if stream not in self.claims]


@dataclass(frozen=True, slots=True)
class Share:
    """What one bridge does now. claim: streams whose exclusive lock it takes. give_up: streams that it stops, and whose
    lock it returns when they have stopped. willing: the streams whose shared lock it holds from now on."""

    claim: Sequence[str] = ()
    give_up: Sequence[str] = ()
    willing: frozenset[str] = field(default_factory=frozenset)


def share(
    view: View,
    me: str,
    *,
    most: int | None = None,
    declined: Collection[str] = (),
    waited: Collection[str] = (),
) -> Share:
    """most: streams that this bridge runs at a time; None: any number. declined: streams that it does not want for a
    while, because it has just given them up. waited: streams that have been free for so long that whoever they belong
    to does not take them: any willing bridge may."""
    mine = [stream for stream in view.streams if view.claims.get(stream) == me]
    room = len(view.streams) if most is None else max(0, most - len(mine))
    give_up = _give_ups(view, me) or (_swap(view, me, mine, declined) if not room else [])
    wanted = (stream for stream in view.streams if stream in mine or (room > 0 and stream not in declined))
    claim = [stream for stream in _claims(view, me, waited) if stream not in declined][:room]
    return Share(claim, give_up, frozenset(wanted) - set(give_up))


def still_declined(view: View, me: str, declined: Collection[str]) -> set[str]:
    """Of the streams that I gave up for others, those that no other has yet. Where nobody else is left, none."""
    if view.members <= {me}:
        return set()
    return {stream for stream in declined if view.claims.get(stream, me) == me}


class Step(Enum):
    """What a bridge does about one stream now. START, STOP: the stream. RELEASE: its claim."""

    NOTHING = "nothing"
    START = "start"
    STOP = "stop"
    RELEASE = "release"


def next_step(*, claimed: bool, giving_up: bool, runs: bool, starts: bool) -> Step:
    """A stream runs if, and only if, its claim is held; a claim is returned once its stream has stopped. claimed: the
    last look saw the claim as ours. starts: it will run in a moment."""
    if not claimed or (giving_up and runs):
        return Step.STOP if runs else Step.NOTHING
    if starts:
        return Step.NOTHING
    if giving_up:
        return Step.RELEASE
    return Step.NOTHING if runs else Step.START


def _swap(view: View, me: str, mine: Sequence[str], declined: Collection[str]) -> list[str]:
    """I am full, and nobody else may take a stream that is free: one of mine that another may have makes room."""
    if any(not view.willing.get(stream) and stream not in declined for stream in view.free()):
        for stream in reversed(mine):
            if set(view.willing.get(stream, ())) - {me}:
                return [stream]
    return []


def _claims(view: View, me: str, waited: Collection[str]) -> list[str]:
    """The free streams that belong to me."""
    loads, mine = view.loads(), []
    for stream in view.free():
        candidates = view.willing.get(stream, ())
        if not candidates:
            continue
        taker = min(candidates, key=lambda member: (loads[member], member))
        if me in candidates and stream in waited:
            taker = me
        loads[taker] += 1
        if taker == me:
            mine.append(stream)
    return mine


def _give_ups(view: View, me: str) -> list[str]:
    """The streams of mine that others with fewer streams are to have."""
    if any(view.willing.get(stream) for stream in view.free()):
        return []
    loads, claims = view.loads(), dict(view.claims)
    given = []
    for _ in range(MOVES_AT_ONCE):
        moves = [
            (loads[giver] - loads[taker], giver, place, taker)
            for place, stream in enumerate(view.streams)
            if (giver := claims.get(stream)) is not None
            for taker in view.willing.get(stream, ())
            if loads[giver] - loads[taker] > 1
        ]
        if not moves:
            break
        _, giver, place, taker = max(moves)
        stream = view.streams[place]
        claims[stream] = taker
        loads[giver] -= 1
        loads[taker] += 1
        if giver == me:
            given.append(stream)
    return given
