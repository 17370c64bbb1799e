"""What the model, or whoever read it, found in the protocol over a log, each as the shortest story that tells it."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from bridge.errors import Halt
from bridge.protocol import relay, requests
from bridge.protocol.chain import Chain, Frame, Origin, Verdict
from bridge.protocol.events import Batch, Event, Lsn, Snapshot, after
from bridge.protocol.facts import Ledger, Mode, Registration, RelayFacts, SlotFacts, SourceFacts
from bridge.protocol.preflight import judge
from bridge.protocol.requests import Shared
from tests.model import checks, faults, log_faults, log_walk
from tests.model.lanes import Lane, Site
from tests.model.relays import Relays
from tests.model.simulation import SLOT
from tests.model.test_found import Steady

ORIGIN = Origin(1, "life", 2)


def steady() -> tuple[Site, Lane, Relays]:
    """A target with two partitions; the first one's stream."""
    site = Site(Steady(), 2)
    lane = Lane(site, "a", 1)
    Lane(site, "a", 2)
    return site, lane, Relays(site)


def at_rest(site: Site) -> None:
    log_walk.run_until_idle(site)
    for lane in site.lanes:
        assert lane.halted is None
        checks.promise(lane)
        assert lane.target.ledger is not None
        assert lane.target.ledger.mode is Mode.STREAM


# --- the chain --------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [Origin(2, "life", 2), Origin(1, "other", 2), Origin(1, "life", 3)])
def test_a_frame_of_another_origin_says_nothing(other: Origin) -> None:
    chain = Chain(ORIGIN, 1, Lsn(100))
    assert chain.judge(Frame(ORIGIN, 1, Lsn(100), Lsn(200))) is Verdict.TAKE
    assert chain.judge(Frame(other, 1, Lsn(100), Lsn(200))) is Verdict.VOID
    assert chain.judge(Frame(ORIGIN, 2, Lsn(100), Lsn(200))) is Verdict.VOID


def test_a_frame_that_ends_before_an_open_transaction_is_passed_over() -> None:
    """Of a relay that is behind. The first part said that nothing lies between."""
    chain = Chain(ORIGIN, 1, Lsn(100))
    part = Frame(ORIGIN, 1, Lsn(100), Lsn(0), rows=2, commit=Lsn(300), is_open=True)
    chain.took(part)
    assert chain.judge(Frame(ORIGIN, 1, Lsn(100), Lsn(200))) is Verdict.SKIP
    assert chain.judge(Frame(ORIGIN, 1, Lsn(100), Lsn(316))) is Verdict.GAP
    assert chain.judge(part) is Verdict.SKIP
    assert chain.judge(replace(part, offset=2)) is Verdict.TAKE


def _event(number: int) -> Event:
    name = str(number).encode()
    return Event(name, name, name, b"t", None, b"{}", None, None, None)


def test_a_batch_of_two_frames_that_overlap_has_each_transaction_once() -> None:
    """Whoever reads ahead puts both into one batch."""
    order = (1, 2, 3, 2, 3, 4)
    batch = Batch(
        events=[_event(number) for number in order],
        xids=list(order),
        end_lsns=[Lsn(number * 100) for number in order],
        commit_times=list(order),
        commit_rows=[1] * len(order),
        end_lsn=Lsn(400),
    )
    once = after(batch, Lsn(100))
    assert [event.id for event in once.events] == [b"2", b"3", b"4"]
    assert (once.xids, once.end_lsns, once.commit_times, once.commit_rows) == (
        [2, 3, 4],
        [200, 300, 400],
        [2, 3, 4],
        [1, 1, 1],
    )


def test_the_position_of_a_batch_is_its_greatest_end() -> None:
    """The last frame of a batch may be the older one."""
    batch = Batch([_event(2), _event(1)], [2, 1], [Lsn(200), Lsn(100)], [2, 1], [1, 1], end_lsn=Lsn(100))
    once = after(batch, Lsn(0))
    assert (once.end_lsns, once.end_lsn) == ([200], 200)


# --- where a stream goes on -------------------------------------------------------------------------


def _facts(slot: int, confirmed: int | None) -> tuple[Ledger, SourceFacts, Registration]:
    """A stream that applied up to 100 and knows that nothing of it lies before 200."""
    floor = Snapshot(10, 10)
    ledger = Ledger(
        "s", 1, "", Mode.STREAM, "system", "db", 1, 1, "pub", 3, Lsn(100), Lsn(200), floor, Lsn(90),
        witness_id="e", witness_xid=12,
    )  # fmt: skip
    source = SourceFacts(
        "system", 1, Lsn(500), "pub", SlotFacts("r_3", Lsn(slot), active=True, usable=True),
        database="db", database_oid=1, life="new", relay=RelayFacts(3, 2, "pub", ready=True),
    )  # fmt: skip
    row = Registration(
        "s",
        "target",
        "db",
        None,
        floor,
        "e",
        Lsn(95),
        "",
        "r",
        3,
        None if confirmed is None else Lsn(confirmed),
    )
    return ledger, source, row


def _judge(slot: int, confirmed: int | None, *, witness: bool = True) -> tuple[str | None, Lsn]:
    ledger, source, row = _facts(slot, confirmed)
    source = replace(source, witness_present=witness)
    judgement = judge(ledger, source, row, slot_wanted=True, partitions=2)
    return judgement.catch_up, judgement.ledger.safe_lsn


def test_an_idle_advance_counts_as_far_as_this_source_knows_it() -> None:
    """The source may be an older copy, whose slot went on without this stream."""
    assert _judge(slot=180, confirmed=200) == (None, 200)
    assert _judge(slot=180, confirmed=190) == (None, 190)
    assert _judge(slot=180, confirmed=140)[0] == "slot_advanced"
    assert _judge(slot=180, confirmed=None)[0] == "slot_advanced"
    assert _judge(slot=90, confirmed=None) == (None, 100)


def test_a_slot_that_others_move_is_no_proof_of_a_streams_history() -> None:
    assert _judge(slot=150, confirmed=160, witness=False) == (None, 160)
    for slot, confirmed in ((150, 140), (100, 90), (100, None)):
        with pytest.raises(Halt, match="no slot of ours") as halted:
            _judge(slot, confirmed, witness=False)
        assert halted.value.reason == "witness_missing"


def test_a_stream_follows_a_relay_that_began_again() -> None:
    """Nothing ends its connections, and all that comes is of another incarnation."""
    site, _, relays = steady()
    at_rest(site)
    log_faults.drop_slot_of_a_relay(relays)
    at_rest(site)


def test_a_stream_that_polls_leaves_the_relays_slot_to_others() -> None:
    site, lane, relays = steady()
    at_rest(site)
    lane.capture = "poll"
    log_walk.crash_all(lane)
    for _ in range(60):
        if not lane.bridges:
            lane.start_bridge()
        lane.step(lane.bridges[0])
    assert lane.target.ledger is not None
    assert lane.target.ledger.mode is Mode.POLL
    assert list(relays.source.slots) == [f"{SLOT}_1"]


def test_a_part_that_the_log_lost_comes_again() -> None:
    """The log has the parts around it for ever: a session that ended there would end there again."""
    site, _, relays = steady()
    at_rest(site)
    relays.source.next_xid += -relays.source.next_xid % 3
    relays.emit(2, -1, -1, -1, -1, -1, -1, -1)
    for _ in range(40):
        if any(entry.frame.offset for entries in site.log.entries.values() for entry in entries):
            break
        relays.step(relays.bridges[0])
    log_faults.lose_a_part(relays)
    assert site.counts["a part was lost"]
    at_rest(site)


# --- the relay --------------------------------------------------------------------------------------


def test_what_a_slot_was_moved_past_is_not_taken_for_visible() -> None:
    site, lane, relays = steady()
    at_rest(site)
    log_walk.crash_all(relays)
    log_walk.crash_all(lane)
    while relays.dead_readers:
        faults.reader_noticed(relays)
    hidden = relays.source.begin()
    relays.insert(hidden, 2)  # of the first partition
    relays.record(hidden)
    faults.advance_slot(relays)
    for _ in range(200):
        for member in (relays, lane):
            if not member.bridges:
                member.start_bridge()
            member.step(member.bridges[0])
    assert lane.target.ledger is not None
    assert lane.target.ledger.mode is Mode.CATCHUP  # no look yet
    relays.source.leave(hidden)
    at_rest(site)


def _relay() -> relay._Relay:
    return relay._Relay(relay.RelaySettings("r", "me", 1), RelayFacts(1, 1, "pub", ready=True, session="me"))


def _confirm(one: relay._Relay, applied: dict[str, int], *, braked: bool = False) -> int:
    asking = one.confirm(Lsn(10_000))
    assert isinstance(next(asking), requests.ReadShare)
    streams = {stream: Lsn(lsn) for stream, lsn in applied.items()}
    told = asking.send(Shared("me", streams, braked))
    assert isinstance(told, requests.Confirm)
    return told.lsn


def test_a_stream_that_was_given_up_and_came_back_is_waited_for() -> None:
    one = _relay()
    one.looks = deque([Lsn(1000)])
    for _ in range(relay.STUCK_LOOKS + 1):
        assert _confirm(one, {"a": 100, "b": 300}) == 100
    assert _confirm(one, {"a": 100, "b": 300}, braked=True) == 300
    assert _confirm(one, {"a": 100, "b": 350}) == 350  # it is behind
    assert _confirm(one, {"a": 400, "b": 500}) == 400


def test_streams_that_move_keep_a_slot_that_retains_much() -> None:
    one = _relay()
    one.looks = deque([Lsn(5000)])
    for lsn in range(100, 1000, 100):
        assert _confirm(one, {"a": lsn, "b": lsn}, braked=True) == lsn


def test_a_slot_stays_behind_the_looks_that_a_stream_may_have_found() -> None:
    site, relays = Site(Steady(), 1), None
    relays = Relays(site)
    relays.start_bridge()
    slots = relays.source.slots
    for _ in range(300):
        relays.step(relays.bridges[0])
        relays.source.other_wal(8)
        looks = [entry.frame.look.lsn for entry in site.log.entries[1] if entry.frame.look is not None]
        if slots and len(looks) >= relay.KEPT_LOOKS:
            assert next(iter(slots.values())).confirmed <= looks[-relay.KEPT_LOOKS]
    assert next(iter(slots.values())).confirmed >= looks[-2 * relay.KEPT_LOOKS]  # and follows them
