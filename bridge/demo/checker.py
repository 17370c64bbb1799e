"""The demo's checker: compares every committed event with every effect, field by field.

Imports nothing of the bridge, and a test checks that. It reads both databases as their owners, walks truth and
effects in parallel by event id, counts effects by what a trigger wrote (an upsert would hide a second one), and takes
latencies from the servers' own commit timestamps, source commit to target commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


def install(source_dsn: str, target_dsn: str) -> None:
    """What check() compares: demo.truth for producers to fill, and the trigger that notes every effect."""
    for dsn, statements in ((source_dsn, _TRUTH_TABLE), (target_dsn, _EFFECT_TRIGGER)):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statements.encode())


def check(source_dsn: str, target_dsn: str) -> Tally:
    """Compare. Producers and bridge must have stopped."""
    tally = Tally()
    with _rows(source_dsn, _TRUTH) as truths, _rows(target_dsn, _EFFECTS) as effects:
        with psycopg.connect(target_dsn) as connection:
            dead = {row[0] for row in connection.execute(_DEAD)}
        tally.dead_letters = len(dead)
        truth, effect = next(truths, None), next(effects, None)
        while truth is not None or effect is not None:
            if truth is not None and effect is not None and truth["event_id"] == effect["event_id"]:
                _pair(tally, truth, effect)
                truth, effect = next(truths, None), next(effects, None)
            elif truth is not None and (effect is None or truth["event_id"] < effect["event_id"]):
                tally.events += 1
                if truth["event_id"] not in dead:
                    _note(tally, "lost", truth["event_id"])
                truth = next(truths, None)
            elif effect is not None:
                _note(tally, "unexpected", effect["event_id"])
                tally.rows += effect["present"]
                effect = next(effects, None)
    return tally


@contextmanager
def _rows(dsn: str, query: str) -> Iterator[Iterator[Row]]:
    with psycopg.connect(dsn) as connection, connection.cursor("rows", row_factory=dict_row) as cursor:
        cursor.itersize = 5000
        cursor.execute(query.encode())
        yield iter(cursor)


def _pair(tally: Tally, truth: Row, effect: Row) -> None:
    event_id, phase = truth["event_id"], truth["phase"]
    tally.events += 1
    tally.rows += effect["present"]
    if not effect["present"]:
        _note(tally, "lost", event_id)
        return
    differs = [name for name in COLUMNS if truth[name] != effect[name]]
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
