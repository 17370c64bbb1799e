"""Whose turn it is: keys in turn, events without a key beside them, and first of all what a person wants sent now.

A lane asks only where a claim may find something: `again()`, `next_of_a_key()` and `hurry()` say so.
"""

from __future__ import annotations

from bridge.postgres.claims import Claim
from bridge.postgres.delivery import AsyncLink
from bridge.sinks.model import Delivery

_FIRST = -(2**63)  # before every event's seq


class Turns:
    """Of one lane. digests: its messages go together, whatever their keys are."""

    def __init__(self, claim: Claim, connection: AsyncLink, *, digests: bool) -> None:
        self._claim = claim
        self._connection = connection
        self._digests = digests
        self._hurried = False
        self._keyless = self._keyed = True  # whether a claim of such events may find something
        self._keyless_first = False
        self._after: str | None = None
        self._after_seq = _FIRST

    def again(self) -> None:
        """Messages may be due."""
        self._keyless = self._keyed = True
        self._after_seq = _FIRST  # what failed before may be due again

    def next_of_a_key(self) -> None:
        """A message with a key was settled: the next of its key may go."""
        self._keyed = True

    def hurry(self) -> None:
        """The next claim is first of what a person wants sent now: where a destination is tried there is one place, and
        others may be due before."""
        self._hurried = True

    async def take(self, room: int) -> list[Delivery]:
        """Claim at most `room` messages: keys after the last one taken, and events with and without a key by turns."""
        claimed: list[Delivery] = []
        if self._hurried:
            self._hurried = False
            claimed = await self._claim.hurried(self._connection, room)
        if self._digests:
            left = room - len(claimed)
            return claimed + (await self._claim.any(self._connection, left) if left else [])
        self._keyless_first = not self._keyless_first
        for keyless in (self._keyless_first, not self._keyless_first):
            left = room - len(claimed)
            if not left:
                break
            claimed += await (self._take_keyless(left) if keyless else self._take_keyed(left))
        return claimed

    async def _take_keyless(self, room: int) -> list[Delivery]:
        if not self._keyless:
            return []
        self._keyless = False  # again() while the statement runs is about a later state
        found = await self._claim.keyless(self._connection, room, self._after_seq)
        self._keyless = self._keyless or len(found) == room
        self._after_seq = found[-1].event_seq if len(found) == room else _FIRST
        return found

    async def _take_keyed(self, room: int) -> list[Delivery]:
        if not self._keyed:
            return []
        self._keyed = False
        found, last = await self._claim.keyed(self._connection, room, self._after)
        if len(found) < room and self._after is not None:
            more, last = await self._claim.keyed(self._connection, room - len(found), None)
            found += more
        self._keyed = self._keyed or len(found) == room
        self._after = last
        return found
