"""Who works on a stream now, and who says that it is theirs?

The sessions of a bridge have its stream's name (profiles.py); names are compared whole. A bridge that is halted, stands
by or is idle writes nothing for a long time, and one that is being replaced by a deployment has no session at all: so a
running bridge dates its registration and its ledger row every minute, and what was dated within LATELY is in use.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg

from bridge.postgres.profiles import DISPATCH, LISTEN, SOURCE, STREAM, fitted, working

DATED_SECONDS = 60.0
LATELY: LiteralString = "interval '10 minutes'"
"""Longer than a restart, a deployment or a move of a container takes."""

_WORKING: LiteralString = (
    "select pid from pg_catalog.pg_stat_activity where datname = current_database()"
    " and starts_with(application_name, %s) order by pid"
)

_NAMED: LiteralString = (
    "select pid from pg_catalog.pg_stat_activity where datname = current_database()"
    " and application_name = any(%s) order by pid"
)

# A row that somebody has locked is being written.
_DATE_LEDGER: LiteralString = """
    update bridge.checkpoint set updated_at = now() where stream = (
        select stream from bridge.checkpoint where stream = %(stream)s
            and updated_at < now() - %(seconds)s * interval '1 second' for update skip locked)"""

_DATE_REGISTRATION: LiteralString = """
    update outbox.stream set updated_at = now() where stream = (
        select stream from outbox.stream where stream = %(stream)s
            and updated_at < now() - %(seconds)s * interval '1 second' for update skip locked)"""


def at_target(target: psycopg.Connection, stream: str) -> list[int]:
    """The pids of the sessions that have fenced the stream."""
    return [int(pid) for (pid,) in target.execute(_WORKING, [working(stream)]).fetchall()]


def attending(target: psycopg.Connection, stream: str) -> list[int]:
    """The pids of the sessions that a bridge has for it beside that: it sends its messages; or the stream is halted or
    stands by, and is looked at every few seconds."""
    names = [DISPATCH.session_name(stream)]
    names += [fitted(f"bridge-{what}/{stream}") for what in ("check", "start", "dead")]
    return [int(pid) for (pid,) in target.execute(_NAMED, [names]).fetchall()]


def at_source(source: psycopg.Connection, stream: str) -> list[int]:
    """The pids of the sessions that read the stream from its source, or its registration."""
    names = [each.session_name(stream) for each in (SOURCE, STREAM, LISTEN)]
    return [int(pid) for (pid,) in source.execute(_NAMED, [names]).fetchall()]


def date_ledger(target: psycopg.Connection, stream: str) -> None:
    """Say that this bridge has the stream."""
    target.execute(_DATE_LEDGER, {"stream": stream, "seconds": DATED_SECONDS / 2})


def date_registration(source: psycopg.Connection, stream: str) -> None:
    """The same at the source."""
    source.execute(_DATE_REGISTRATION, {"stream": stream, "seconds": DATED_SECONDS / 2})
