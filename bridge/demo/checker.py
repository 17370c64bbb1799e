"""The demo's checker: compares every committed event with every effect, field by field.

Imports nothing of the bridge, and a test checks that. It reads both databases as their owners, walks truth and
effects in parallel by event id, counts effects by what a trigger wrote (an upsert would hide a second one), and takes
latencies from the servers' own commit timestamps, source commit to target commit.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

COLUMNS = ("customer_id", "metric", "limit", "used", "plan", "mrr", "csm", "renewal", "payload")

# Beside the product: what was committed, written by its producer, and what came of it, written by a trigger.
_TRUTH_TABLE = """
create schema demo;
create table demo.truth (event_id uuid primary key, phase text not null, payload jsonb not null);
grant usage on schema demo to app;
grant insert on demo.truth to app;
"""
_EFFECT_TRIGGER = """
create schema demo;
create table demo.effect (event_id uuid not null, operation text not null);
create function demo.effect() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    insert into demo.effect values (case tg_op when 'DELETE' then old.event_id else new.event_id end, tg_op);
    return null;
end
$$;
create trigger effect after insert or update or delete on events.usage_limits
    for each row execute function demo.effect();
"""

_TRUTH = """
select t.event_id, t.phase, extract(epoch from pg_xact_commit_timestamp(t.xmin))::float8 as committed,
    t.payload->>'customer_id' as customer_id, t.payload->>'metric' as metric,
    (t.payload->>'limit')::numeric as "limit", (t.payload->>'used')::numeric as used,
    t.payload->>'plan' as plan, c.mrr, c.csm, c.renewal, t.payload::text as payload
from demo.truth t left join crm.customer c on c.customer_id = t.payload->>'customer_id'
order by t.event_id
"""
_EFFECTS = """
select event_id, coalesce(e.effects, 0) as effects, e.applied, u.event_id is not null as present,
    u.customer_id, u.metric, u."limit", u.used, u.plan, u.mrr, u.csm, u.renewal, u.payload::text as payload
from (
    select event_id, count(*) as effects,
        extract(epoch from min(pg_xact_commit_timestamp(xmin)))::float8 as applied
    from demo.effect group by event_id
) e full join events.usage_limits u using (event_id)
order by event_id
"""
_DEAD = "select event_id::uuid from bridge.dead_letter where state = 'open'"

NOBODYS = "no source's"

Row = dict[str, Any]


@dataclass(slots=True)
class Tally:
    """The outcome of every event. Latencies in seconds, by the producers' phase."""

    events: int = 0
    rows: int = 0
    lost: int = 0
    duplicates: int = 0  # effects beyond the first
    altered: int = 0  # events with a field that differs
    unexpected: int = 0  # effects of events that nobody committed
    dead_letters: int = 0
    examples: list[str] = field(default_factory=list)  # "lost <event id>", at most a few of each kind
    latencies: dict[str, list[float]] = field(default_factory=dict)
    span: dict[str, tuple[float, float]] = field(default_factory=dict)  # phase -> first, last effect (epoch)

    @property
    def holds(self) -> bool:
        wrong = self.lost + self.duplicates + self.altered + self.unexpected + self.dead_letters
        return wrong == 0 and self.events > 0

    def percentile(self, percent: float, *phases: str) -> float:
        """Latency in seconds, nearest rank, over the phases named (all of them when none is)."""
        names = phases or tuple(self.latencies)
        values = sorted(value for name in names for value in self.latencies.get(name, ()))
        if not values:
            return 0.0
        return values[min(len(values) - 1, int(len(values) * percent / 100))]

    def rate(self, phase: str) -> float:
        """Events a second between the first and the last effect of a phase."""
        first, last = self.span.get(phase, (0.0, 0.0))
        return len(self.latencies.get(phase, ())) / (last - first) if last > first else 0.0


def install(source_dsns: Iterable[str], target_dsn: str) -> None:
    """What check() compares: demo.truth for producers to fill, and the trigger that notes every effect."""
    for dsn, statements in (*((dsn, _TRUTH_TABLE) for dsn in source_dsns), (target_dsn, _EFFECT_TRIGGER)):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statements.encode())


def check(source_dsn: str, target_dsn: str) -> Tally:
    """Compare. Producers and bridge must have stopped."""
    return total(check_each({"": source_dsn}, target_dsn))


def check_each(source_dsns: Mapping[str, str], target_dsn: str) -> dict[str, Tally]:
    """A tally of each source's events; with names, the column `region` must have the source's. Effects of events
    that no source has, and dead letters, are NOBODYS."""
    tallies = {name: Tally() for name in source_dsns}
    nobodys = Tally()
    several = "" not in source_dsns
    with ExitStack() as stack:
        truths = heapq.merge(
            *(_of(name, stack.enter_context(_rows(dsn, _TRUTH))) for name, dsn in source_dsns.items()),
            key=lambda row: row["event_id"],
        )
        query = _EFFECTS.replace("u.customer_id,", "u.region, u.customer_id,") if several else _EFFECTS
        effects = stack.enter_context(_rows(target_dsn, query))
        with psycopg.connect(target_dsn) as connection:
            dead = {row[0] for row in connection.execute(_DEAD)}
        nobodys.dead_letters = len(dead)
        truth, effect = next(truths, None), next(effects, None)
        while truth is not None or effect is not None:
            if truth is not None and effect is not None and truth["event_id"] == effect["event_id"]:
                _pair(tallies[truth["region"]], truth, effect, (*COLUMNS, *(["region"] if several else [])))
                truth, effect = next(truths, None), next(effects, None)
            elif truth is not None and (effect is None or truth["event_id"] < effect["event_id"]):
                tallies[truth["region"]].events += 1
                if truth["event_id"] not in dead:
                    _note(tallies[truth["region"]], "lost", truth["event_id"])
                truth = next(truths, None)
            elif effect is not None:
                _note(nobodys, "unexpected", effect["event_id"])
                nobodys.rows += effect["present"]
                effect = next(effects, None)
    return {**tallies, NOBODYS: nobodys}


def total(tallies: Mapping[str, Tally]) -> Tally:
    """All of them together."""
    found = Tally()
    for one in tallies.values():
        for name in ("events", "rows", "lost", "duplicates", "altered", "unexpected", "dead_letters"):
            setattr(found, name, getattr(found, name) + getattr(one, name))
        found.examples += one.examples
        for phase, seconds in one.latencies.items():
            found.latencies.setdefault(phase, []).extend(seconds)
        for phase, (first, last) in one.span.items():
            known = found.span.get(phase, (first, last))
            found.span[phase] = (min(first, known[0]), max(last, known[1]))
    return found


def _of(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        yield {**row, "region": name}


@contextmanager
def _rows(dsn: str, query: str) -> Iterator[Iterator[Row]]:
    with psycopg.connect(dsn) as connection, connection.cursor("rows", row_factory=dict_row) as cursor:
        cursor.itersize = 5000
        cursor.execute(query.encode())
        yield iter(cursor)


def _pair(tally: Tally, truth: Row, effect: Row, columns: Iterable[str]) -> None:
    event_id, phase = truth["event_id"], truth["phase"]
    tally.events += 1
    tally.rows += effect["present"]
    if not effect["present"]:
        _note(tally, "lost", event_id)
        return
    differs = [name for name in columns if truth[name] != effect[name]]
    if differs or effect["effects"] == 0:
        _note(tally, "altered", event_id, ", ".join(differs) or "written without a trace")
    if effect["effects"] > 1:
        _note(tally, "duplicates", event_id, f"{effect['effects']} effects", effect["effects"] - 1)
    if effect["applied"] is not None:
        tally.latencies.setdefault(phase, []).append(effect["applied"] - truth["committed"])
        first, last = tally.span.get(phase, (effect["applied"], effect["applied"]))
        tally.span[phase] = (min(first, effect["applied"]), max(last, effect["applied"]))


def _note(tally: Tally, kind: str, event_id: object, what: str = "", count: int = 1) -> None:
    before = getattr(tally, kind)
    setattr(tally, kind, before + count)
    if before < 3:
        tally.examples.append(f"{kind}: {event_id}" + (f" ({what})" if what else ""))
