"""Which statement a batch becomes: rows of one event each go in as new ones until some turn out to be there."""

from __future__ import annotations

import pytest
from psycopg import sql

from bridge.planning.plan import Column, Planned, TableShape, Write
from bridge.planning.spec import TableSpec
from bridge.postgres.write import compile_write
from bridge.protocol.events import Batch, Event
from bridge.stream.planned import encode

SHAPE = TableShape("s", "t", {"id": Column("id", "text", "text"), "n": Column("n", "integer", "other")})


def statement(key: str, columns: dict[str, str], met: set[tuple[str, str]]) -> bytes:
    event = Event(b"a", b"1", b"1", b"t", None, b"{}", None, None, None)
    spec = TableSpec("d", "warehouse", "s", "t", mode="upsert", key=(key,), columns=columns)
    write = Write("p", spec, SHAPE, ("id", "n"), [event], [[b"a"], [b"1"]], [0])
    _, found = encode("stream", Batch(events=[event]), Planned(writes=[write]), met).effects
    return found.text


@pytest.mark.parametrize(
    ("key", "columns", "met", "plain"),
    [
        ("id", {"id": "$meta.id", "n": "$event.n"}, set(), True),
        ("id", {"id": "$meta.id", "n": "$event.n"}, {("p", "d")}, False),
        ("id", {"id": "$meta.id", "n": "$event.n"}, {("p", "another")}, True),
        ("n", {"id": "$meta.id", "n": "$event.n"}, set(), False),
        ("id", {"id": "$event.id", "n": "$event.n"}, set(), False),
    ],
)
def test_only_what_has_the_event_for_its_key_is_taken_for_new(
    key: str, columns: dict[str, str], met: set[tuple[str, str]], plain: bool
) -> None:
    assert (b"on conflict" not in statement(key, columns, met)) == plain


def test_a_columns_name_is_composed_once_for_any_number_of_statements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thousands of sets of fields in a batch must not keep the thread from answering the source."""
    names = [f"column {n}" for n in range(12)]
    shape = TableShape("s", "t", {name: Column(name, "text", "text") for name in names})
    spec = TableSpec("d", "warehouse", "s", "t", mode="upsert", key=(names[0],), columns=None)
    composed: list[str] = []
    compose = sql.Identifier.as_string
    monkeypatch.setattr(
        sql.Identifier,
        "as_string",
        lambda one, *context: composed.append(repr(one)) or compose(one, *context),
    )
    texts = {
        compile_write(spec, shape, some, ["text"] * len(some))
        for n in range(2, len(names))
        for some in ([names[0], *names[at : at + n]] for at in range(1, len(names) - n))
    }
    own = [one for one in composed if "column" in one]
    assert len(texts) > 40
    assert sorted(own) == sorted(set(own))
