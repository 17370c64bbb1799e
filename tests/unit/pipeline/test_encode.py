"""Which statement a batch becomes: rows of one event each go in as new ones until some turn out to be there."""

from __future__ import annotations

import pytest

from bridge.planning.plan import Column, Planned, TableShape, Write
from bridge.planning.spec import TableSpec
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
