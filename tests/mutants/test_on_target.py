"""What becomes of values and batches at the target: a planner, a session and a table of the test's, and no source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bridge.errors import BridgeError
from bridge.planning.plan import Owner
from bridge.planning.planner import Planner, answered
from bridge.planning.spec import PipelineSpec, TableSpec
from bridge.postgres.catalog import table_shape
from bridge.protocol.events import Batch, Event, Lsn
from bridge.stream import transaction
from bridge.stream.pace import Pace
from bridge.stream.planned import FailureGuard, encode
from bridge.stream.transaction import Transactions
from tests.mutants.test_on_servers import Session
from tests.support.servers import Database, create_database, drop_database
from tests.support.world import fill

Given = tuple[str, Mapping[str, Any]]  # type and payload; the key is the type


class Target:
    """The target half of a stream. Each event type goes into the table of its name in schema events, keyed by id."""

    def __init__(self, database: Database, tables: Mapping[str, str], more: str = "") -> None:
        """tables: name -> the columns after its id."""
        self.database = database
        for name, columns in tables.items():
            database.execute(f"create table events.{name} (id text primary key, {columns})")
        database.execute(
            f"{more}; grant select, insert, update on all tables in schema events to outbox_bridge"
        )
        self.pace = Pace(100)
        self.told: list[str | None] = []
        self._session = Session(database)
        self._ledger = self._session.fence()
        self._planner = self._planned_for(tables)
        self._transactions = Transactions(
            "s",
            Owner("s"),
            self._session.link,
            FailureGuard(),
            self.pace,
            wait=self._session.wait,
            pause=lambda _: None,
            retried=lambda _: None,
            troubled=lambda error: self.told.append(error.reason),
        )
        self._seq = 0

    def close(self) -> None:
        self._session.link.close()

    def _planned_for(self, tables: Mapping[str, str]) -> Planner:
        pipelines, shapes = [], {}
        with self.database.connect("outbox_bridge") as connection:
            for name in tables:
                spec = TableSpec("d", "warehouse", "events", name, "upsert", ("id",))
                shape, _ = table_shape(connection, spec, {})
                assert shape is not None
                spec = replace(spec, columns={column: f"$event.{column}" for column in shape.columns})
                pipelines.append(PipelineSpec(name, (name,), (), None, {"d": spec}))
                shapes[name, "d"] = shape
        return Planner(pipelines, {}, shapes)

    def apply(self, *given: Given, chunks: int = 1) -> str | None:
        """One batch, or a transaction in so many chunks. None: it is applied; otherwise why not."""
        size = len(given) // chunks
        try:
            for chunk in range(chunks):
                self._send(given[chunk * size : (chunk + 1) * size], chunk, chunks)
        except BridgeError as error:
            return error.reason
        return None

    def _send(self, given: Sequence[Given], chunk: int, chunks: int) -> None:
        events = [self._event(kind, payload) for kind, payload in given]
        batch = Batch(events=events, chunk=chunks > 1, whole=chunk == chunks - 1)
        planned = answered(self._planner.plan(events), lambda _: {})
        after = replace(self._ledger, applied_lsn=Lsn(self._seq))
        prepared = encode(Owner("s"), batch, planned, self._transactions.met)
        self._transactions.send(prepared, self._ledger, after, None, None)
        if batch.whole:
            self._transactions.settle()
            self._ledger = after

    def _event(self, kind: str, payload: Mapping[str, Any]) -> Event:
        self._seq += 1
        number, text = b"%d" % self._seq, json.dumps(payload, ensure_ascii=False).encode()
        key = str(payload.get("id", "")).encode()
        event_id = b"00000000-0000-0000-0000-%012d" % self._seq
        return Event(event_id, number, number, kind.encode(), key, text, None, None, None)

    def rows(self, query: str) -> list[Any]:
        """The first column."""
        return [row[0] for row in self.database.execute(query)]

    def dead(self) -> list[tuple[int, str]]:
        """(the event's number, code)."""
        return [
            (int(seq), code)
            for seq, code in self.database.execute(
                "select event_seq, code from bridge.dead_letter order by event_seq"
            )
        ]


Make = Callable[..., Target]


@pytest.fixture
def at(target: Database) -> Iterator[Make]:
    made: list[Target] = []

    def make(tables: Mapping[str, str], more: str = "", *, database: Database = target) -> Target:
        made.append(Target(database, tables, more))
        return made[-1]

    yield make
    for each in made:
        each.close()


# --- R1: one event never stops a stream -----------------------------------------------------------------

_BY_LANE = """
create extension ltree;
alter table events.row add path ltree;
create function events.by_lane() returns trigger language plpgsql as $$
begin
    if new.lane = 'internal' then
        raise exception 'no geometry' using errcode = 'XX000';
    end if;
    execute format('insert into events.%I values ($1)', new.lane) using new.id;
    return new;
end
$$;
create trigger by_lane before insert on events.row for each row execute function events.by_lane();
create table events.paved (id text);
"""


@pytest.mark.parametrize(
    ("change", "code"),
    [({"path": "a..b"}, "42601"), ({"lane": "unpaved"}, "42P01"), ({"lane": "internal"}, "XX000")],
    ids=["a value", "a trigger", "an internal error"],
)
def test_what_one_event_fails_with_while_others_pass_is_its_own(
    at: Make, change: dict[str, str], code: str
) -> None:
    target = at({"row": "lane text"}, _BY_LANE)
    good = {"path": "a.b", "lane": "paved"}
    rows = [{"id": "1", **good}, {"id": "2", **good, **change}, {"id": "3", **good}]
    assert target.apply(*(("row", row) for row in rows)) is None
    assert target.dead() == [(2, code)]
    assert target.rows("select id from events.row order by id") == ["1", "3"]


def test_an_event_without_neighbours_stops_the_stream_for_a_while_only(at: Make) -> None:
    """Where it is alone each time, nothing can show whose fault it is. If it is the table's, the third one halts."""
    target = at({"row": "lane text"}, _BY_LANE)
    alone = ("row", {"id": "1", "path": "a.b", "lane": "unpaved"})
    assert [target.apply(alone) for _ in range(5)] == ["table_missing"] * 3 + [None] * 2
    assert [target.apply(alone) for _ in range(5)] == ["table_missing"] * 5
    assert [code for _, code in target.dead()] == ["42P01"] * 2
    assert target.apply(("row", {"id": "2", "lane": "paved"}), alone) is None
    assert target.apply(alone) is None


def test_a_dead_letter_is_stored_whatever_its_event_says(at: Make, target: Database) -> None:
    latin1 = create_database(target.server, f"{target.name}_latin1", "template0", encoding="LATIN1")
    try:
        stream = at({"row": "v text"}, database=fill(latin1, "target"))
        rows = [{"id": "1", "v": "ü"}, {"id": "⚡", "v": "⚡"}, {"id": "3", "v": "ü"}]
        assert stream.apply(*(("row", row) for row in rows)) is None
        assert stream.dead() == [(2, "22P05")]
        assert stream.rows("select id from events.row order by id") == ["1", "3"]
        stream.close()
    finally:
        drop_database(latin1)


# --- R2: a value arrives as a plain INSERT would store it, or not at all ---------------------------------


@pytest.mark.parametrize(
    ("type_sql", "text"),
    [
        ("varchar(3)", "ABCDEF"),
        ("events.short", "ABCDEF"),
        ("bit(3)", "10101"),
        ("varchar(3)[]", "{ABCDEF}"),
        ("timestamp", "2026-01-01T12:00:00+05:00"),
        ("date", "2026-01-01T01:00:00+05:00"),
    ],
)
def test_a_value_is_neither_cut_nor_moved_by_hours(at: Make, type_sql: str, text: str) -> None:
    """A moment is stored in UTC where its type keeps no zone; what is too long is refused."""
    stored = {"timestamp": "2026-01-01 07:00:00", "date": "2025-12-31"}.get(type_sql)
    target = at(
        {"row": "fits int"},
        f"create domain events.short as varchar(3); alter table events.row add v {type_sql}",
    )
    assert target.apply(("row", {"id": "1"}), ("row", {"id": "2", "v": text})) is None
    assert target.rows("select v::text from events.row where id = '2'") == ([stored] if stored else [])
    assert [number for number, _ in target.dead()] == ([] if stored else [2])


def test_a_table_altered_since_it_was_planned_for_is_not_written(at: Make) -> None:
    target = at({"row": "v date"})
    assert target.apply(("row", {"id": "1", "v": "2026-01-01"})) is None
    target.database.execute("alter table events.row alter v type timestamptz")
    assert target.apply(("row", {"id": "2", "v": "2026-01-01T12:00:00Z"})) == "target_altered"
    assert target.rows("select id from events.row") == ["1"]


# --- R3: what an event becomes does not depend on its neighbours ------------------------------------------


def test_a_field_that_an_event_lacks_is_left_as_it_is_beside_any_neighbour(at: Make) -> None:
    target = at({"row": "v text, w text default 'by default'"})
    target.apply(("row", {"id": "1", "v": "old", "w": "old"}))
    assert (
        target.apply(("row", {"id": "1"}), ("row", {"id": "2", "v": "x", "w": None}), ("row", {"id": "3"}))
        is None
    )
    assert target.rows("select concat_ws(' ', id, v, w) from events.row order by id") == [
        "1 old old",
        "2 x",
        "3 by default",
    ]


_FAMILY = {"child": "parent text, used int", "parent": "name text unique, used int"}
_REFERS = """
alter table events.child add foreign key (parent) references events.parent (name) deferrable initially deferred;
alter table events.parent add check (used > 0)"""
_CHILD = ("child", {"id": "1", "parent": "p"})
_PARENT = ("parent", {"id": "1", "name": "p", "used": 1})


def test_an_unrelated_bad_event_does_not_part_a_child_from_its_parent(at: Make) -> None:
    target = at(_FAMILY, _REFERS)
    bad = ("parent", {"id": "2", "name": "other", "used": -1})
    orphan = ("child", {"id": "2", "parent": "nobody"})
    assert target.apply(_CHILD, bad, orphan, _PARENT) is None
    assert target.dead() == [(2, "23514"), (3, "23503")]
    assert target.rows("select id from events.child") == ["1"]


def test_deferred_constraints_are_judged_where_a_large_transaction_ends(at: Make) -> None:
    target = at(_FAMILY, _REFERS)
    assert target.apply(_CHILD, _PARENT, chunks=2) is None
    assert target.dead() == []
    assert target.rows("select id from events.child") == ["1"]


# --- R4: ready means delivering --------------------------------------------------------------------------

_AT_MOST_FOUR = """
create function events.at_most_four() returns trigger language plpgsql as $$
begin
    if (select count(*) from added) > 4 then
        raise exception 'canceling statement due to statement timeout' using errcode = '57014';
    end if;
    return null;
end
$$;
create trigger at_most_four after insert on events.row referencing new table as added
    for each statement execute function events.at_most_four();
"""


def test_batches_shrink_until_the_target_finishes_one(at: Make) -> None:
    target = at({"row": "v text"}, _AT_MOST_FOUR)
    waiting = [("row", {"id": str(number)}) for number in range(40)]
    said = []
    for _ in range(40):
        some = waiting[: target.pace.batch.now]
        said.append(target.apply(*some))
        if said[-1] is None:
            waiting = waiting[len(some) :]
    assert waiting == []
    assert set(said) == {None, "target_slow"}
    assert target.dead() == []


def test_a_batch_that_takes_long_is_told(at: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "LATE_SECONDS", 0.2)
    target = at(
        {"row": "v text"},
        "create function events.slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.5); return new; end $$;"
        " create trigger slow before insert on events.row for each row execute function events.slow()",
    )
    assert target.apply(("row", {"id": "1"}), ("row", {"id": "2"}), ("row", {"id": "3"})) is None
    assert target.told == ["target_slow"]
