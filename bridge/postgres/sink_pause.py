"""What a person has paused: whole destinations (bridge.sink_pause), and within one the messages with a cause or to a
recipient (bridge.sink_hold). The dispatcher reads both at every look for messages.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import psycopg

Unit = tuple[str, str]
"""(pipeline, destination)"""


def pause(
    connection: psycopg.Connection, stream: str, lane: tuple[str, str], by: str, reason: str | None
) -> None:
    """Pause a (pipeline, destination); paused already: the new reason stands."""
    connection.execute(
        "insert into bridge.sink_pause (stream, pipeline, destination, paused_by, reason)"
        " values (%s, %s, %s, %s, %s) on conflict (stream, pipeline, destination)"
        " do update set paused_by = excluded.paused_by, reason = excluded.reason, paused_at = now()",
        [stream, *lane, by, reason],
    )


def resume(connection: psycopg.Connection, stream: str, lane: tuple[str, str]) -> bool:
    """End the pause. False: there was none."""
    return bool(
        connection.execute(
            "delete from bridge.sink_pause where stream = %s and pipeline = %s and destination = %s",
            [stream, *lane],
        ).rowcount
    )


def paused(connection: psycopg.Connection, stream: str) -> dict[tuple[str, str], str]:
    """The paused (pipeline, destination) pairs of a stream: by whom, and why."""
    rows = connection.execute(
        "select pipeline, destination, paused_by || coalesce(': ' || reason, '') from bridge.sink_pause"
        " where stream = %s",
        [stream],
    )
    return {(row[0], row[1]): row[2] for row in rows}


def carry(
    old: psycopg.Connection, before: tuple[str, Unit], new: psycopg.Connection, after: tuple[str, Unit]
) -> list[tuple[str, str]]:
    """The pauses of a (stream, unit) that has another name now, of all of it or of a part, are that one's. Of each: the
    option of `bridge sink resume` that ends it (empty: all of it is paused), and by whom and why."""
    told = []
    if said := _carry_all(old, before, new, after):
        told.append(("", said))
    for one in holds(old, before[0]):
        if one.unit == before[1]:
            _carry_part(old, before[0], new, after, one)
            told.append((one.option, one.said))
    return told


def _carry_all(
    old: psycopg.Connection, before: tuple[str, Unit], new: psycopg.Connection, after: tuple[str, Unit]
) -> str | None:
    row = old.execute(
        "select paused_by, reason from bridge.sink_pause where stream = %s and pipeline = %s and destination = %s",
        [before[0], *before[1]],
    ).fetchone()
    if row is None:
        return None
    pause(new, *after, *row)
    resume(old, *before)
    return f"{row[0]}: {row[1]}" if row[1] else str(row[0])


# -- a part of a destination's messages -----------------------------------------------------------------

Part = Literal["cause", "recipient"]


@dataclass(frozen=True, slots=True)
class Hold:
    """value: the code of the last answer, or a recipient's digest. label: as it is shown. said: by whom, and why."""

    unit: Unit
    kind: Part
    value: str
    label: str
    said: str

    @property
    def option(self) -> str:
        """Of `bridge sink resume`, that ends it."""
        return f"--{self.kind} {self.label if self.kind == 'cause' else self.value[:12]}"

    def takes(self, last_error: str | None, recipient: str | None) -> bool:
        """Does a message wait for it? last_error: `code: cause`."""
        if self.kind == "cause":
            return last_error is not None and last_error.partition(":")[0] == self.value
        return recipient is not None and digest(recipient) == self.value


def digest(recipient: str) -> str:
    """The ledger does not keep whom a person named."""
    return hashlib.sha256(recipient.encode()).hexdigest()


def holds(connection: psycopg.Connection, stream: str) -> list[Hold]:
    """Empty on a ledger that is older."""
    if connection.execute("select to_regclass('bridge.sink_hold')").fetchone() == (None,):
        return []
    rows = connection.execute(
        "select pipeline, destination, kind, value, label, paused_by || coalesce(': ' || reason, '')"
        " from bridge.sink_hold where stream = %s order by paused_at",
        [stream],
    )
    return [Hold((row[0], row[1]), *row[2:]) for row in rows]


def hold(connection: psycopg.Connection, stream: str, one: Hold, by: str, reason: str | None) -> None:
    """Messages that it takes wait from now on; held already: the new reason stands."""
    connection.execute(
        "insert into bridge.sink_hold (stream, pipeline, destination, kind, value, label, paused_by, reason)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s) on conflict (stream, pipeline, destination, kind, value)"
        " do update set paused_by = excluded.paused_by, reason = excluded.reason, paused_at = now()",
        [stream, *one.unit, one.kind, one.value, one.label, by, reason],
    )


def _carry_part(
    old: psycopg.Connection, stream: str, new: psycopg.Connection, after: tuple[str, Unit], one: Hold
) -> None:
    row = old.execute(
        "select paused_by, reason from bridge.sink_hold where stream = %s and pipeline = %s and destination = %s"
        " and kind = %s and value = %s",
        [stream, *one.unit, one.kind, one.value],
    ).fetchone()
    if row is not None:
        hold(new, after[0], replace(one, unit=after[1]), *row)
        release(old, stream, one)


def release(connection: psycopg.Connection, stream: str, one: Hold) -> None:
    """End it. What it held was put off, and is due at once only if it is hurried (queued.hurry)."""
    connection.execute(
        "delete from bridge.sink_hold where stream = %s and pipeline = %s and destination = %s and kind = %s"
        " and value = %s",
        [stream, *one.unit, one.kind, one.value],
    )
