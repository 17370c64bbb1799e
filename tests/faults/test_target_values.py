"""One event costs only itself, whatever its value makes the target say; the tables are what they are now."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import psycopg
import pytest
import yaml

from bridge.demo.world import make_target
from tests.support.servers import Database, drop_database
from tests.support.world import World, until

SCHEMA = "create schema t; grant usage on schema t to public"


def destination(table: str, columns: dict[str, str] | None, **more: Any) -> dict[str, Any]:
    given = {"connection": "warehouse", "table": table, "mode": "upsert", "key": ["id"], **more}
    return given if columns is None else {**given, "columns": {"id": "$meta.id", **columns}}


def configure(world: World, **pipelines: dict[str, dict[str, Any]]) -> None:
    """A pipeline a type of event: its destinations by name."""
    document = yaml.safe_load(world.text)
    document.pop("events", None)
    document.pop("tests", None)
    document["pipelines"] = {
        name: {"event": name, "destinations": destinations} for name, destinations in pipelines.items()
    }
    world.text = yaml.safe_dump(document, sort_keys=False)


def table(world: World, statement: str) -> None:
    world.target.execute(statement)
    world.target.execute("grant select, insert, update, delete on all tables in schema t to public")


def emit(world: World, *events: tuple[str, dict[str, Any]], key: str | None = None) -> list[str]:
    """One transaction; the ids."""
    ids = [str(uuid.uuid4()) for _ in events]
    with world.source.connect() as connection, connection.transaction():
        for name, (kind, payload) in zip(ids, events, strict=True):
            connection.execute(
                "insert into outbox.event (id, type, key, payload) values (%s, %s, %s, %s)",
                [name, kind, key, json.dumps(payload)],
            )
    return ids


def settled(world: World, name: str) -> None:
    """Until the event is behind the stream."""
    until(lambda: world.checkpoint("witness_id") == name, f"event {name} is applied")


def codes(world: World) -> dict[str, str]:
    """Event id -> code of its dead letter."""
    return {name: code for name, code, _ in world.dead_letters()}


@pytest.fixture
def schema(world: World) -> World:
    world.target.execute(SCHEMA)
    return world


def test_a_bad_value_with_a_structures_sqlstate_is_a_dead_letter(schema: World) -> None:
    world = schema
    world.target.execute("create extension ltree schema t")
    table(world, "create table t.tree (id uuid primary key, v t.ltree)")
    table(world, "create table t.routed (id uuid primary key, year text)")
    table(world, "create table t.y2026 (like t.routed)")
    world.target.execute(
        "create function t.route() returns trigger language plpgsql as $$ begin"
        " execute format('insert into t.%I select ($1).*', 'y' || new.year) using new; return new; end $$;"
        " create trigger route before insert on t.routed for each row execute function t.route()"
    )
    configure(
        world,
        tree={"d": destination("t.tree", {"v": "$event.v"})},
        routed={"d": destination("t.routed", {"year": "$event.year"})},
    )
    world.bridge().start().wait_ready()
    alone = emit(world, ("tree", {"v": "a & b"}))
    settled(world, alone[0])
    together = emit(
        world,
        ("tree", {"v": "Top"}),
        ("tree", {"v": "c & d"}),
        ("routed", {"year": "2026"}),
        ("routed", {"year": "206"}),
        ("routed", {"year": "2026"}),
    )
    settled(world, together[-1])
    assert codes(world) == {alone[0]: "42601", together[1]: "42601", together[3]: "42P01"}
    assert (world.applied("t.tree"), world.applied("t.y2026")) == (1, 2)


def test_a_trigger_that_fails_for_every_row_halts(schema: World) -> None:
    world = schema
    table(world, "create table t.audited (id uuid primary key)")
    world.target.execute(
        "create function t.audit() returns trigger language plpgsql as $$ begin"
        " execute 'insert into t.nowhere select ($1).*' using new; return new; end $$;"
        " create trigger audit after insert on t.audited for each row execute function t.audit()"
    )
    configure(world, audited={"d": destination("t.audited", {})})
    bridge = world.bridge().start().wait_ready()
    ids = emit(world, ("audited", {}), ("audited", {}))
    bridge.wait_log("halted")
    assert codes(world) == {}
    world.target.execute("create table t.nowhere (id uuid); grant insert on t.nowhere to public")
    settled(world, ids[-1])
    assert world.applied("t.nowhere") == 2


@pytest.fixture
def latin1(world: World) -> Iterator[World]:
    """The target is a LATIN1 database."""
    server, name = world.target.server, f"{world.target.name}_latin1"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name} template template0 encoding 'LATIN1' locale 'C'".encode())
    other = Database(server, name)
    with other.connect() as connection:
        make_target(connection)
    other.execute("grant usage on schema bridge to public")
    other.execute("grant select, insert, update, delete on all tables in schema bridge to public")
    before, world.target = world.target, other
    world.target.execute(SCHEMA)
    yield world
    world.close()
    world.target = before
    drop_database(other)


def test_what_the_ledger_cannot_hold_is_kept_escaped(latin1: World) -> None:
    world = latin1
    table(world, "create table t.x (id uuid primary key, v text)")
    configure(world, x={"d": destination("t.x", {"v": "$event.v"})})
    world.bridge().start().wait_ready()
    (fine,) = emit(world, ("x", {"v": "Müller"}), key="é")
    (bad,) = emit(world, ("x", {"v": "⚡"}), key="cus_⚡")
    (after,) = emit(world, ("x", {"v": "after"}), key="cus_⚡")
    settled(world, after)
    assert codes(world) == {bad: "22P05"}
    assert world.target.value("select count(*) from t.x where id in (%s, %s)", [fine, after]) == 2
    ((key, payload),) = world.target.execute("select event_key, raw from bridge.dead_letter")
    assert key == "cus_\\u26a1"
    assert json.loads(bytes(payload)) == {"v": "⚡"}


def test_a_table_that_is_altered_is_read_again_before_anything_is_written(schema: World) -> None:
    world = schema
    world.target.execute("create type t.mood as enum ('ok')")
    table(world, "create table t.x (event_id uuid primary key, n integer, at date, mood t.mood, r real)")
    configure(world, x={"d": destination("t.x", None, key=["event_id"])})
    bridge = world.bridge().start().wait_ready()
    first = emit(world, ("x", {"n": 1, "at": "2026-11-27T10:00:00Z", "mood": "ok", "r": 1}))
    settled(world, first[0])
    with world.target.connect() as connection, connection.transaction():
        connection.execute("alter table t.x alter n type bigint, alter r type numeric, add column late text")
        connection.execute("alter table t.x alter at type timestamptz, alter mood type text")
        waiting = emit(
            world,
            ("x", {"n": 2**40, "at": "2026-11-27T10:00:00Z", "mood": "sad", "r": 16777217, "late": "y"}),
        )
        until(lambda: waits(world), "the bridge waits for the lock")
    settled(world, waiting[0])
    row = "select n, at = timestamptz '2026-11-27T10:00:00Z', mood, r, late from t.x where event_id = %s"
    assert world.target.execute(row, waiting) == [(2**40, True, "sad", 16777217, "y")]
    assert codes(world) == {}
    assert "column n: integer is now bigint" in world.json("status")["streams"][0]["altered"]
    world.target.execute("alter table t.x rename to hidden; create view t.x as select * from t.hidden")
    emit(world, ("x", {"n": 3}))
    bridge.wait_log("table_kind")
    world.target.execute("drop view t.x; alter table t.hidden rename to x")
    until(lambda: world.applied("t.x") == 3, "the stream resumed")


def waits(world: World) -> bool:
    return bool(
        world.target.value(
            "select exists (select from pg_stat_activity"
            " where starts_with(application_name, 'bridge/') and wait_event_type = 'Lock')"
        )
    )


def test_what_an_event_lacks_depends_on_no_neighbour(schema: World) -> None:
    world = schema
    table(
        world,
        "create table t.x (id text primary key, a text default 'd', b integer not null default 7, c text)",
    )
    columns = {"a": "$event.a", "b": "$event.b", "c": "$event.c", "id": "$event.id"}
    table(world, "create table t.y (like t.x including all)")
    configure(world, x={"d": destination("t.x", None)}, y={"d": destination("t.y", columns)})
    world.bridge().start().wait_ready()
    for kind in ("x", "y"):
        for name in ("alone", "beside"):
            settled(world, emit(world, (kind, {"id": name, "a": "1", "b": 1, "c": "kept"}))[0])
        settled(world, emit(world, (kind, {"id": "alone", "a": None}))[0])
        ids = emit(world, (kind, {"id": "beside", "a": None}), (kind, {"id": "other", "c": "z"}), (kind, {}))
        settled(world, ids[-1])
        assert world.target.execute(f"select * from t.{kind} order by id") == [
            ("alone", None, 1, "kept"),
            ("beside", None, 1, "kept"),
            ("other", "d", 7, "z"),
        ]
        assert codes(world).pop(ids[-1]) == "23502"
    assert "no difference" in world.command("prove")


def test_triggers_see_the_roles_path(schema: World) -> None:
    world = schema
    world.target.execute("create extension citext schema public; grant usage on schema public to public")
    table(world, "create table t.x (id uuid primary key, email public.citext, vip boolean)")
    table(world, "create table t.log (id uuid)")
    world.target.execute(
        "create function t.mark() returns trigger language plpgsql as $$ begin"
        " new.vip := new.email = 'boss@example.com'; insert into log values (new.id); return new; end $$;"
        " create trigger mark before insert on t.x for each row execute function t.mark();"
        " alter role outbox_bridge set search_path = t, public"
    )
    try:
        configure(world, x={"d": destination("t.x", {"email": "$event.email"})})
        world.bridge().start().wait_ready()
        ids = emit(world, ("x", {"email": "Boss@Example.com"}))
        settled(world, ids[0])
        assert world.target.execute("select vip from t.x join t.log using (id)") == [(True,)]
    finally:
        world.target.execute("alter role outbox_bridge reset search_path")


def test_deferred_keys_are_judged_with_all_units_in_place(schema: World) -> None:
    world = schema
    table(world, "create table t.parent (id text primary key, n integer check (n > 0))")
    table(
        world,
        "create table t.child (id uuid primary key, p text references t.parent deferrable initially deferred)",
    )
    parent = destination("t.parent", {"id": "$event.p", "n": "$event.n"})
    configure(
        world,
        both={"child": destination("t.child", {"p": "$event.p"}), "parent": parent},
        child={"d": destination("t.child", {"p": "$event.p"})},
        parent={"d": parent},
    )
    world.bridge().start().wait_ready()
    early = [("child", {"p": f"late{n}"}) for n in range(5)]
    late = [("parent", {"p": f"late{n}", "n": 1}) for n in range(5)]
    bad = [("both", {"p": "bad", "n": -1}), ("child", {"p": "nowhere"})]
    ids = emit(world, *early, ("both", {"p": "good", "n": 1}), *bad, *late)
    settled(world, ids[-1])
    letters = world.target.execute("select event_id, destination, code from bridge.dead_letter order by 1, 2")
    assert sorted(letters) == sorted(
        [(ids[6], "child", "23503"), (ids[6], "parent", "23514"), (ids[7], "d", "23503")]
    )
    assert (world.applied("t.child"), world.applied("t.parent")) == (6, 6)


@pytest.mark.slow
def test_a_transaction_in_chunks_is_judged_at_its_end(schema: World) -> None:
    """A child whose parent comes two chunks later is good, also beside one whose parent never comes."""
    world = schema
    table(world, "create table t.parent (id text primary key)")
    table(
        world,
        "create table t.child (id uuid primary key, p text references t.parent deferrable initially deferred)",
    )
    configure(
        world,
        child={"d": destination("t.child", {"p": "$event.p"})},
        parent={"d": destination("t.parent", {"id": "$event.p"})},
    )
    world.bridge().start().wait_ready()
    parents = [("parent", {"p": f"p{n}"}) for n in range(9_000)]
    good = emit(world, ("child", {"p": "p8999"}), *parents)
    settled(world, good[-1])
    assert codes(world) == {}
    later = [("parent", {"p": f"q{n}"}) for n in range(9_000)]
    mixed = emit(world, ("child", {"p": "q8999"}), ("child", {"p": "nowhere"}), *later)
    settled(world, mixed[-1])
    assert codes(world) == {mixed[1]: "23503"}
    assert (world.applied("t.child"), world.applied("t.parent")) == (2, 18_000)


def test_a_batch_that_times_out_is_halved(schema: World) -> None:
    """A role's limits do not count, so a cancelled statement stands for one that took too long."""
    world = schema
    table(world, "create table t.x (id uuid primary key, n integer)")
    world.target.execute(
        "create function t.slow() returns trigger language plpgsql as $$ begin"
        " if (select count(*) from given) > 40 then raise query_canceled; end if; return null; end $$;"
        " create trigger slow after insert on t.x referencing new table as given"
        " for each statement execute function t.slow()"
    )
    configure(world, x={"d": destination("t.x", {"n": "$event.n"})})
    bridge = world.bridge()
    with world.source.connect() as connection:
        for n in range(150):
            connection.execute(
                "insert into outbox.event (type, payload) values ('x', %s)", [json.dumps({"n": n})]
            )
    bridge.start()
    until(lambda: world.applied("t.x") == 150, "all are applied")
    assert any(line.get("reason") == "target_slow" for line in bridge.logs)
    assert codes(world) == {}


def test_rows_that_a_trigger_keeps_out_are_not_counted_as_applied(schema: World) -> None:
    world = schema
    table(world, "create table t.x (id uuid primary key, n integer)")
    world.target.execute(
        "create function t.keep() returns trigger language plpgsql as $$ begin"
        " return case when new.n > 0 then new end; end $$;"
        " create trigger keep before insert on t.x for each row execute function t.keep()"
    )
    configure(world, x={"d": destination("t.x", {"n": "$event.n"})})
    bridge = world.bridge().start().wait_ready()
    ids = emit(world, ("x", {"n": 1}), ("x", {"n": -1}), ("x", {"n": 2}))
    settled(world, ids[-1])
    counted = {
        line.split('outcome="')[1].split('"')[0]: float(line.split()[-1])
        for line in urlopen(f"http://{bridge.admin}/metrics").read().decode().splitlines()
        if line.startswith("outbox_bridge_events_total{")
    }
    assert (counted["applied"], counted["suppressed"]) == (2.0, 1.0)
