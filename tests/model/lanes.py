"""The simulation with a log: one source, a relay (or two), and a stream for each partition of each target.

Each stream is a simulation of its own (simulation.py) over one source that all of them share. docs/guarantees.md,
"Over a log".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from random import Random
from typing import Any

from bridge.errors import Fenced, Retry
from bridge.protocol import requests, session
from bridge.protocol.chain import Chain, Verdict
from bridge.protocol.events import ZERO, Batch, Lsn
from bridge.protocol.facts import Mode
from bridge.protocol.preflight import StreamSettings
from bridge.protocol.requests import MissingRows, Received, Request
from tests.model import checks
from tests.model.log import Ends, Entry, Log, Reader
from tests.model.simulation import SLOT, Bridge, Simulation, event_of, said
from tests.model.source import Row, Source


class Site:
    """What the streams and the relays share."""

    def __init__(self, rng: Random, partitions: int) -> None:
        self.rng = rng
        self.partitions = partitions
        self.log = Log(partitions)
        self.counts: Counter[str] = Counter()
        self.members: list[Member] = []
        self.shared: dict[str, Any] = {"source": Source()}

    @property
    def lanes(self) -> list[Lane]:
        return [each for each in self.members if isinstance(each, Lane)]

    def partition(self, row: Row) -> int:
        """By its key, so that keys keep their order; else by its id."""
        number = row.key if row.key is not None and row.key > 0 else int(row.id[1:])
        return number % self.partitions + 1


def _shared(name: str, *, first: bool = False) -> Any:
    """An attribute that all members have in common. first: the one of the first member stays."""

    def read(self: Member) -> Any:
        return self.site.shared[name]

    def write(self: Member, value: Any) -> None:
        if self.begun:
            self.site.shared[name] = value
        else:
            self.site.shared.setdefault(name, value)

    return property(read, write)


class Member(Simulation):
    """A stream or the relays, over the source that all share."""

    begun = False
    asks_source: frozenset[str] = frozenset()  # with what it asks the source, beside all others
    source = _shared("source")
    source_generation = _shared("source_generation")
    source_copies = _shared("source_copies")
    dead_readers = _shared("dead_readers")
    clock = _shared("clock")
    serial = _shared("serial")
    births = _shared("births")
    histories = _shared("histories")
    deleted = _shared("deleted")
    two_phase = _shared("two_phase")
    calm = _shared("calm")
    failing = _shared("failing")
    stopping = _shared("stopping")

    def __init__(self, site: Site, *, since: str | None = None) -> None:
        self.site = site
        super().__init__(site.rng, since=since)
        self.counts = site.counts
        self.begun = True
        site.members.append(self)

    def perform(self, bridge: Bridge, request: Request[Any]) -> Any:
        if type(request).__name__ in self.asks_source and bridge.source_generation != self.source_generation:
            raise Retry("the source connection is gone")
        return super().perform(bridge, request)

    def reads_on(self, bridge: Bridge) -> bool:
        """Is it past its start?"""
        return bridge.stream is not None

    def source_replaced(self, *, lost: bool) -> None:
        for member in self.site.members:
            Simulation.source_replaced(member, lost=lost)

    def recorded(self) -> None:
        for member in self.site.members:
            Simulation.recorded(member)


class Lane(Member):
    """The stream of one partition of one target."""

    asks_source = frozenset({"FindLook", "Confirm"})

    def __init__(self, site: Site, target: str, partition: int, *, since: str | None = None) -> None:
        self.stream = f"{target}.{partition}of{site.partitions}"
        self.partition = partition
        self.readers: dict[Bridge, Reader] = {}
        self.too_late: set[str] = set()  # rows that were pruned before the stream was registered
        super().__init__(site, since=since)

    def owns(self, row: Row) -> bool:
        return self.site.partition(row) == self.partition and row.id not in self.too_late

    def protocol(self, name: str) -> Generator[Request[Any], Any, None]:
        settings = StreamSettings(
            stream=self.stream,
            slot=SLOT,
            session=name,
            capture=self.capture,
            since=self.since,
            partitions=self.site.partitions,
        )
        return session.session(settings)

    def reads_on(self, bridge: Bridge) -> bool:
        return bridge in self.readers

    @property
    def entries(self) -> list[Entry]:
        return self.site.log.entries[self.partition]

    # --- performing ---------------------------------------------------------------------------

    def do_DropSlot(self, bridge: Bridge, request: requests.DropSlot) -> None:
        raise checks.Violation(f"a stream drops the relay's slot: {request}")

    def do_Register(self, bridge: Bridge, request: requests.Register) -> None:
        if self.registration is None:
            self.too_late |= self.source.pruned_ids
        super().do_Register(bridge, request)

    def do_FindLook(self, bridge: Bridge, request: requests.FindLook) -> requests.Seen:
        bridge.idle += 1
        look = self.site.log.look(request.origin, self.partition)
        if look is not None and not self.calm and self.chance(0.1):
            look = None
        self.counts["waited for a look"] += look is None
        return requests.Seen(self.source.relay, look)

    def do_OpenStream(self, bridge: Bridge, request: requests.OpenStream) -> None:
        assert request.origin is not None
        end = len(self.entries)
        index = end if self.chance(0.1) else 0
        self.readers[bridge] = Reader(
            Chain(request.origin, self.partition, request.start), index, request.start
        )
        self.counts["a stream over the log began"] += 1

    def do_AskAgain(self, bridge: Bridge, request: requests.AskAgain) -> None:
        if self.calm or self.chance(0.8):
            self.site.log.ask_again(self.partition, request.position)
            self.counts["asked the relay to read again"] += 1

    def do_Confirm(self, bridge: Bridge, request: requests.Confirm) -> None:
        row, ledger = self.registration, self.target.ledger
        mine = bridge.fenced_as
        if row is None or mine is None or row.session != mine.session:
            raise Fenced("another session holds the row of the registry")
        if ledger is not None and ledger.session == mine.session and ledger.mode is Mode.STREAM:
            checks.confirmable(self, bridge, request.lsn)
        if row.confirmed != request.lsn:
            self.source.registry[self.stream] = replace(row, confirmed=request.lsn)
            self.source.lsn += 8
            self.source.flush()

    def do_ReadMissing(self, bridge: Bridge, request: requests.ReadMissing) -> MissingRows:
        missing = super().do_ReadMissing(bridge, request)
        self.counts["read from the table"] += bool(missing.batch.events)
        return missing

    # --- from the log -------------------------------------------------------------------------

    def do_Receive(self, bridge: Bridge, request: requests.Receive) -> Received:
        reader = self.readers[bridge]
        settled = self.told(bridge)
        reader.index = min(reader.index, len(self.entries))
        stop = self.chance(self.stopping)
        if stop or (not reader.waiting and self.chance(0.3)):
            return Received(None, reader.position, settled, tick=stop or self.chance(0.5), stop=stop)
        if reader.waiting:
            return self.some(bridge, reader, settled)
        found = self.read_ahead(reader)
        if found == "gap":
            bridge.idle = 0
            return Received(None, reader.position, settled, gap=True)
        if isinstance(found, Entry):
            return self.part(bridge, reader, found, settled)
        if reader.waiting:
            return self.some(bridge, reader, settled)
        reader.handed_out([])
        if reader.index == len(self.entries):
            bridge.idle += 1
            reader.asked = reader.asked and self.chance(0.7)
        return Received(None, reader.position, settled, tick=self.chance(0.7))

    def read_ahead(self, reader: Reader) -> Entry | str | None:
        """Take some frames. "gap": rows are missing. An entry: a part of a transaction, which is handed out alone."""
        for verdict, entry in reader.frames(self.entries):
            frame = entry.frame
            self.counts[f"frame: {verdict.value}"] += 1
            if verdict is Verdict.GAP and not reader.asked:
                reader.asked = True
                return "gap"
            if verdict is not Verdict.TAKE:
                continue
            reader.asked = False
            if frame.commit and reader.waiting:
                reader.index -= 1
                return None
            if frame.commit:
                return entry
            self.counts["a frame overlaps what was taken"] += frame.prev < reader.chain.reached
            reader.chain.took(frame)
            reader.waiting += entry.commits
            if self.chance(0.6):
                return None
        return None

    def some(self, bridge: Bridge, reader: Reader, settled: bool) -> Received:
        """Of the transactions that wait."""
        bridge.idle, ends = 0, Ends(reader.at)
        received = self.whole(ends, reader.waiting[: self.rng.randint(1, 4)], settled)  # type: ignore[arg-type]
        reader.handed_out(ends.ends)
        return replace(received, position=reader.position)

    def part(self, bridge: Bridge, reader: Reader, entry: Entry, settled: bool) -> Received:
        """Of a transaction in parts."""
        bridge.idle = 0
        frame, (commit,) = entry.frame, entry.commits
        self.counts["a part was taken"] += 1
        reader.chain.took(frame)
        strays = [row for row in commit.rows if self.strays(row, commit)]
        batch = Batch(
            events=[event_of(row) for row in commit.rows if row not in strays],
            chunk=True,
            whole=not frame.is_open,
            strays=[said(row) for row in strays],
        )
        if batch.whole:
            batch.xids, batch.end_lsns, batch.end_lsn = [commit.xid], [Lsn(commit.end)], Lsn(commit.end)
            batch.commit_rows = [len(batch.events)]
            reader.at = max(reader.at, frame.end)
        return Received(batch, reader.position, settled, tick=self.chance(0.3))


__all__ = ["ZERO", "Lane", "Member", "Site"]
