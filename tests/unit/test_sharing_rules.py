"""Who runs which stream (bridge/protocol/sharing.py): each bridge decides alone, from a picture that may be old."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from bridge.protocol.sharing import MOVES_AT_ONCE, Share, View, share, still_declined

STREAMS = [f"s{number}" for number in range(20)]


def view(streams: int, *loads: int, willing: str = "abcdefgh") -> View:
    """`loads` streams each of a, b, ...; the rest is free. Everybody is willing to run everything."""
    names = STREAMS[:streams]
    owners = [member for member, load in zip("abcdefgh", loads, strict=False) for _ in range(load)]
    members = set(willing[: len(loads)])
    return View(names, dict.fromkeys(names, members), dict(zip(names, owners, strict=False)))


def test_one_bridge_takes_everything() -> None:
    assert list(share(view(5, 0), "a").claim) == STREAMS[:5]


def test_free_streams_belong_to_the_bridge_with_the_fewest() -> None:
    found = view(6, 2, 0, 1)
    taken = {member: list(share(found, member).claim) for member in "abc"}
    assert taken == {"a": [], "b": ["s3", "s4"], "c": ["s5"]}


def test_one_that_joins_gets_its_share_and_the_rest_stays() -> None:
    assert list(share(view(4, 4, 0), "a").give_up) == ["s3", "s2"]
    assert share(view(4, 2, 2), "a").give_up == []
    assert share(view(5, 3, 2), "a").give_up == []


def test_more_bridges_than_streams_leave_some_without() -> None:
    found = view(2, 1, 1, 0)
    assert [share(found, member).claim for member in "abc"] == [[], [], []]
    assert [share(found, member).give_up for member in "abc"] == [[], [], []]


def test_nothing_moves_while_a_stream_is_free() -> None:
    assert share(view(6, 5, 0), "a").give_up == []


def test_a_free_stream_that_nobody_wants_stops_no_move() -> None:
    found = view(6, 5, 0)
    assert list(share(View(found.streams, {**found.willing, "s5": set()}, found.claims), "a").give_up) == [
        "s4",
        "s3",
    ]


def test_a_full_bridge_takes_and_wants_no_more() -> None:
    full = share(view(5, 2), "a", most=2)
    assert (list(full.claim), full.willing) == ([], {"s0", "s1"})
    assert list(share(view(5, 0), "a", most=2).claim) == ["s0", "s1"]


def test_a_full_bridge_makes_room_for_a_stream_that_nobody_else_may_take() -> None:
    """b takes only s0, and a, which takes one at a time, has it."""
    found = View(STREAMS[:2], {"s0": {"a", "b"}, "s1": set()}, {"s0": "a"})
    assert list(share(found, "a", most=1).give_up) == ["s0"]
    assert share(found, "b", declined={"s1"}).give_up == []


def test_what_nobody_takes_is_for_everybody_who_is_willing() -> None:
    found = view(3, 2, 0)
    assert share(found, "a").claim == []
    assert list(share(found, "a", waited={"s2"}).claim) == ["s2"]


def test_a_declined_stream_is_not_wanted_but_kept_until_it_is_returned() -> None:
    assert share(view(3, 1), "a", declined={"s0", "s1"}).willing == {"s0", "s2"}


# -- a walk ------------------------------------------------------------------------------------------------


@dataclass
class Walker:
    """A bridge of the walk, between whose look and act others may act."""

    most: int | None = None
    only: set[str] = field(default_factory=set)
    declined: set[str] = field(default_factory=set)
    decided: Share | None = None
    frozen: bool = False


class World:
    """The locks, and bridges that take steps in any order."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.streams = STREAMS[: chance.randint(1, 12)]
        self.willing: dict[str, set[str]] = {stream: set() for stream in self.streams}
        self.claims: dict[str, str] = {}
        self.members: dict[str, Walker] = {}
        self.moved = 0
        self.names = iter(f"m{number:03}" for number in chance.sample(range(1000), 200))

    def join(self, **limits: object) -> None:
        self.members[next(self.names)] = Walker(**limits)  # type: ignore[arg-type]

    def end(self, name: str) -> None:
        """It dies, or is silent and evicted: its locks are gone."""
        for members in self.willing.values():
            members.discard(name)
        self.claims = {stream: member for stream, member in self.claims.items() if member != name}

    def look(self, name: str) -> None:
        walker = self.members[name]
        seen = View(self.streams, {s: set(m) for s, m in self.willing.items()}, dict(self.claims))
        walker.declined = still_declined(seen, name, walker.declined)
        unwanted = set(self.streams) - walker.only if walker.only else set()
        walker.decided = share(seen, name, most=walker.most, declined=walker.declined | unwanted)

    def act(self, name: str) -> None:
        walker = self.members[name]
        decided, walker.decided = walker.decided, None
        if decided is None:
            return
        for stream in self.streams:
            (self.willing[stream].add if stream in decided.willing else self.willing[stream].discard)(name)
        for stream in decided.claim:
            self.claims.setdefault(stream, name)  # the lock is had, or another one was faster
        for stream in decided.give_up:
            if self.claims.get(stream) == name:
                del self.claims[stream]
                walker.declined.add(stream)
                self.moved += 1
        if walker.most is not None:
            assert sum(member == name for member in self.claims.values()) <= walker.most

    def settle(self, rounds: int = 60) -> None:
        """Everybody looks and acts, each by itself, in any order."""
        for _ in range(rounds):
            steps = [(name, step) for name, one in self.members.items() if not one.frozen for step in (0, 1)]
            self.chance.shuffle(steps)
            for name, step in steps:
                self.act(name) if step and self.members[name].decided else self.look(name)

    def trouble(self) -> None:
        """One thing happens."""
        awake = [name for name, one in self.members.items() if not one.frozen]
        what = self.chance.random()
        if what < 0.35 or not awake:
            self.join()
        elif what < 0.6:
            name = self.chance.choice(awake)
            del self.members[name]
            self.end(name)
        elif what < 0.8:
            name = self.chance.choice(awake)
            self.members[name].frozen = True
            self.end(name)
        else:
            for one in self.members.values():
                one.frozen = False

    def split(self) -> list[int]:
        loads = [sum(member == name for member in self.claims.values()) for name in self.members]
        return sorted(load for load, one in zip(loads, self.members.values(), strict=True) if not one.frozen)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_stream_runs_and_the_split_is_fair(seed: int) -> None:
    world = World(random.Random(seed))
    world.join()
    for _ in range(12):
        world.trouble()
        world.settle(world.chance.randint(0, 3))
    if all(one.frozen for one in world.members.values()):
        world.join()
    world.settle()
    assert set(world.claims) == set(world.streams)
    split = world.split()
    assert split[-1] - split[0] <= 1
    before, moved = dict(world.claims), world.moved
    world.settle(5)
    assert (world.claims, world.moved) == (before, moved), "streams move although nothing happens"


@pytest.mark.parametrize("seed", range(20))
def test_one_that_joins_or_ends_moves_no_more_than_a_fair_share(seed: int) -> None:
    """And, of these, no stream twice."""
    world = World(random.Random(seed))
    for _ in range(world.chance.randint(1, 5)):
        world.join()
    world.settle()
    for _ in range(4):
        before, moved = dict(world.claims), world.moved
        world.join()
        world.settle()
        fair = -(-len(world.streams) // len(world.members))
        changed = [stream for stream in world.streams if world.claims[stream] != before[stream]]
        assert world.moved - moved <= fair + MOVES_AT_ONCE
        assert len(changed) <= fair + MOVES_AT_ONCE
        gone = world.chance.choice(sorted(world.members))
        its = [stream for stream, member in world.claims.items() if member == gone]
        kept = {stream: member for stream, member in world.claims.items() if member != gone}
        del world.members[gone]
        world.end(gone)
        moved = world.moved
        world.settle()
        assert world.moved - moved <= MOVES_AT_ONCE, "a death makes the others move streams"
        assert sum(world.claims[stream] != member for stream, member in kept.items()) <= len(its)


@pytest.mark.parametrize("seed", range(20))
def test_limits_and_choices_are_kept_and_nothing_runs_in_circles(seed: int) -> None:
    chance = random.Random(seed)
    world = World(chance)
    for _ in range(4):
        only = set(chance.sample(world.streams, chance.randint(1, len(world.streams))))
        world.join(most=chance.choice([None, 1, 2, 3]), only=only if chance.random() < 0.4 else set())
    world.settle()
    for stream, member in world.claims.items():
        assert not world.members[member].only or stream in world.members[member].only
    free = [stream for stream in world.streams if stream not in world.claims]
    for stream in free:  # only what nobody may take
        for name, one in world.members.items():
            full = one.most is not None and sum(m == name for m in world.claims.values()) >= one.most
            assert full or (one.only and stream not in one.only)
    before = dict(world.claims)
    world.settle(5)
    assert world.claims == before
