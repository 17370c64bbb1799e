"""Order of writes: whatever arrange() gives, run statement by statement, ends as the events one by one."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.planning.plan import Write, arrange
from bridge.planning.spec import TableSpec
from tests.unit.pipeline.samples import event, shape

SHAPE = shape(k="text", v="text", a="text", b="text")
Row = dict[str, bytes | None]


def write(
    rows: list[tuple[int, Row]],
    names: tuple[str, ...],
    *,
    version: bool = False,
    mode: str = "upsert",
    plan: int = 0,
) -> Write:
    """rows: (place in the batch, columns)."""
    mapping = {name: f"$event.{name}" for name in names}
    spec = TableSpec(
        f"d{plan}",
        "warehouse",
        "events",
        "t",
        mode,  # type: ignore[arg-type]  # a literal
        ("k",),
        "$event.v" if version else None,
        mapping,
    )
    columns = [[row.get(name) for _, row in rows] for name in names]
    return Write(
        f"p{plan}", spec, SHAPE, names, [event({}, place) for place, _ in rows], columns, [p for p, _ in rows]
    )


def apply(table: list[Row], one: Row, *, version: bool) -> None:
    """What one upsert of one row does (PostgreSQL manual, INSERT ... ON CONFLICT): null never conflicts."""
    for row in table:
        if row["k"] == one["k"] is not None:
            if not version or newer(row.get("v"), one.get("v")):
                row.update(one)
            return
    table.append(dict(one))


def newer(old: bytes | None, new: bytes | None) -> bool:
    """target.version < excluded.version, unknown where one is null."""
    return old is not None and new is not None and Decimal(old.decode()) < Decimal(new.decode())


def contents(table: list[Row]) -> list[list[tuple[str, bytes | None]]]:
    return sorted((sorted(row.items()) for row in table), key=repr)


texts = st.one_of(st.none(), st.sampled_from([b"1", b"2", b"10"]))
batches = st.lists(
    st.tuples(
        st.integers(0, 2), texts, st.one_of(st.none(), st.sampled_from([b"1", b"9", b"10", b"1.5"])), texts
    ),
    max_size=14,
)
PLANS = (("k", "v", "a"), ("k", "v", "b"), ("k", "v", "a", "b"))


@settings(max_examples=500)
@given(batches, st.booleans())
def test_arranged_writes_end_as_the_events_one_by_one(
    rows: list[tuple[int, bytes | None, bytes | None, bytes | None]], version: bool
) -> None:
    plans: list[list[tuple[int, Row]]] = [[], [], []]
    expected: list[Row] = []
    for place, (plan, key, number, text) in enumerate(rows):
        row = {name: {"k": key, "v": number}.get(name, text) for name in PLANS[plan]}
        plans[plan].append((place, row))
        apply(expected, row, version=version)
    writes = [
        write(entries, PLANS[plan], version=version, plan=plan)
        for plan, entries in enumerate(plans)
        if entries
    ]
    found: list[Row] = []
    for statement in arrange(writes):
        keys = [key for key in statement.columns[0] if key is not None]
        assert len(set(keys)) == len(keys), "Postgres refuses a key twice in one upsert (21000)"
        for values in zip(*statement.columns, strict=True):
            apply(found, dict(zip(statement.names, values, strict=True)), version=version)
    assert contents(found) == contents(expected)


def test_keys_that_do_not_meet_leave_the_writes_as_they_are() -> None:
    one = write([(0, {"k": b"1"}), (1, {"k": b"2"})], ("k", "a"))
    assert arrange([one]) == [one]
    assert arrange([one])[0] is one


def test_two_plans_of_one_table_stay_two_statements_when_no_key_is_shared() -> None:
    first = write([(0, {"k": b"1"}), (2, {"k": b"3"})], ("k", "a"), plan=0)
    second = write([(1, {"k": b"2"}), (3, {"k": b"4"})], ("k", "b"), plan=1)
    assert [len(w.events) for w in arrange([first, second])] == [2, 2]


def test_a_version_that_is_no_number_is_left_to_the_server() -> None:
    rows: list[tuple[int, Row]] = [(0, {"k": b"1", "v": b"2027-01-01"}), (1, {"k": b"1", "v": b"2026-01-01"})]
    arranged = arrange([write(rows, ("k", "v"), version=True)])
    assert [len(w.events) for w in arranged] == [1, 1]


def test_of_two_plans_that_insert_one_key_the_earlier_event_is_first() -> None:
    first = write([(1, {"k": b"1"})], ("k", "a"), mode="insert", plan=0)
    second = write([(0, {"k": b"1"}), (2, {"k": b"2"})], ("k", "b"), mode="insert", plan=1)
    runs = arrange([first, second])
    places = [[(w.places[n], w.columns[0][n]) for n in range(len(w.events))] for w in runs]
    assert [place for run in places for place, key in run if key == b"1"] == [0, 1]


def test_inserts_keep_every_row() -> None:
    same = write([(0, {"k": b"1"}), (1, {"k": b"1"})], ("k", "a"), mode="insert")
    assert arrange([same])[0].events == same.events
