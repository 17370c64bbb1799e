"""Keys that are equal by their type, and not by their text: `bridge prove` takes the target's word for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.prove.conftest import Command
from tests.integration.prove.test_prove import counts
from tests.support.world import World, until

# name -> (the key's columns, the keys of three events: equal ones, and another)
KEYS: dict[str, tuple[list[str], list[list[Any]], list[Any]]] = {
    "citext": (["public.citext"], [["A@x"], ["a@X"], ["A@X"]], ["b@x"]),
    "domain": (["public.email"], [["A@x"], ["a@X"], ["A@X"]], ["b@x"]),
    "numeric": (["numeric"], [["1"], ["1.0"], ["1.00"]], ["1.01"]),
    "scaled": (["numeric(10,2)"], [["1.004"], ["1.00"], ["0.999"]], ["1.01"]),
    "timestamptz": (
        ["timestamptz"],
        [["2026-11-27T10:00:00+02:00"], ["2026-11-27T08:00:00Z"], ["2026-11-27 08:00+00"]],
        ["2026-11-27T08:00:01Z"],
    ),
    "uuid": (
        ["uuid"],
        [
            ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
            ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
            ["{a0eebc999c0b4ef8bb6d6bb9bd380a11}"],
        ],
        ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12"],
    ),
    "char": (["char(4)"], [["a"], ["a "], ["a  "]], ["b"]),
    "float8": (["float8"], [["0"], ["-0"], ["0.0"]], ["1e-300"]),
    "interval": (["interval"], [["1 mon"], ["30 days"], ["720:00"]], ["31 days"]),
    "jsonb": (["jsonb"], [[{"a": 1, "b": 2}], [{"b": 2, "a": 1}], [{"a": 1, "b": 2}]], [{"a": 1}]),
    "bytea": (["bytea"], [["\\x41"], ["A"], ["\\101"]], ["B"]),
    "array": (["numeric[]"], [["{1,2}"], ["{1.0,2}"], ["{1,2.00}"]], ["{2,1}"]),
    "range": (["int4range"], [["[1,3]"], ["[1,4)"], ["(0,3]"]], ["[1,3)"]),
    "bits": (["bit(3)"], [["101"], ["B101"], ["101"]], ["111"]),
    "pair": (["numeric", "char(3)"], [["1", "a"], ["1.0", "a "], ["1.00", "a"]], ["1", "b"]),
    "without_hash": (["money", "numeric"], [["$1.00", "1"], ["1", "1.0"], ["1.00", "1.00"]], ["$1.01", "1"]),
}
BY_COLLATION: dict[str, tuple[list[str], list[list[Any]], list[Any]]] = {
    "collation": (['text collate "public"."no case"'], [["A@x"], ["a@X"], ["A@X"]], ["b@x"]),
    "collation_pair": (
        ['text collate "public"."no case"', "text"],
        [["A", "c"], ["a", "c"], ["A", "c"]],
        ["a", "C"],
    ),
}
"""Of servers that are built with ICU, which the embedded ones are not."""


def _prepare(world: World) -> dict[str, tuple[list[str], list[list[Any]], list[Any]]]:
    """The keys that this server can have, each with a table and a pipeline."""
    world.target.execute(
        "create extension citext schema public; create domain public.email as public.citext;"
        "create schema keyed; grant usage on schema public, keyed to outbox_bridge"
    )
    used = dict(KEYS)
    if world.target.value("select count(*) > 9 from pg_collation where collprovider = 'i'"):
        used |= BY_COLLATION
        world.target.execute(
            'create collation public."no case"'
            " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    pipelines: dict[str, Any] = {}
    for name, (types, _, _) in used.items():
        columns = [f"k{n}" for n in range(len(types))]
        defined = ", ".join(f"{column} {kind}" for column, kind in zip(columns, types, strict=True))
        world.target.execute(
            f"create table keyed.{name} ({defined}, v int, n numeric, primary key ({', '.join(columns)}));"
            f"grant select, insert, update on keyed.{name} to outbox_bridge"
        )
        fields = {column: f"$event.{column}" for column in columns}
        pipelines[name] = {
            "event": name,
            "destinations": {
                "table": {
                    "connection": "warehouse",
                    "table": f"keyed.{name}",
                    "mode": "upsert",
                    "key": columns,
                    "version": "v",
                    "columns": {**fields, "v": "$event.v", "n": "$event.n"},
                }
            },
        }

    def change(document: dict[str, Any]) -> None:
        document.pop("events", None)
        document.pop("tests", None)
        document["pipelines"] = pipelines

    world.configure(change)
    return used


def _emit(world: World, name: str, key: list[Any], v: int, n: str = "1") -> str:
    payload = {**{f"k{place}": value for place, value in enumerate(key)}, "v": v}
    [(event,)] = world.source.execute(
        "insert into outbox.event (type, payload) values (%s, %s::jsonb || jsonb_build_object('n', %s::numeric))"
        " returning id::text",
        [name, json.dumps(payload), n],
    )
    return str(event)


def _applied(world: World, event: str) -> None:
    until(lambda: str(world.checkpoint("witness_id")) == event, "the last event")


@pytest.mark.matrix
def test_equal_keys_are_one_row_and_other_keys_are_not(world: World, command: Command) -> None:
    used = _prepare(world)
    last: dict[str, str] = {}
    other: dict[str, str] = {}
    world.bridge().start().wait_ready()
    for name, (_, keys, another) in used.items():
        for v, key in enumerate(keys):
            last[name] = _emit(world, name, key, v)
        other[name] = _emit(world, name, another, 7)
    _applied(world, other[name])
    assert world.dead_letters() == []
    for name in used:
        assert world.target.execute(f"select v from keyed.{name} order by v") == [(2,), (7,)], name
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out
    assert [(one["expected"], one["present"]) for one in ran.report["comparisons"]] == [(2, 2)] * len(used)

    for name in used:
        world.target.execute(
            f"update keyed.{name} set n = 2 where v = 2; delete from keyed.{name} where v = 7"
        )
    ran = command("prove", "--json")
    for one in ran.report["comparisons"]:
        name = one["name"].removeprefix("keyed.")
        assert counts(one) == {"lost": 1, "differing": 1}, one
        assert one["differing"]["first"] == [f"{last[name]} (the last event of its key)"]
        assert one["lost"]["first"] == [f"{other[name]} (the last event of its key)"]


def test_equal_keys_that_are_lost_are_one_row(world: World, command: Command) -> None:
    """Without a row to say which key is meant, too."""
    _prepare(world)
    world.bridge().start().wait_ready()
    for v, key in enumerate(KEYS["citext"][1]):
        event = _emit(world, "citext", key, v)
    _applied(world, event)
    world.target.execute("delete from keyed.citext")
    one = command("prove", "--json", "--pipeline", "citext").only
    assert counts(one) == {"lost": 1}
    assert one["lost"]["first"] == [f"{event} (the last event of its key)"]
    assert one["expected"] == 1


def test_a_value_that_is_equal_and_stored_otherwise_differs(world: World, command: Command) -> None:
    """1.0 and 1.00 are equal as a key. As a value of a row, they are what was stored."""
    _prepare(world)
    world.bridge().start().wait_ready()
    event = _emit(world, "numeric", ["1"], 1, n="1.00")
    _applied(world, event)
    assert command("prove", "--pipeline", "numeric").code == 0
    world.target.execute("update keyed.numeric set n = 1.0")
    one = command("prove", "--json", "--pipeline", "numeric").only
    assert one["differing"]["first"] == [f"{event} (the last event of its key)"]


def test_the_newest_of_times_that_no_text_orders_stays(world: World, command: Command) -> None:
    times = [
        "0044-03-15 BC",
        "2027-03-01 00:00:00.000001+00",
        "2027-03-01 00:00:00.000002+00",
        "10000-01-01",
        "infinity",
    ]
    world.target.execute(
        "create table public.dated (k int primary key, at timestamptz, n int);"
        "grant select, insert, update on public.dated to outbox_bridge"
    )

    def change(document: dict[str, Any]) -> None:
        document.pop("events", None)
        document.pop("tests", None)
        columns = {"k": "$event.k", "at": "$event.at", "n": "$event.n"}
        table = {
            "connection": "warehouse",
            "table": "public.dated",
            "mode": "upsert",
            "key": ["k"],
            "version": "at",
        }
        document["pipelines"] = {
            "dated": {"event": "dated", "destinations": {"table": {**table, "columns": columns}}}
        }

    world.configure(change)
    world.bridge().start().wait_ready()
    for k in range(2):  # newest first, newest last
        for n, at in enumerate(times if k else reversed(times)):
            [(event,)] = world.source.execute(
                "insert into outbox.event (type, payload) values ('dated', %s) returning id::text",
                [json.dumps({"k": k, "at": at, "n": n})],
            )
    _applied(world, event)
    assert world.target.execute("select k, at::text, n from public.dated order by k") == [
        (0, "infinity", 0),
        (1, "infinity", 4),
    ]
    assert command("prove").code == 0
