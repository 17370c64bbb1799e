"""What goes together: each claimed message by itself, or those of a group as one message, a digest."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid5

from bridge.dispatch.noise import Digests, Throttle
from bridge.dispatch.outcomes import Outcomes, Parcel
from bridge.dispatch.schedule import LaneSpec
from bridge.postgres.claims import Claim
from bridge.postgres.delivery import AsyncLink
from bridge.sinks.joining import joined
from bridge.sinks.model import Delivery, SendError

_DIGESTS = UUID("6b0f3a0e-5c0c-5b62-9a55-3f9d3a1f7c11")
"""The name space of digests' ids."""


class Parcels:
    """Of one lane."""

    def __init__(self, plan: LaneSpec, claim: Claim, connection: AsyncLink, outcomes: Outcomes) -> None:
        self._plan = plan
        self._claim = claim
        self._connection = connection
        self._outcomes = outcomes
        self._digests = None if plan.digest is None else Digests(*plan.digest)

    async def of(self, claimed: list[Delivery], now: float) -> list[Parcel]:
        """What to send now; messages that wait for others of their group are put off. now: the loop's time."""
        if self._digests is None:
            return [Parcel(_known(one), (one,), now, self.recipient(one)) for one in claimed]
        parcels = []
        groups: dict[str, list[Delivery]] = {}
        for one in claimed:
            if one.group is None:
                parcels.append(Parcel(_known(one), (one,), now, self.recipient(one)))
            else:
                groups.setdefault(one.group, []).append(one)
        for group, parts in groups.items():
            wait = min(
                self._digests.wait(group, one.id, self._plan.max_age - one.expires_in, now) for one in parts
            )
            if wait > 0:
                for one in parts:
                    self._outcomes.put_off(Parcel(one, (one,), now, None), wait)
            else:
                parcels += await self._taken(self._digests, group, parts, now)
        return parcels

    async def _taken(self, digests: Digests, group: str, parts: list[Delivery], now: float) -> list[Parcel]:
        """What waits in a group, as messages of at most `most` for each recipient. Those that were claimed are filled
        up with others: all of a long queue at once would be more than the lane may send, or its lease allow."""
        digests.gone(group)
        found = list(parts)
        if missing := -len(parts) % digests.most:
            found += await self._claim.group(self._connection, group, missing)
        alike: dict[tuple[str | None, str], list[Delivery]] = {}
        for one in sorted(found, key=lambda one: one.event_seq):
            alike.setdefault((self.recipient(one), self._whom(one)), []).append(one)
        return [
            Parcel(self._joined(some), tuple(some), now, name)
            for (name, _), every in alike.items()
            for some in (every[at : at + digests.most] for at in range(0, len(every), digests.most))
        ]

    def _joined(self, parts: list[Delivery]) -> Delivery:
        """One message for several. Its id says which they are: another composition is another message."""
        if len(parts) == 1:
            return _known(parts[0])
        return replace(
            parts[0],
            id=str(uuid5(_DIGESTS, ",".join(_known(one).id for one in parts))),
            fields=joined(self._plan.sink.message.joins, [one.fields for one in parts]),
            attempts=max(one.attempts for one in parts),
        )

    def _whom(self, one: Delivery) -> str:
        """What all parts of a digest have in common: who gets it, who instead, and of a mail that some have, who is
        left and what the attempts before noted."""
        names = (self._plan.sink.message.address, "fallback")
        return repr([(n, v) for n, v in sorted(one.fields.items()) if n in names or n.startswith("_")])

    def recipient(self, delivery: Delivery) -> str | None:
        """Who gets it, where the event says so."""
        if not self._plan.by_recipient:
            return None
        try:
            return self._plan.sink.recipient(delivery)
        except SendError:
            return None  # the send will say why

    async def remember(self, throttle: Throttle, now: float) -> None:
        """What was sent before this process began counts too; a digest counts once."""
        digests: set[tuple[str, str, float]] = set()
        for one, ago in await self._claim.sent_lately(self._connection, throttle.seconds):
            name = self.recipient(one) or ""
            if one.group is not None:
                if (one.group, name, ago) in digests:
                    continue
                digests.add((one.group, name, ago))
            throttle.took(name, now - ago)


def _known(one: Delivery) -> Delivery:
    """The message under the id that its receiver may have seen before."""
    return one if one.sent_as is None else replace(one, id=one.sent_as)
