"""Types among the outbox's newest events that no pipeline takes."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from bridge.doctor.check import Check, ok
from bridge.planning.taken import UNMATCHED_FIX, TypesTaken, did_you_mean, shown
from bridge.postgres.outbox import Outbox
from bridge.postgres.progress import newest_types

_TOLD = 5


def unmatched(source: psycopg.Connection, outbox: Outbox, taken: TypesTaken) -> Iterator[Check]:
    """A warning that names them; nothing where the outbox is empty or cannot be read, which other checks say."""
    try:
        counts = newest_types(source, outbox)
    except psycopg.Error:
        return
    found = taken.passed_over(counts)
    if not found:
        if counts:
            yield ok(
                "source", "unmatched", f"pipelines take the types of the {sum(counts.values())} newest events"
            )
        return
    said = [
        f"{count} {shown(name)}{f' ({did_you_mean(near)})' if near else ''}"
        for name, count, near in found[:_TOLD]
    ]
    more = f" and {len(found) - _TOLD} other types" if len(found) > _TOLD else ""
    yield Check(
        "warn",
        "source",
        "unmatched",
        f"of the {sum(counts.values())} newest events no pipeline takes {', '.join(said)}{more}",
        UNMATCHED_FIX,
        "config",
    )
