"""What an event does not say is not written, whatever stands beside it in the batch (configuration.md)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from bridge.planning.destination import Table
from bridge.planning.plan import Column, TableShape, Write
from bridge.planning.rows import Rows
from bridge.planning.spec import TableSpec
from tests.unit.pipeline.samples import event

SHAPE = TableShape(
    "s",
    "t",
    {
        "id": Column("id", "text", "text", not_null=True),
        "a": Column("a", "text", "text", has_default=True),
        "c": Column("c", "text", "text"),
    },
)
EVERY: list[dict[str, Any]] = [
    {"id": "1", **fields}
    for fields in ({}, {"a": "x"}, {"a": None}, {"c": "y"}, {"a": "x", "c": None}, {"a": None, "c": "y"})
]
EXPLICIT = {"id": "$event.id", "a": "$event.a", "c": "$event.c"}


def said(writes: list[Write]) -> dict[int, dict[str, bytes | None]]:
    """Place of the event -> column -> text, of the columns that are written."""
    found = {}
    for write in writes:
        for row, place in enumerate(write.places):
            found[place] = {
                name: column[row] for name, column in zip(write.names, write.columns, strict=True)
            }
    return found


def written(documents: list[dict[str, Any]], mode: Any, columns: dict[str, str] | None) -> list[Write]:
    spec = TableSpec("d", "w", "s", "t", mode=mode, key=("id",) if mode == "upsert" else (), columns=columns)
    events = [event(document, number) for number, document in enumerate(documents, 1)]
    return Table("p", spec, SHAPE).writes(Rows(list(range(len(events))), events, documents))


@pytest.mark.parametrize("columns", [None, EXPLICIT])
@pytest.mark.parametrize("mode", ["insert", "upsert"])
def test_an_event_is_written_alone_as_beside_any_other(mode: str, columns: dict[str, str] | None) -> None:
    alone = [said(written([document], mode, columns))[0] for document in EVERY]
    for pair in itertools.product(range(len(EVERY)), repeat=2):
        beside = said(written([EVERY[n] for n in pair], mode, columns))
        for place, n in enumerate(pair):
            assert meaning(beside[place], mode) == meaning(alone[n], mode)


def meaning(row: dict[str, bytes | None], mode: str) -> dict[str, bytes | None]:
    """An insert without a column that has no default is one with null."""
    return row if mode == "upsert" else {"c": None, **row}


@pytest.mark.parametrize("columns", [None, EXPLICIT])
def test_null_is_written_and_absent_is_not(columns: dict[str, str] | None) -> None:
    rows = said(written([{"id": "1", "a": None}, {"id": "2"}, {"id": "3", "c": None}], "upsert", columns))
    assert rows == {0: {"id": b"1", "a": None}, 1: {"id": b"2"}, 2: {"id": b"3", "c": None}}


@pytest.mark.parametrize("columns", [None, EXPLICIT])
def test_an_upsert_always_writes_its_key(columns: dict[str, str] | None) -> None:
    assert said(written([{"c": "y"}], "upsert", columns)) == {0: {"id": None, "c": b"y"}}


def test_an_event_without_any_column_is_a_row_of_defaults() -> None:
    shape = TableShape("s", "t", {"a": SHAPE.columns["a"]})
    spec = TableSpec("d", "w", "s", "t")
    rows = Rows([0], [event({"z": 1})], [{"z": 1}])
    [write] = Table("p", spec, shape).writes(rows)
    assert (write.names, write.columns, len(write.events)) == ((), [], 1)
