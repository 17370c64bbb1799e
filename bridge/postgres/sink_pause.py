"""Destinations that a person has paused: bridge.sink_pause. The dispatcher reads it at every look for messages."""

from __future__ import annotations

import psycopg


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
