"""Producers: applications that put events into the outbox and, in the same transaction, into rig.truth.

They connect as `app`, a member of outbox_producer, and go on by themselves after a crash of the source.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import psycopg

_METRICS = ("seats", "api-calls", "storage")
_PLANS = ("free", "pro", "scale")
# What tends to break on its way: quotes, backslashes, other scripts, a fraction whose zero matters.
_NOTES = ("plain", 'it\'s "quoted"', "back\\slash \\u00e9 \n tab\t", "naïve 数据 🚀", "{a,b},{}", "")

_TRUTH = "insert into rig.truth (event_id, type, key, payload) values (%s, %s, %s, %s)"
_DIRECT = "insert into outbox.event (id, type, key, payload, idempotency_key) values (%s, %s, %s, %s, %s)"
_BURST = """
with made as materialized (
    select gen_random_uuid() as id, %(key)s::text as key,
        jsonb_build_object(
            'customer_id', 'cus_' || 1 + n %% 400,
            'metric', (array['seats', 'api-calls', 'storage'])[1 + n %% 3],
            'limit', 1000, 'used', 900 + n %% 200, 'plan', 'pro', 'note', repeat('x', %(padding)s)) as payload
    from generate_series(1, %(count)s) as n
), events as (
    insert into outbox.event (id, type, key, payload) select id, %(type)s, key, payload from made
)
insert into rig.truth (event_id, type, key, payload) select id, %(type)s, key, payload from made
"""


def usage_payload(chance: random.Random, notes: Sequence[str] = _NOTES) -> dict[str, Any]:
    """A usage.limit_reached event that meets its contract."""
    limit = chance.choice((10, 1000, 100000))
    return {
        "customer_id": f"cus_{chance.randint(1, 500)}",
        "metric": chance.choice(_METRICS),
        "limit": limit,
        "used": chance.randint(1, limit + limit // 10),
        "plan": chance.choice(_PLANS),
        "note": chance.choice(notes),
        "exact": chance.choice((2**63 + 1, 1, 0.1, -12345678901234567890)),
    }


class Producer:
    """One application connection. `source_dsn` may be the superuser's; the user is replaced by `app`."""

    def __init__(
        self,
        source_dsn: str,
        *,
        name: str = "one",
        event_type: str = "usage.limit_reached",
        seed: int = 1,
        notes: Sequence[str] = _NOTES,
    ) -> None:
        self.name = name
        self.event_type = event_type
        self.chance = random.Random(f"{name} {seed}")
        self._notes = notes
        self._dsn = psycopg.conninfo.make_conninfo(source_dsn, user="app", password="bridge")
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._emitted: list[tuple[str, str]] = []  # (idempotency key, payload) of committed emits

    @property
    def connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=10)
        return self._connection

    def transaction(
        self,
        events: int = 1,
        *,
        via: Literal["insert", "emit"] = "insert",
        rollback: bool = False,
        payloads: list[dict[str, Any]] | None = None,
        key: str | None = None,
    ) -> list[uuid.UUID]:
        """`events` rows in one transaction; their ids (of rows that exist only if it committed)."""
        ids: list[uuid.UUID] = []
        with self.connection.transaction(force_rollback=rollback):
            ids.extend(
                self._one(json.dumps(payload, ensure_ascii=False), via, key or self.own_key())
                for payload in payloads or [usage_payload(self.chance, self._notes) for _ in range(events)]
            )
        return ids

    def mixed(self, events: Iterable[tuple[str, dict[str, Any], str | None]]) -> list[uuid.UUID]:
        """(type, payload, key) of each, in one transaction. key: None for one of its own."""
        with self.connection.transaction():
            return [
                self._one(json.dumps(payload, ensure_ascii=False), "insert", key or self.own_key(), kind)
                for kind, payload, key in events
            ]

    def own_key(self) -> str:
        # Its own keys: then the order of truth.n within a key is the order of commits.
        return f"{self.name}-{self.chance.randint(1, 20)}"

    def _one(self, payload: str, via: str, key: str, event_type: str = "") -> uuid.UUID:
        event_type = event_type or self.event_type
        event_id, idempotency_key = uuid.uuid4(), None
        if via == "emit":
            idempotency_key = f"{self.name}:{event_id}"
            statement = "select outbox.emit(%s, %s::jsonb, %s, %s)"
            arguments = [event_type, payload, idempotency_key, key]
            row = self.connection.execute(statement, arguments).fetchone()
            assert row is not None
            event_id = row[0]
        else:
            self.connection.execute(_DIRECT, [event_id, event_type, key, payload, idempotency_key])
        self.connection.execute(_TRUTH, [event_id, event_type, key, payload])
        return event_id

    def duplicate(self) -> None:
        """One event emitted twice under the same idempotency key: one truth."""
        payload = json.dumps(usage_payload(self.chance, self._notes))
        key = f"{self.name}:{uuid.uuid4()}"
        statement = "select outbox.emit(%s, %s::jsonb, %s, null)"
        with self.connection.transaction():
            first = self.connection.execute(statement, [self.event_type, payload, key]).fetchone()
            assert first is not None
            self.connection.execute(_TRUTH, [first[0], self.event_type, None, payload])
        second = self.connection.execute(statement, [self.event_type, '{"other": 1}', key]).fetchone()
        assert second == first

    def burst(self, events: int, padding: int = 200) -> None:
        """One transaction of `events` rows made by the server: as many as wanted, quickly."""
        arguments = {
            "key": f"{self.name}-burst",
            "type": self.event_type,
            "count": events,
            "padding": padding,
        }
        self.connection.execute(_BURST, arguments)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Traffic:
    """Producers in threads, until told to stop: single rows, bursts, duplicates, rollbacks."""

    def __init__(
        self, source_dsn: str, *, producers: int = 2, burst: int = 200, pause: float = 0.002, seed: int = 1
    ):
        self._stop = threading.Event()
        self._pause = pause
        self._burst = burst
        self.transactions = 0  # committed, roughly: for "something happens" only
        self.failures: list[BaseException] = []
        names = [f"producer-{n}" for n in range(producers)]
        self._threads = [
            threading.Thread(
                target=self._produce, args=(Producer(source_dsn, name=name, seed=seed),), name=name
            )
            for name in names
        ]

    def _produce(self, producer: Producer) -> None:
        try:
            with producer:
                while not self._stop.wait(self._pause):
                    # The source is down, or crashed under us: whether that transaction is in, truth knows.
                    with contextlib.suppress(psycopg.OperationalError):
                        self._step(producer)
                        self.transactions += 1
        except BaseException as error:
            self.failures.append(error)

    def _step(self, producer: Producer) -> None:
        what = producer.chance.random()
        if what < 0.80:
            producer.transaction(1)
        elif what < 0.86:
            producer.transaction(producer.chance.randint(2, 10), via="emit")
        elif what < 0.92:
            producer.transaction(producer.chance.randint(1, 20), rollback=True)
        elif what < 0.97:
            producer.duplicate()
        else:
            producer.burst(producer.chance.randint(1, self._burst))

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self.failures:
            raise self.failures[0]
