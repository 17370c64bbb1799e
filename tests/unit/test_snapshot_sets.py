"""Intersection and union of snapshots, against the definition: what each of them shows."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.protocol.events import Snapshot, intersection, union

XIDS = range(3, 20)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    xmax = draw(st.integers(3, 16))
    hidden = draw(st.frozensets(st.integers(3, xmax - 1))) if xmax > 3 else frozenset()
    return Snapshot(min(hidden, default=xmax), xmax, hidden)


def shown(snapshot: Snapshot) -> set[int]:
    return {xid for xid in XIDS if snapshot.shows(xid)}


@given(st.lists(snapshots(), min_size=1, max_size=4))
def test_an_intersection_shows_what_all_show(every: list[Snapshot]) -> None:
    assert shown(intersection(every)) == set.intersection(*map(shown, every))


@given(snapshots(), snapshots())
def test_a_union_shows_what_either_shows(one: Snapshot, other: Snapshot) -> None:
    assert shown(union(one, other)) == shown(one) | shown(other)
