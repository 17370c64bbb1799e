"""The relays of the simulation with a log: processes that read the one slot, of which any may be a zombie.

Beside what a stream's promise needs, each frame and each look is held against the WAL as it is published: what the
protocol says of them must be so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from bridge.errors import BridgeError, Retry, StandBy
from bridge.protocol import relay, requests
from bridge.protocol.chain import Frame
from bridge.protocol.events import ZERO, Lsn
from bridge.protocol.requests import Carried, Piece, Request, Shared
from tests.model import checks
from tests.model.lanes import Member, Site
from tests.model.log import Entry
from tests.model.simulation import SLOT, Bridge, Stream
from tests.model.source import Commit


class Relays(Member):
    """The relay, and what came before it and is not gone yet."""

    stream = "the relay"
    asks_source = frozenset({"SaveRelay", "ReadShare"})

    def __init__(self, site: Site) -> None:
        self.bodies: list[tuple[Commit, ...]] = []
        self.parts: dict[Stream, deque[Piece]] = {}  # of the huge transaction that is being read
        self.shares: dict[Bridge, Shared] = {}  # as last read
        self.given_up: dict[
            str, Lsn
        ] = {}  # streams that a braked slot need not wait for, until it is past here
        super().__init__(site)

    def protocol(self, name: str) -> Generator[Request[Any], Any, None]:
        return relay.relay(relay.RelaySettings(SLOT, name, self.site.partitions))

    def end(self, bridge: Bridge, why: BridgeError | str) -> None:
        super().end(bridge, why)
        if isinstance(why, BridgeError) and why.reason == "wal_brake":
            known = self.source.relay
            if known is not None:  # its process gives the slot up
                self.source.slots.pop(relay.RelaySettings(SLOT, "", 0).slot_name(known.incarnation), None)

    # --- performing ---------------------------------------------------------------------------

    def do_SaveRelay(self, bridge: Bridge, request: requests.SaveRelay) -> None:
        row, before = self.source.relay, request.before
        if (row.session if row else None) != (before.session if before else None):
            raise StandBy("another relay has begun")
        self.source.relay = request.after
        self.source.other_wal(8)
        self.counts["a relay's incarnation began"] += request.after.ready and not (before and before.ready)

    def do_ReadTails(self, bridge: Bridge, request: requests.ReadTails) -> dict[int, Lsn]:
        tails = self.site.log.tails(request.origin)
        if not self.calm and self.chance(0.1):
            self.counts["the log lied about its end"] += 1
            return {n: Lsn(tail + self.rng.choice((-40, 24, 400))) for n, tail in tails.items()}
        return tails

    def do_OpenStream(self, bridge: Bridge, request: requests.OpenStream) -> None:
        if bridge.stream is not None and bridge.stream.slot.reader is bridge.stream:
            bridge.stream.slot.reader = None
            self.counts["a relay read again"] += 1
        super().do_OpenStream(bridge, request)
        assert bridge.stream is not None
        self.parts = {bridge.stream: deque()}

    def do_Read(self, bridge: Bridge, request: requests.Read) -> Carried:
        stream = self.reading(bridge)
        again, self.site.log.asked = self.site.log.asked, {}
        if again:
            bridge.idle = 0
        stop, tick = self.chance(self.stopping), self.chance(0.2)
        if parts := self.parts.get(stream):
            return self.some_parts(bridge, stream, parts, again, tick=tick)
        waiting = [
            commit
            for commit in self.source.wal
            if commit.start >= stream.at and commit.end <= self.source.flushed and commit.rows
        ]
        if waiting and not stop and not self.chance(0.3):
            bridge.idle = 0
            if any(row.published == "error" for row in waiting[0].rows):
                self.counts["decoder stopped on a row without publication"] += 1
                raise Retry("the decoder stopped: publication does not exist")
            if cut := self.cut(waiting[0]):
                stream.huge = waiting[0]
                self.parts = {stream: cut}
                return self.some_parts(bridge, stream, cut, again, tick=tick)
            return self.whole_ones(stream, waiting, again, tick=tick)
        if not waiting:
            bridge.idle += 1
        sent = waiting[0].start if waiting else self.source.flushed
        if self.chance(0.7):
            stream.at = max(stream.at, sent)
        return Carried([], Lsn(stream.at), again=again, tick=self.chance(0.7), stop=stop)

    def body(self, *commits: Commit) -> bytes:
        self.bodies.append(commits)
        return str(len(self.bodies) - 1).encode()

    def published(self, commit: Commit, partition: int) -> Commit:
        rows = (r for r in commit.rows if r.published == "yes" and self.site.partition(r) == partition)
        return commit._replace(rows=tuple(rows))

    @property
    def partitions(self) -> Sequence[int]:
        return range(1, self.site.partitions + 1)

    def whole_ones(
        self, stream: Stream, waiting: list[Commit], again: dict[int, Lsn], *, tick: bool
    ) -> Carried:
        """Some transactions, and for each partition a piece that ends where all of them end."""
        taken: list[Commit] = []
        for commit in waiting[: self.rng.randint(1, 4)]:
            if self.cut(commit) or any(row.published == "error" for row in commit.rows):
                break
            taken.append(commit)
        stream.at = taken[-1].end
        self.counts["rows that the publication withheld"] += any(
            row.published != "yes" for commit in taken for row in commit.rows
        )
        pieces = []
        for partition in self.partitions:
            its = [self.published(commit, partition) for commit in taken]
            its = [commit for commit in its if commit.rows]
            if its:
                rows = sum(len(commit.rows) for commit in its)
                pieces.append(Piece(partition, Lsn(stream.at), rows, self.body(*its)))
        read = [c for c in taken if any(row.published == "yes" for row in c.rows)]
        ends, xids = [Lsn(commit.end) for commit in read], [commit.xid for commit in read]
        return Carried(pieces, Lsn(stream.at), ends, xids, again, tick)

    def cut(self, commit: Commit) -> deque[Piece]:
        """A transaction in parts; empty: it is not huge. Every relay cuts it in the same way."""
        first, last = [], []
        for partition in self.partitions:
            its = self.published(commit, partition)
            if commit.xid % 3 or len(its.rows) < 2:
                if its.rows:
                    last.append(Piece(partition, Lsn(commit.end), len(its.rows), self.body(its)))
                continue
            for at, row in enumerate(its.rows):
                ends = at == len(its.rows) - 1
                (last if ends else first).append(
                    Piece(
                        partition,
                        Lsn(commit.end) if ends else ZERO,
                        1,
                        self.body(its._replace(rows=(row,))),
                        commit=Lsn(commit.start),
                        offset=at,
                        is_open=not ends,
                    )
                )
        return deque([*first, *last]) if first else deque()

    def some_parts(
        self, bridge: Bridge, stream: Stream, parts: deque[Piece], again: dict[int, Lsn], *, tick: bool
    ) -> Carried:
        bridge.idle = 0
        self.counts["a transaction in parts"] += 1
        if self.chance(0.5) and parts[0].is_open:  # not to its end
            return Carried([parts.popleft()], Lsn(stream.at), again=again, tick=tick)
        pieces, commit = list(parts), stream.huge
        assert commit is not None
        parts.clear()
        stream.at, stream.huge = commit.end, None
        return Carried(pieces, Lsn(stream.at), [Lsn(commit.end)], [commit.xid], again, tick)

    def do_Publish(self, bridge: Bridge, request: requests.Publish) -> None:
        frame = request.frame
        commits = self.bodies[int(request.body)] if request.body else ()
        if bridge.source_generation == self.source_generation and frame.origin.life == self.source.life:
            self.is_true(frame, commits)
        self.counts["frame published"] += 1
        if self.chance(0.02) and not self.calm:
            self.counts["a frame did not get into the log"] += 1
            return
        self.site.log.publish(Entry(frame, commits))

    def is_true(self, frame: Frame, commits: tuple[Commit, ...]) -> None:
        """Has it all rows of its partition that it says it has, and is visible what its look says?"""
        wal = self.source.wal
        if not frame.is_open and not frame.commit:
            within = [self.published(c, frame.partition) for c in wal if frame.prev < c.end <= frame.end]
            has = [commit for commit in commits if commit.end > frame.prev]
            checks.require([c for c in within if c.rows] == has, "a frame without a row:", frame, within, has)
        if frame.look is not None:
            hidden = [
                c for c in wal if c.rows and c.end <= frame.look.lsn and not frame.look.snapshot.shows(c.xid)
            ]
            checks.require(not hidden, "a look past what is visible:", frame, hidden)

    def do_ReadShare(self, bridge: Bridge, request: requests.ReadShare) -> Shared:
        assert self.source.relay is not None
        applied = {
            stream: row.confirmed
            for stream, row in self.source.registry.items()
            if (row.relay, row.incarnation) == (SLOT, request.incarnation)
        }
        left = self.site.shared.get("brake", 0)
        self.site.shared["brake"] = max(0, left - 1)
        braked = left > 0 and not self.calm
        self.counts["the slot retained too much"] += braked
        self.shares[bridge] = Shared(self.source.relay.session, applied, braked)
        return self.shares[bridge]

    def do_Confirm(self, bridge: Bridge, request: requests.Confirm) -> None:
        stream, share = self.reading(bridge), self.shares[bridge]
        checks.require(request.lsn <= self.source.flushed, "confirmed beyond the source's WAL")
        before = stream.slot.confirmed
        waits = {
            stream: lsn
            for stream, lsn in share.applied.items()
            if lsn is not None and lsn >= before > self.given_up.get(stream, -1)
        }
        if share.braked:  # the last ones are not waited for, until the slot is past where they are
            lowest = min(waits.values(), default=ZERO)
            self.given_up |= {stream: lsn for stream, lsn in waits.items() if lsn == lowest}
        late = [stream for stream, lsn in share.applied.items() if before <= (lsn or -1) < request.lsn]
        waited = [stream for stream in late if self.given_up.get(stream, -1) < before]
        checks.require(not waited, "confirmed past a stream that was waited for:", waited, request, share)
        self.counts["the slot went past a stream"] += bool(late)
        self.counts["the slot followed the streams"] += request.lsn > before
        stream.slot.confirmed = max(before, request.lsn)
