"""Events that cannot be applied: each is a dead letter whose cause a person understands, and its neighbours in
the same transaction arrive. And what is not the event's fault: the stream halts, says why, and goes on by itself.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import pytest

from tests.support import truth
from tests.support.fixes import line_in
from tests.support.truth import Unit
from tests.support.world import Document, World

CANARY = "zebra-canary-7315"

_TABLE = """
create type events.level as enum ('low', 'high');
create table events.account (id integer primary key);
insert into events.account values (1);
create table events.line (
    event_id uuid primary key,
    account  integer not null references events.account deferrable initially deferred,
    owner    integer references events.account,
    amount   numeric(6,2) constraint amount_is_positive check (amount > 0),
    code     varchar(20) not null,
    level    events.level,
    placed   timestamptz,
    small    smallint,
    email    text constraint email_is_unique unique,
    flag     boolean,
    extra    jsonb,
    payload  jsonb not null
);
grant usage on type events.level to outbox_bridge;
grant select, insert, update on events.line to outbox_bridge;
"""
_COLUMNS = ("account", "owner", "amount", "code", "level", "placed", "small", "email", "flag", "extra")

LINES = Unit(
    pipeline="lines",
    destination="lines",
    event_type="line.added",
    table="events.line",
    applies="t.type = 'line.added'",
    columns={"code": "t.payload->>'code'", "account": "(t.payload->>'account')::int"},
)


def good(**changes: Any) -> dict[str, Any]:
    payload = {"account": 1, "kind": "a", "amount": 10, "code": "c-1", "level": "low", "small": 7}
    return {name: value for name, value in {**payload, **changes}.items() if value is not ...}


def _with_lines(document: Document) -> None:
    document["events"]["line.added"] = {
        "account": "integer",
        "kind": {"enum": ["a", "b"]},
        "amount": "number",
        "code": {"type": "string", "nullable": True},
        "level": {"type": "string", "required": False},
        "placed": {"type": "string", "required": False},
        "small": {"type": "number", "required": False},
        "email": {"type": "string", "required": False},
        **{name: {"type": "any", "required": False} for name in ("owner", "flag", "extra")},
    }
    document["pipelines"]["lines"] = {
        "event": "line.added",
        "destinations": {
            "lines": {
                "connection": "warehouse",
                "table": "events.line",
                "mode": "upsert",
                "key": ["event_id"],
                "columns": {
                    "event_id": "$meta.id",
                    **{name: f"$event.{name}" for name in _COLUMNS},
                    "payload": "$event",
                },
            }
        },
    }


@pytest.fixture
def world(world: World) -> World:
    """The same, with a pipeline of lines."""
    with world.target.connect() as connection:
        connection.execute(_TABLE.encode())
        truth.watch(connection, "events.line")
    world.configure(_with_lines)
    return world


def insert(
    world: World, *payloads: dict[str, Any] | str, ids: Sequence[uuid.UUID] = ()
) -> Sequence[uuid.UUID]:
    """These events in one transaction, with their truth."""
    ids = ids or [uuid.uuid4() for _ in payloads]
    with psycopg.connect(world.source.dsn) as connection:
        for event_id, payload in zip(ids, payloads, strict=True):
            text = payload if isinstance(payload, str) else json.dumps(payload)
            for table, column in (("outbox.event", "id"), ("rig.truth", "event_id")):
                connection.execute(
                    f"insert into {table} ({column}, type, key, payload) values (%s, 'line.added', 'k', %s)".encode(),
                    [event_id, text],
                )
    return ids


@dataclass(frozen=True)
class Bad:
    """A payload that cannot be applied, and what its dead letter must say."""

    payload: dict[str, Any] | str
    code: str
    cause: str  # a regular expression


BAD = {
    "a missing field": Bad(good(amount=...), "contract", r'field "amount": missing'),
    "a wrong enum": Bad(good(kind=CANARY), "contract", r'field "kind": not one of a, b'),
    "a wrong type": Bad(good(account=CANARY), "contract", r'field "account": expected integer, got string'),
    "a null": Bad(good(amount=None), "contract", r'field "amount": expected number, got null'),
    "not an object": Bad(json.dumps([CANARY]), "payload", r"object"),
    "numeric overflow": Bad(good(amount=1234567), "22003", r"column amount: numeric field overflow"),
    "a huge exponent": Bad('{"account": 1, "kind": "a", "amount": 1e400, "code": "c"}', "22003", r"amount"),
    "out of range": Bad(good(small=70000), "22003", r"column small: numeric value out of range"),
    "a fraction": Bad(good(small=1.5), "22P02", r"column small: not a valid smallint"),
    "not null": Bad(good(code=None), "23502", r"not null violation \(column code, table events\.line"),
    "check": Bad(
        good(amount=-1), "23514", r"check violation \(constraint amount_is_positive, table events\.line"
    ),
    "foreign key": Bad(good(owner=77123), "23503", r"foreign key violation \(constraint line_owner_fkey"),
    "deferred foreign key": Bad(
        good(account=77123), "23503", r"foreign key violation \(constraint line_account_fkey"
    ),
    "too long": Bad(
        good(code=CANARY * 3), "22001", r"column code: value too long for type character varying\(20\)"
    ),
    "an unknown enum": Bad(good(level=CANARY), "22P02", r"column level: not a value of the enum .*level"),
    "not a time": Bad(good(placed=CANARY), "22007", r"column placed: "),
    "no such day": Bad(good(placed="2026-02-31T00:00:00Z"), "22008", r"column placed: "),
    "not a boolean": Bad(good(flag=CANARY), "22P02", r"column flag: not a valid boolean"),
    "unique": Bad(good(email="taken@example.com"), "23505", r"unique violation \(constraint email_is_unique"),
}


@pytest.mark.fault(17, 18, 60, 66)
def test_each_bad_event_is_a_dead_letter_and_its_neighbours_arrive(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    insert(world, good(email="taken@example.com"))
    bad: dict[str, uuid.UUID] = {}
    neighbours: list[uuid.UUID] = []
    for name, one in BAD.items():
        first, bad[name], last = insert(world, good(), one.payload, good())
        neighbours += [first, last]
    world.caught_up()
    neighbours += insert(world, good(), *(one.payload for one in BAD.values()), good())[:: len(BAD) + 1]
    world.caught_up()
    letters = {event: (code, cause) for event, code, cause in world.dead_letters()}
    for name, event in bad.items():
        code, cause = letters.pop(str(event), ("none", f"no dead letter for {name}"))
        assert code == BAD[name].code, f"{name}: {code}: {cause}"
        assert re.search(BAD[name].cause, cause), f"{name}: {cause}"
        assert CANARY not in cause
        assert "77123" not in cause
    assert len(letters) == len(BAD)  # those of the transaction that had one of each
    arrived = world.target.value("select count(*) from events.line where event_id = any(%s)", [neighbours])
    assert arrived == len(neighbours) == 2 * len(BAD) + 2
    world.law(LINES)
    world.law()
    assert CANARY not in "".join(bridge.lines), bridge.log_tail()
    for path in ("/readyz", "/status", "/metrics", "/"):
        status, body = bridge.get(path)
        assert status == 200, path
        assert CANARY not in body, path


def test_rows_that_were_there_before_their_events_are_updated(world: World) -> None:
    """Rows whose key is the event go in as new ones, for each event comes once; but somebody else may have a hand in
    the table. The second time it is known, and the third after a restart it is not."""
    bridge = world.bridge().start().wait_ready()
    for turn in range(3):
        if turn == 2:
            assert bridge.terminate() == 0
            bridge = world.bridge().start().wait_ready()
        ids = [uuid.uuid4() for _ in range(3)]
        by_hand = "insert into events.line (event_id, account, code, payload) values (%s, 1, 'by hand', '{}')"
        world.target.execute(by_hand, [ids[1]])
        insert(world, good(), good(), good(), ids=ids)
        world.caught_up()
        rows = world.target.value("select array_agg(code) from events.line where event_id = any(%s)", [ids])
        assert rows == ["c-1"] * 3, f"turn {turn}\n{bridge.log_tail()}"
    assert world.dead_letters() == []


@pytest.mark.fault(57, 58)
def test_a_nul_character_is_refused_at_the_producers_insert(world: World) -> None:
    with psycopg.connect(world.source.producer_dsn, autocommit=True) as producer:
        for statement in (
            "insert into outbox.event (type, payload) values ('line.added', %s)",
            "select outbox.emit('line.added', %s::jsonb)",
        ):
            with pytest.raises(psycopg.errors.UntranslatableCharacter) as refused:
                producer.execute(statement.encode(), ['{"code": "a\\u0000b"}'])
            assert "unsupported Unicode escape sequence" in str(refused.value)
        for payload in ('{"code": "\\ud800"}', '{"amount": NaN}', "{"):
            with pytest.raises(psycopg.DataError):
                producer.execute("insert into outbox.event (type, payload) values ('t', %s)", [payload])
    assert world.source.value("select count(*) from outbox.event") == 0


@dataclass(frozen=True)
class Broken:
    """What the customer does to the target, what the stream says, and how the customer mends it."""

    deed: str
    reason: str
    says: str
    mend: str


BROKEN = {
    "table dropped": Broken(
        "alter table events.line rename to gone",
        "table_missing",
        "events.line",
        "alter table events.gone rename to line",
    ),
    "column dropped": Broken(
        "alter table events.line rename column code to code_old",
        "column_missing",
        "code",
        "alter table events.line rename column code_old to code",
    ),
    "column retyped": Broken(
        "alter table events.line rename column amount to kept;"
        " alter table events.line add column amount boolean",
        "column_type",
        "amount",
        "alter table events.line drop column amount; alter table events.line rename column kept to amount",
    ),
    "a new required column": Broken(
        "alter table events.line add column owned_by text not null default 'us';"
        " alter table events.line alter column owned_by drop default",
        "column_required",
        "owned_by",
        "alter table events.line drop column owned_by",
    ),
    "insert revoked": Broken(
        "revoke insert on events.line from outbox_bridge",
        "privilege_missing",
        "grant insert",
        "grant insert on events.line to outbox_bridge",
    ),
    "row security": Broken(
        "alter table events.line enable row level security",
        "row_security",
        "bypassrls",
        "alter table events.line disable row level security",
    ),
    "ledger closed": Broken(
        "revoke update on bridge.checkpoint from outbox_bridge",
        "privilege_missing",
        "grant usage on schema bridge",
        "grant update on bridge.checkpoint to outbox_bridge",
    ),
}


def _says(broken: Broken, status: int, body: str) -> bool:
    return status == 503 and f'"reason":"{broken.reason}"' in body and broken.says in body


@pytest.mark.fault(15, 16, 24, 25)
def test_a_target_that_does_not_fit_halts_and_goes_on_once_it_is_fixed(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    insert(world, good())
    world.caught_up()
    rows = 1
    for name, broken in BROKEN.items():
        world.target.execute(broken.deed)
        insert(world, good(), good())
        # at first in the server's words, then, once the catalog was looked at, with the SQL that mends it
        bridge.wait_readyz(partial(_says, broken))
        halted = rf'outbox_bridge_halted{{[^}}]*reason="{broken.reason}"[^}}]*}} 1\.0'
        assert re.search(halted, bridge.get("/metrics")[1]), name
        assert bridge.get("/livez")[0] == 200
        world.target.execute(broken.mend)
        bridge.wait_ready()
        world.caught_up()
        rows += 2
        assert world.applied("events.line") == rows, name
    assert world.dead_letters() == []
    world.law()
    world.law(LINES)


@pytest.mark.fault(15)
def test_a_table_that_is_not_there_at_the_start_is_waited_for(world: World) -> None:
    world.target.execute("alter table events.line rename to later")
    insert(world, good())
    bridge = world.bridge().start()
    body = bridge.wait_halted("table_missing")
    assert "create it" in body
    assert (
        world.source.value("select count(*) from pg_replication_slots where database = current_database()")
        == 0
    )
    world.target.execute("alter table events.later rename to line")
    bridge.wait_ready()
    world.law(LINES)


def test_most_events_failing_of_one_cause_halt_the_stream_in_time(world: World) -> None:
    bridge = world.bridge().start().wait_ready()
    insert(world, *[good() for _ in range(50)])
    world.caught_up()
    world.target.execute("alter table events.line add constraint none check (amount < 0) not valid")
    for _ in range(30):
        insert(world, *[good() for _ in range(10)])
    body = bridge.wait_halted("dead_letter_storm")
    assert "none" in body
    assert len(world.dead_letters()) <= 101
    world.target.execute("alter table events.line drop constraint none")
    bridge.wait_ready()
    world.law(LINES)
    world.target.execute("alter table events.line add constraint none check (amount < 0) not valid")
    for _ in range(30):
        insert(world, *[good() for _ in range(10)])
    body = bridge.wait_halted("dead_letter_storm")
    assert bridge.terminate() == 0
    bridge.typed(line_in(body, "bridge run --allow-storm")).wait_ready()
    world.law(LINES)
    assert len(world.dead_letters()) >= 300


def test_a_few_bad_events_spread_over_a_large_batch_are_no_storm(world: World) -> None:
    """One in ten, 150 in all, of one cause: the window looks at 200 units in their order."""
    payloads = [good(kind="wrong") if n % 10 == 0 else good() for n in range(1500)]
    payloads += [good(amount=-1) if n % 10 == 0 else good() for n in range(1500)]
    insert(world, *payloads)
    world.bridge().start().wait_ready()
    verdict = world.law(LINES)
    assert verdict.in_dead_letters == 301  # and the marker
