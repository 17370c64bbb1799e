"""What was applied already, row by row, as bridge.applied remembers it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.protocol.events import NOTHING, Batch, Done, Event, Lsn, Seqs, Snapshot, listed


@given(st.sets(st.integers(-5, 30)))
def test_a_set_of_seqs_survives_its_text_and_holds_what_was_put_in(seqs: set[int]) -> None:
    made = Seqs.parse(str(Seqs.of(seqs)))
    assert {seq for seq in range(-10, 40) if seq in made} == seqs


@given(st.lists(st.sets(st.integers(-5, 30))))
def test_chunks_together_hold_what_each_of_them_held(chunks: list[set[int]]) -> None:
    made = Seqs.together(map(Seqs.of, chunks))
    assert {seq for seq in range(-10, 40) if seq in made} == set().union(*chunks)
    assert str(made) == str(Seqs.of(set().union(*chunks)))


def test_rows_of_one_producer_are_one_run() -> None:
    assert str(Seqs.of(range(1, 1_000_001))) == "{[1,1000001)}"
    assert str(Seqs.of([3, 1, 2, 7])) == "{[1,4),[7,8)}"


def event(xid: int, seq: int) -> Event:
    return Event(b"id", b"%d" % seq, b"%d" % xid, b"t", None, b"{}", None, None, None)


def test_only_the_rows_that_were_applied_are_left_out_of_a_transaction() -> None:
    batch = Batch(
        events=[event(5, 1), event(5, 2), event(6, 3), event(7, 4)],
        xids=[5, 6, 7],
        end_lsns=[Lsn(10), Lsn(20), Lsn(30)],
    )
    left = Done(listed([([5, 7], Seqs.of([1, 4]))]), NOTHING).without(batch)
    assert [event.seq for event in left.events] == [b"2", b"3"]
    assert (left.xids, left.end_lsns) == ([5, 6], [10, 20])


def test_the_last_chunk_names_its_transaction_though_its_rows_were_applied() -> None:
    last = Batch(events=[event(5, 2)], xids=[5], end_lsns=[Lsn(10)], chunk=True)
    left = Done(listed([([5], Seqs.of([2]))]), NOTHING).without(last)
    assert (left.events, left.xids) == ([], [5])


def test_a_batch_beyond_all_that_was_applied_is_not_looked_through() -> None:
    batch = Batch(events=[event(9, 1)], xids=[9], end_lsns=[Lsn(10)])
    assert Done({}, Snapshot(9, 9)).without(batch) is batch
