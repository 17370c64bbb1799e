"""Which rows went back in seq, whenever the source is looked at between them."""

from __future__ import annotations

from itertools import product

from bridge.protocol.events import Batch, Bound, Event, SeqOrder, Snapshot


def _batch(*rows: tuple[int, int]) -> Batch:
    """rows: (xid, seq)."""
    events = [
        Event(b"%d-%d" % row, b"%d" % row[1], b"%d" % row[0], b"t", None, b"{}", None, None, None)
        for row in rows
    ]
    return Batch(events, xids=sorted({xid for xid, _ in rows}))


def _behind(order: SeqOrder, batch: Batch) -> list[int]:
    found = [int(one.event.xid) for one in order.behind(batch)]
    order.learn(batch)
    return found


def test_a_row_is_behind_however_often_the_source_was_looked_at() -> None:
    """100 is seen; the sequence restarts; 101 is given a new seq and seen before 102, which committed next to it."""
    for looks in product([False, True], repeat=2):
        order = SeqOrder()
        assert _behind(order, _batch((100, 21))) == []
        order.seen(Snapshot(101, 101))
        assert [one.bound.seq for one in order.behind(_batch((101, 1)))] == [21]
        order.learn(_batch((101, 22)))
        for look in looks:
            if look:
                order.seen(Snapshot(103, 103))
        assert [(one.event.seq, one.bound.seq) for one in order.behind(_batch((102, 2)))] == [(b"2", 21)], (
            looks
        )
        assert order.greatest == 22


def test_a_row_that_was_open_beside_a_greater_seq_is_not_behind() -> None:
    order = SeqOrder()
    _behind(order, _batch((100, 21)))
    order.seen(Snapshot(101, 101))
    assert _behind(order, _batch((102, 23))) == []
    order.seen(Snapshot(101, 103, frozenset({101})))
    assert _behind(order, _batch((101, 22))) == []
    assert _behind(order, _batch((103, 23))) == [103]


def test_what_is_not_visible_yet_is_no_bound() -> None:
    order = SeqOrder()
    _behind(order, _batch((100, 21)))
    order.seen(Snapshot(100, 100))
    assert _behind(order, _batch((100, 20))) == []


def test_the_bound_of_the_ledger_stays_beside_later_ones() -> None:
    order = SeqOrder()
    order.begin([Bound(101, 21, exact=False), Bound(103, 21, exact=True)])
    order.learn(_batch((105, 30)))
    order.seen(Snapshot(106, 106))
    found = {
        (int(one.event.xid), one.bound.exact)
        for one in order.behind(_batch((102, 3), (104, 3), (106, 4), (100, 5)))
    }
    assert found == {(102, False), (104, True), (106, True)}


def test_old_bounds_are_thinned_and_never_wrong() -> None:
    order, rounds = SeqOrder(), 3 * SeqOrder.KEPT
    for n in range(1, rounds):
        assert _behind(order, _batch((n, n))) == []
        order.seen(Snapshot(n + 1, n + 1))
    every = _batch(*((n, n) for n in range(1, rounds)))
    assert order.behind(every) == []
    late = _batch(*((n, 1) for n in range(1, rounds)))
    found = {int(one.event.xid): one.bound.seq for one in order.behind(late)}
    assert all(seq < xid for xid, seq in found.items())
    assert found[rounds - 1] == rounds - 2
    assert found.keys() >= set(range(rounds - SeqOrder.KEPT // 2, rounds))
