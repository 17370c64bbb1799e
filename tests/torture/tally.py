"""Nothing lost, nothing doubled, and nobody in another's place: SQL on both sides, of every source and target.

Apart from the product on purpose: this module imports nothing of it. rig.truth has what was committed, rig.effects what
came of it (tests/support/truth.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

_TRUTH = "select event_id::text, key, n, payload::text from rig.truth"
_EFFECTS = "select row ->> 'event_id', operation, (row -> 'payload')::text from rig.effects order by n"
_OWNERS = """
    select stream, epoch, source_database, system_identifier from bridge.checkpoint"""
_HERE = "select current_database()::text, (select system_identifier::text from pg_control_system())"


@dataclass(slots=True)
class Tally:
    """Counts of events, over all pairs of source and target; examples of what is wrong."""

    expected: int = 0
    applied: int = 0
    lost: int = 0
    doubled: int = 0
    unexpected: int = 0
    wrong: int = 0
    out_of_order: int = 0
    dead_letters: int = 0
    strangers: list[str] = field(default_factory=list)  # ledger rows of another source than the stream's own
    examples: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        counts = (self.lost, self.doubled, self.unexpected, self.wrong, self.out_of_order, self.dead_letters)
        return self.expected > 0 and not any(counts) and not self.strangers


def tally(
    sources: Mapping[str, str], targets: Mapping[str, str], streams: Mapping[str, tuple[str, str]]
) -> Tally:
    """sources, targets: name -> dsn, as superuser; streams: name -> (source, target). Producers have stopped."""
    found = Tally()
    truths: dict[str, dict[str, tuple[str, int, str]]] = {}
    places: dict[str, tuple[str, str]] = {}
    for name, dsn in sources.items():
        with psycopg.connect(dsn) as connection:
            truths[name] = {row[0]: row[1:] for row in connection.execute(_TRUTH)}
            [places[name]] = connection.execute(_HERE).fetchall()
    for target, dsn in targets.items():
        with psycopg.connect(dsn) as connection:
            effects = connection.execute(_EFFECTS).fetchall()
            owners = connection.execute(_OWNERS).fetchall()
            letters = connection.execute("select count(*) from bridge.dead_letter").fetchall()[0][0]
        here = {source for source, its_target in streams.values() if its_target == target}
        _compare(found, target, {name: truths[name] for name in here}, effects)
        found.dead_letters += letters
        for stream, _, database, system in owners:
            source = streams.get(stream, ("?", ""))[0]
            if (database, system) != places.get(source):
                found.strangers.append(f"{stream} in {target}: of {database} of system {system}")
    return found


def _compare(
    found: Tally,
    target: str,
    truths: Mapping[str, Mapping[str, tuple[str, int, str]]],
    effects: list[tuple[Any, ...]],
) -> None:
    counts = Counter(event for event, _, _ in effects)
    known = {event: (source, *row) for source, truth in truths.items() for event, row in truth.items()}
    found.expected += len(known)
    found.applied += sum(event in counts for event in known)
    newest: dict[tuple[str, str], int] = {}

    def wrong(name: str, event: str) -> None:
        setattr(found, name, getattr(found, name) + 1)
        if len(found.examples) < 20:
            found.examples.append(f"{name}: {event} in {target}")

    for event in known.keys() - counts.keys():
        wrong("lost", event)
    for event, count in counts.items():
        if event not in known:
            wrong("unexpected", str(event))
        elif count > 1:
            wrong("doubled", event)
    for event, operation, payload in effects:
        if event not in known:
            continue
        source, key, n, committed = known[event]
        if operation != "INSERT" or payload != committed:
            wrong("wrong", event)
        if newest.get((source, key), 0) > n:
            wrong("out_of_order", event)
        newest[source, key] = max(n, newest.get((source, key), 0))
