"""The work that every driver in Python does: one statement a batch, prepared, on one connection."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psycopg

STATEMENT = Path(__file__).with_name("upsert.sql").read_text()


def connect() -> psycopg.Connection:
    """Its cursors take $1."""
    return psycopg.connect(os.environ["TARGET_URL"], autocommit=True, cursor_factory=psycopg.RawCursor)


def rows(events: Iterable[tuple[str, str]]) -> str:
    """Ids and payloads (JSON text, which goes through as it is) as the statement's parameter."""
    return "[" + ",".join(f'{{"id":"{id}","payload":{payload}}}' for id, payload in events) + "]"


def upsert(connection: psycopg.Connection, events: Iterable[tuple[str, str]]) -> None:
    """Committed when it returns, if the connection is in autocommit."""
    connection.execute(STATEMENT, [rows(events)], prepare=True)
