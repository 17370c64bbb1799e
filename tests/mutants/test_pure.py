"""Positions and preflight without a server: what only one line of the core decides."""

from __future__ import annotations

from dataclasses import replace
from struct import pack

from bridge.errors import Halt
from bridge.protocol.events import Lsn, Snapshot
from bridge.protocol.facts import Ledger, Mode, Registration, SlotFacts, SourceFacts
from bridge.protocol.preflight import judge
from bridge.stream.decode import Decoder
from tests.unit.test_pgoutput import NAMES, begin, commit, event, insert, relation


def decoder() -> Decoder:
    made = Decoder("outbox", "event", NAMES, max_events=100, max_bytes=1 << 20)
    made.feed([relation(list(NAMES))])
    return made


def keepalive(end: int) -> bytes:
    return b"k" + pack("!QQB", end, 0, 0)


def test_a_transactions_position_is_just_behind_its_commit_record() -> None:
    stream = decoder()
    stream.feed([begin(701), insert(list(event(1))), commit(0x2000)])  # its commit record is at 0x1ff8
    batch = stream.take()
    assert batch is not None
    assert (batch.end_lsn, batch.end_lsns) == (0x2000, [0x2000])


def test_a_keepalives_position_covers_nothing_that_waits_to_be_handed_out() -> None:
    stream = decoder()
    stream.feed([begin(701), insert(list(event(1))), keepalive(0x1000)])
    assert not stream.drained  # in the middle of a transaction
    stream.feed([commit(0x2000), begin(702), commit(0x3000), keepalive(0x4000)])
    assert stream.wal_end == 0x4000
    assert not stream.drained  # an empty transaction and a keepalive, behind one with an event
    assert stream.take() is not None
    assert stream.drained


FLOOR = Snapshot(100, 100)
LEDGER = Ledger(
    "s",
    1,
    "00000000-0000-0000-0000-000000000000",
    mode=Mode.STREAM,
    system_identifier="1",
    timeline=1,
    publication="p",
    incarnation=1,
    applied_lsn=Lsn(5000),
    safe_lsn=Lsn(5000),
    floor=FLOOR,
    floor_lsn=Lsn(900),
    witness_id="w",
    witness_xid=90,
)
SOURCE = SourceFacts(
    system_identifier="1",
    timeline=1,
    flush_lsn=Lsn(6000),
    publication="p",
    slot=SlotFacts("s_1", Lsn(800), active=False, usable=True),
)
REGISTRATION = Registration("s", "2", "db", "s_1", FLOOR, "w", Lsn(900))


def halted(source: SourceFacts) -> str | None:
    """Why preflight halts; None: it does not."""
    try:
        judge(LEDGER, source, REGISTRATION, slot_wanted=True)
    except Halt as halt:
        return halt.reason
    return None


def test_a_source_whose_wal_ends_before_what_was_applied_halts() -> None:
    """Also where the witness and the registry have nothing to say."""
    assert halted(SOURCE) is None
    assert halted(replace(SOURCE, flush_lsn=Lsn(4000))) == "source_behind"


def test_another_cluster_has_its_own_reason_whatever_else_is_missing_there() -> None:
    stranger = replace(
        SOURCE, system_identifier="7", publication=None, witness_present=False, flush_lsn=Lsn(1)
    )
    assert halted(stranger) == "other_system"
    assert halted(replace(stranger, system_identifier="1")) == "publication_missing"


def test_an_old_idle_advance_is_not_what_a_new_session_may_acknowledge() -> None:
    """The slot went back in a crash of the source: what lies between may be other transactions by now."""
    advanced = replace(LEDGER, safe_lsn=Lsn(5900))
    behind, ahead = (
        replace(SOURCE, slot=replace(SOURCE.slot, confirmed_flush=Lsn(lsn))) if SOURCE.slot else SOURCE
        for lsn in (800, 5600)
    )
    for source, safe in ((behind, 5000), (ahead, 5600)):
        judged = judge(advanced, source, REGISTRATION, slot_wanted=True)
        assert (judged.catch_up, judged.ledger.safe_lsn) == (None, safe)


def test_a_promotion_from_below_an_idle_advance_takes_the_advance_back() -> None:
    """Nothing applied is lost, and yet the WAL between applied_lsn and safe_lsn is another one now."""
    advanced = replace(LEDGER, safe_lsn=Lsn(5900))
    promoted = replace(SOURCE, timeline=2, switch_points={1: Lsn(5500)})
    judged = judge(advanced, promoted, REGISTRATION, slot_wanted=True)
    assert judged.catch_up == "promoted"
    assert (judged.ledger.timeline, judged.ledger.safe_lsn) == (2, 5000)
    beyond = replace(promoted, switch_points={1: Lsn(5900)})
    judged = judge(advanced, beyond, REGISTRATION, slot_wanted=True)
    assert judged.catch_up is None
