"""What adoption writes into `bridge.applied` covers the rows that are applied, and none of the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.repair.adopt import Adoption

ROWS = st.sets(st.tuples(st.integers(3, 12), st.integers(-1, 5)), max_size=30)


@given(applied=ROWS, others=ROWS)
def test_a_list_covers_no_row_that_is_left(
    applied: set[tuple[int, int]], others: set[tuple[int, int]]
) -> None:
    """seq may be a version per aggregate: a list has every seq for every xid of it."""
    left = others - applied
    lists = Adoption("s", "why", applied=sorted(applied), left=sorted(left)).lists()
    covered = {row for row in applied | left for xids, seqs in lists if row[0] in xids and row[1] in seqs}
    assert covered == applied


def test_rows_with_a_seq_of_their_own_are_listed_together() -> None:
    applied = [(700 + n, n) for n in range(25_000)]
    lists = Adoption("s", "why", applied=applied, left=[(700, 30_000)]).lists()
    assert [len(xids) for xids, _ in lists] == [10_000, 10_000, 5_000]
