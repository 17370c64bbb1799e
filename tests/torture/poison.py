"""Events that the target refuses in ways no SQLSTATE tells apart, and good ones that look like them.

Three tables beside the rig's own: `mixed` has an ltree and a trigger that acts by a row's lane; a `child` refers to
its `parent` by a deferred key. An event says in its payload what it is: `poison`, and then it is a dead letter; or
`harmless`, and then it is applied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support import truth
from tests.support.producers import Producer, usage_payload
from tests.support.truth import Unit
from tests.support.world import Document, World

POISON = {
    "a check": "23514",
    "no ltree": "42601",
    "a lane without a table": "42P01",
    "an internal error": "XX000",
    "an orphan": "23503",
}
"""What is wrong with an event -> the code of its dead letter."""

HARMLESS = ("a lane with a table", "a slow lane", "a parent that comes later")

LATIN1_POISON = {"a text outside latin1": "22P05", "a text and a key outside latin1": "22P05"}
LATIN1_HARMLESS = ("a key outside latin1",)
LATIN1_NOTES = ("plain", "naïve Ærøskøbing ÿ £", "{a,b},{}", "")
OUTSIDE = "数据 🚀"

_TABLES = """
create extension ltree;
create table events.mixed (event_id uuid primary key, path ltree, lane text, payload jsonb not null);
create table events.lane_paved (event_id uuid primary key, path ltree);
create table events.parent (event_id uuid primary key, name text not null unique, payload jsonb not null);
create table events.child (
    event_id uuid primary key,
    parent text references events.parent (name) deferrable initially deferred,
    payload jsonb not null
);
grant select, insert, update on events.mixed, events.lane_paved, events.parent, events.child to outbox_bridge;
create function events.by_lane() returns trigger language plpgsql as $$
begin
    if new.lane = 'slow' then
        perform pg_sleep(0.05);
    elsif new.lane = 'internal' then
        raise exception 'no geometry' using errcode = 'XX000';
    else
        execute format('insert into events.%I values ($1, $2)', 'lane_' || new.lane) using new.event_id, new.path;
    end if;
    return new;
end
$$;
create trigger by_lane before insert on events.mixed
    for each row when (new.lane is not null) execute function events.by_lane();
"""

_PIPELINES: dict[str, tuple[str, dict[str, str]]] = {
    "children": ("family.child", {"parent": "$event.parent"}),  # written before their parents
    "parents": ("family.parent", {"name": "$event.name"}),
    "mixed": ("mixed.row", {"path": "$event.path", "lane": "$event.lane"}),
}
_TABLE_OF = {"children": "events.child", "parents": "events.parent", "mixed": "events.mixed"}


def units() -> Iterator[Unit]:
    """What the law is judged on, beside the rig's own. Rows of a batch that lack a field are a statement of their own,
    so a trigger sees those of `mixed` in another order than their events'."""
    for pipeline, (event_type, columns) in _PIPELINES.items():
        values = {name: f"t.payload->>'{name}'" for name in columns}
        yield Unit(
            pipeline=pipeline,
            event_type=event_type,
            table=_TABLE_OF[pipeline],
            applies=f"t.type = '{event_type}'",
            columns={**values, "payload": "t.payload"},
            ordered=pipeline != "mixed",
        )


def add_tables(world: World) -> None:
    """Before the bridges start."""
    with world.target.connect() as connection:
        connection.execute(_TABLES.encode())
        for table in _TABLE_OF.values():
            truth.watch(connection, table)
    world.configure(_with_pipelines)


def _with_pipelines(document: Document) -> None:
    optional = {"type": "string", "required": False}
    document["events"] |= {
        "family.child": {"parent": "string"},
        "family.parent": {"name": "string"},
        "mixed.row": {"path": "string", "lane": optional},
    }
    for name, (event_type, columns) in _PIPELINES.items():
        destination = {
            "connection": "warehouse",
            "table": _TABLE_OF[name],
            "mode": "upsert",
            "key": ["event_id"],
            "columns": {"event_id": "$meta.id", **columns, "payload": "$event"},
        }
        document["pipelines"][name] = {"event": event_type, "destinations": {"events": destination}}


# --- what producers do --------------------------------------------------------------------------------

_ROWS: tuple[dict[str, str], ...] = (
    {"path": "Top..Science", "poison": "no ltree"},
    {"path": "Top.Science", "lane": "unpaved", "poison": "a lane without a table"},
    {"path": "Top.Science", "lane": "internal", "poison": "an internal error"},
    {"path": "Top.Science", "lane": "slow", "harmless": "a slow lane"},
)


def strike(producer: Producer, *, latin1: bool) -> None:
    """One transaction: something that is refused, or looks so, among good neighbours."""
    chance = producer.chance
    strange = [_with_strange_text] if latin1 else []
    producer.mixed(chance.choice((_with_bad_usage, _with_a_lane, _with_a_lane, _family, *strange))(producer))


Events = list[tuple[str, dict[str, Any], str | None]]
_USAGE = {"customer_id": "cus_1", "metric": "seats", "limit": 1, "used": 1, "plan": "pro"}


def _with_bad_usage(_: Producer) -> Events:
    bad = {**_USAGE, "plan": "bad", "poison": "a check"}
    return [("usage.limit_reached", payload, None) for payload in (_USAGE, bad, _USAGE)]


def _with_a_lane(producer: Producer) -> Events:
    good = {"path": "Top.Science.Astronomy"}
    rows = [good, producer.chance.choice(_ROWS), {**good, "lane": "paved", "harmless": "a lane with a table"}]
    return [("mixed.row", row, None) for row in rows]


def _family(producer: Producer) -> Events:
    name = f"{producer.name}-{producer.chance.getrandbits(64):x}"
    late = {"parent": name, "harmless": "a parent that comes later"}
    events: Events = [("family.child", late, None), ("usage.limit_reached", _USAGE, None)]
    if producer.chance.random() < 0.5:
        events.append(("family.child", {"parent": f"{name}-never", "poison": "an orphan"}, None))
    return [*events, ("family.child", late, None), ("family.parent", {"name": name}, None)]


def _with_strange_text(producer: Producer) -> Events:
    key = f"{producer.own_key()} {OUTSIDE}"
    good = usage_payload(producer.chance, LATIN1_NOTES)
    bad = {**good, "note": OUTSIDE}
    usage = "usage.limit_reached"
    return [
        (usage, good, None),
        (usage, {**bad, "poison": "a text outside latin1"}, None),
        (usage, {**good, "harmless": "a key outside latin1"}, key),
        (usage, {**bad, "poison": "a text and a key outside latin1"}, key),
        ("family.child", {"parent": f"never-{producer.chance.random()}", "poison": "an orphan"}, key),
        (usage, good, None),
    ]


# --- what became of it --------------------------------------------------------------------------------


@dataclass(slots=True)
class Fates:
    """committed: how many of each kind. wrong: what was not a dead letter of its code, or is one without cause."""

    committed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


_KNOWN = """
select event_id::text, coalesce(payload->>'poison', payload->>'harmless'), payload ? 'poison' from rig.truth
where payload ?| array['poison', 'harmless']"""


def fates(world: World) -> Fates:
    """Of every poison and its look-alikes; and whether anything else is dead. Letters of rows with NULL are another's
    to judge (own.py)."""
    codes = POISON | LATIN1_POISON
    dead = {event: code for event, code, _ in world.dead_letters() if code != "incomplete"}
    found = Fates()
    for event, kind, is_poison in world.source.execute(_KNOWN):
        found.committed[kind] += 1
        code = dead.pop(event, None)
        if code != (codes[kind] if is_poison else None):
            found.wrong.append(f"{event}: {kind}: {code or 'not dead'}")
    found.wrong += [f"{event}: good: {code}" for event, code in dead.items()]
    return found
