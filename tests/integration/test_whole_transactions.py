"""Rows that are read from the table are applied with their whole transaction, as a plain commit would apply them."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from typing import Any

import psycopg
import pytest

from bridge.postgres import missing
from bridge.postgres.connect import connect
from bridge.postgres.outbox import Outbox
from bridge.postgres.profiles import SOURCE_ROWS
from bridge.postgres.source import Source
from bridge.protocol.events import NOTHING
from bridge.protocol.requests import ReadMissing
from tests.support.servers import Database
from tests.support.world import Document, World

_TABLES = """
create table events.parent (id uuid primary key, name text unique);
create table events.child (
    id uuid primary key, parent text references events.parent (name) deferrable initially deferred);
grant select, insert, update on events.parent, events.child to outbox_bridge"""


def _configured(document: Document, capture: str) -> None:
    document["source"].update(capture=capture, batch={"max_events": 4})
    for name, column in (("child", "parent"), ("parent", "name")):
        columns = {"id": "$meta.id", column: f"$event.{column}"}
        table = {"connection": "warehouse", "table": f"events.{name}", "mode": "insert", "columns": columns}
        document["pipelines"][name] = {"event": name, "destinations": {"d": table}}


def _insert(connection: psycopg.Connection[Any], kind: str, **payload: str) -> None:
    statement = "insert into outbox.event (id, type, payload) values (%s, %s, %s)"
    connection.execute(statement, [uuid.uuid4(), kind, json.dumps(payload)])


@pytest.fixture(params=["slot", "poll"])
def backlog(world: World, request: pytest.FixtureRequest) -> World:
    """A stream that must read from the table what comes while it is down."""
    world.target.execute(_TABLES)
    world.configure(lambda document: _configured(document, request.param))
    bridge = world.bridge().start().wait_ready()
    world.caught_up()
    assert bridge.terminate() == 0
    if request.param == "slot":
        world.drop_slot()
    return world


def _children(world: World) -> int:
    """After the bridge has read all, with no event dead."""
    world.bridge().start().wait_ready()
    world.caught_up()
    assert world.dead_letters() == []
    return world.applied("events.child")


def test_no_batch_parts_a_child_from_the_parent_that_comes_later(backlog: World) -> None:
    """In small transactions, in one that is larger than a batch, and in two that overlap."""
    with backlog.source.connect() as one, backlog.source.connect() as other:
        for number in range(9):
            with one.transaction():
                _insert(one, "child", parent=f"p{number}")
                _insert(one, "child", parent=f"p{number}")
                _insert(one, "parent", name=f"p{number}")
        with one.transaction():
            _insert(one, "child", parent="last")
            for number in range(10):
                _insert(one, "parent", name=f"q{number}")
            _insert(one, "parent", name="last")
        with one.transaction(), other.transaction():
            for number in range(3):
                _insert(one, "child", parent=f"r{number}")
                _insert(other, "child", parent=f"s{number}")
            for number in range(3):
                _insert(one, "parent", name=f"r{number}")
                _insert(other, "parent", name=f"s{number}")
    assert _children(backlog) == 18 + 1 + 6


# --- the reader alone ---------------------------------------------------------------------------------


class Read:
    """What a reader hands out. targets: the seqs of each target transaction; chunks: how many rows came at a time."""

    def __init__(self, source: Database, most: int) -> None:
        self.targets: list[list[int]] = [[]]
        self.chunks: list[int] = []
        outbox = Outbox()
        with (
            closing(Source(source.bridge_dsn, "s", outbox, "outbox_bridge")) as control,
            connect(source.bridge_dsn, SOURCE_ROWS, "s") as reading,
        ):
            upto, _ = control.take_snapshot()
            reader, seq, inside, more = missing.MissingReader(reading, outbox, most), -1, False, True
            while more:
                found = reader.read(ReadMissing(NOTHING, upto, seq, None, inside))
                seq, more, inside = found.last_seq, found.more, not found.batch.whole
                self.chunks.append(len(found.batch.events))
                self.targets[-1] += [int(event.seq) for event in found.batch.events]
                if found.batch.whole:
                    self.targets.append([])
        assert self.targets.pop() == []

    @property
    def seqs(self) -> list[int]:
        return [seq for target in self.targets for seq in target]


def _transactions(source: Database, *sizes: int) -> None:
    for size in sizes:
        source.execute(
            "insert into outbox.event (type, payload) select 't', '{}' from generate_series(1, %s)", [size]
        )


def test_a_batch_ends_where_a_transaction_does(source: Database) -> None:
    _transactions(source, 3, 3, 3, 1, 1, 1, 12, 2)
    read = Read(source, 5)
    assert read.seqs == list(range(1, 27))
    assert [len(target) for target in read.targets] == [3, 3, 4, 2, 14]  # the end of the table is one, too
    assert max(read.chunks) <= 5


def test_a_transaction_too_large_to_be_applied_at_once_is_read_all_the_same(
    source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing, "_TOGETHER", 20)
    _transactions(source, 2, 70, 2)
    read = Read(source, 5)
    assert read.seqs == list(range(1, 75))
    assert len(read.targets[0]) == 2
    assert max(map(len, read.targets)) < 30


def test_without_an_index_by_xid_a_batch_ends_at_any_seq(source: Database) -> None:
    source.execute("drop index outbox.event_xid_seq")
    _transactions(source, 7, 7)
    read = Read(source, 5)
    assert read.seqs == list(range(1, 15))
    assert max(map(len, read.targets)) <= 5
