"""What the tests of the source's schema need beside the rig's `source`: a database without an outbox."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.servers import Database, create_database, drop_database

_numbers = itertools.count(1)


@pytest.fixture
def empty(source: Database) -> Iterator[Database]:
    """A database with nothing in it, beside `source`, on a server that has the roles."""
    database = create_database(source.server, f"empty_{next(_numbers)}")
    yield database
    drop_database(database)


@pytest.fixture
def app(source: Database) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """An application: member of outbox_producer, and in a transaction as psycopg opens them."""
    with psycopg.connect(source.producer_dsn) as connection:
        yield connection


def waits_for_a_lock(observer: Database, backend_pid: int) -> bool:
    return bool(
        observer.value(
            "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'", [backend_pid]
        )
    )
