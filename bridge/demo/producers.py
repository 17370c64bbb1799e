"""The demo's applications: they commit events, repeat keys, and roll back.

Each event goes into the outbox and, in the same transaction, into demo.truth. They run in threads, as
the role `app`, and know nothing of a bridge.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

TYPE = "usage.limit_reached"
_SINGLE = """
with put as (
    insert into outbox.event (id, type, key, payload) values (%(id)s, %(type)s, %(key)s, %(payload)s)
)
insert into demo.truth (event_id, phase, payload) values (%(id)s, %(phase)s, %(payload)s)
"""
_BURST = """
with made as materialized (
    select * from unnest(%(ids)s::uuid[], %(keys)s::text[], %(payloads)s::jsonb[]) as made (id, key, payload)
), put as (insert into outbox.event (id, type, key, payload) select id, %(type)s, key, payload from made)
insert into demo.truth (event_id, phase, payload) select id, %(phase)s, payload from made
"""
_EMIT = "select outbox.emit(%(type)s, %(payload)s::jsonb, %(idempotency_key)s, %(key)s)"
_TRUTH = "insert into demo.truth (event_id, phase, payload) values (%s, %s, %s)"
_PLANS = (("free", 1000), ("pro", 100_000), ("scale", 5_000_000))


def payload(chance: random.Random) -> dict[str, Any]:
    """One usage.limit_reached event, about 350 bytes as JSON."""
    plan, limit = chance.choice(_PLANS)
    return {
        "customer_id": f"cus_{chance.randint(1, 500)}",
        "metric": chance.choice(("seats", "api-calls", "storage")),
        "limit": limit,
        "used": int(limit * chance.uniform(0.8, 1.1)),
        "plan": plan,
        "workspace": {"region": chance.choice(("eu-1", "us-2")), "name": "Zoë's “workshop” \\ 数据"},
        "measured": chance.choice((0.1, 123456789012345678901, 1e-7)),
        "note": "x" * chance.randint(20, 200),
    }


class Producers:
    """Counters of what was committed, and the ways of committing. Thread-safe."""

    def __init__(self, dsn: str, seed: int = 1) -> None:
        self._dsn = dsn
        self._seed = seed
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._over: set[uuid.UUID] = set()  # events of customers who are twice over
        self.events = 0
        self.transactions = 0
        self.rolled_back = 0  # events
        self.repeated = 0  # emits answered with the first one's id

    def stop(self) -> None:
        """Every loop ends after the transaction it is in."""
        self._stopping.set()

    def _add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def steady(self, events: int, rate: float) -> None:
        """Single-row transactions, `rate` a second: what latency is measured on."""
        chance = random.Random(f"steady {self._seed}")
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            began = time.monotonic()
            for number in range(events):
                if self._stopping.wait(max(0.0, began + number / rate - time.monotonic())):
                    return
                self._single(connection, chance, "steady")

    def rush(self, allowance: Callable[[], int], rate: float) -> None:
        """Three producers at once, the one of bursts at about `rate` events a second, until `allowance()`
        (of events of this call, growing) is used up and 0 is answered."""
        began_with = self.events
        with ThreadPoolExecutor() as pool:
            kinds = ("singles", "bursts", "awkward")
            for done in [pool.submit(self._rush, kind, allowance, began_with, rate) for kind in kinds]:
                done.result()

    def _rush(self, name: str, allowance: Callable[[], int], began_with: int, rate: float) -> None:
        chance = random.Random(f"{name} {self._seed}")
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._stopping.is_set() and (allowed := allowance()):
                left = allowed - (self.events - began_with)
                if left <= 0:
                    self._stopping.wait(0.005)
                elif name == "singles":
                    self._single(connection, chance, "rush")
                elif name == "bursts":
                    size = min(left, chance.randint(2, 200))
                    self._burst(connection, chance, "rush", size)
                    self._stopping.wait(size / rate)
                else:
                    self._awkward(connection, chance)
                    self._stopping.wait(0.01)

    def backlog(self, events: int, size: int = 100) -> None:
        """`events` in transactions of `size`, while nobody takes them away."""
        chance = random.Random(f"backlog {self._seed}")
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while events > 0 and not self._stopping.is_set():
                self._burst(connection, chance, "backlog", min(size, events))
                events -= size

    def twice_over(self, customers: Iterable[int], times: int) -> None:
        """Customers at twice their limit, of whom the application says so at each of `times` requests, under the same
        idempotency key: one event each, however often."""
        chance = random.Random(f"over {self._seed}")
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            for number in (number for _ in range(times) for number in customers):
                if self._stopping.is_set():
                    return
                body = payload(chance) | {"customer_id": f"cus_{number}", "metric": "api-calls"}
                body["used"] = 2 * body["limit"]
                self._emit(connection, body, f"cus_{number}:api-calls:2026-11")

    def _emit(self, connection: psycopg.Connection[Any], body: dict[str, Any], idempotency_key: str) -> None:
        values = {"type": TYPE, "key": body["customer_id"], "payload": json.dumps(body)}
        with connection.transaction():
            event_id = _only(
                connection.execute(_EMIT, {**values, "idempotency_key": idempotency_key}).fetchone()
            )
            if event_id not in self._over:
                connection.execute(_TRUTH, [event_id, "rush", values["payload"]])
        new = event_id not in self._over
        self._over.add(event_id)
        self._add(events=int(new), transactions=int(new), repeated=int(not new))

    def _single(self, connection: psycopg.Connection[Any], chance: random.Random, phase: str) -> None:
        body = payload(chance)
        values = {"id": uuid.uuid4(), "type": TYPE, "key": body["customer_id"], "phase": phase}
        connection.execute(_SINGLE, {**values, "payload": json.dumps(body)})
        self._add(events=1, transactions=1)

    def _burst(
        self, connection: psycopg.Connection[Any], chance: random.Random, phase: str, size: int
    ) -> None:
        bodies = [payload(chance) for _ in range(size)]
        values: dict[str, Any] = {
            "ids": [uuid.uuid4() for _ in bodies],
            "keys": [body["customer_id"] for body in bodies],
            "payloads": [json.dumps(body) for body in bodies],
        }
        connection.execute(_BURST, {**values, "type": TYPE, "phase": phase})
        self._add(events=size, transactions=1)

    def _awkward(self, connection: psycopg.Connection[Any], chance: random.Random) -> None:
        """An emit and its repetition, or a transaction that thinks better of it."""
        body = payload(chance)
        values = {"type": TYPE, "key": body["customer_id"], "payload": json.dumps(body)}
        if chance.random() < 0.3:
            with connection.transaction(force_rollback=True):
                connection.execute(_SINGLE, {**values, "id": uuid.uuid4(), "phase": "rolled back"})
            self._add(rolled_back=1)
            return
        values["idempotency_key"] = f"{body['customer_id']}:{body['metric']}:{uuid.uuid4()}"
        with connection.transaction():
            event_id = _only(connection.execute(_EMIT, values).fetchone())
            connection.execute(_TRUTH, [event_id, "rush", values["payload"]])
        self._add(events=1, transactions=1)
        if chance.random() < 0.5:
            again = _only(connection.execute(_EMIT, {**values, "payload": '{"repeated": true}'}).fetchone())
            if again != event_id:
                raise AssertionError("a repeated idempotency key made a second event")
            self._add(repeated=1)


class Crowd:
    """The producers of several sources, as if they were one's. Each has its part of the events."""

    def __init__(self, dsns: Sequence[str]) -> None:
        self._each = [Producers(dsn, seed=number) for number, dsn in enumerate(dsns, 1)]

    @property
    def events(self) -> int:
        return sum(one.events for one in self._each)

    @property
    def transactions(self) -> int:
        return sum(one.transactions for one in self._each)

    @property
    def rolled_back(self) -> int:
        return sum(one.rolled_back for one in self._each)

    @property
    def repeated(self) -> int:
        return sum(one.repeated for one in self._each)

    def stop(self) -> None:
        for one in self._each:
            one.stop()

    def steady(self, events: int, rate: float) -> None:
        share = self._share(events)
        self._all(lambda _, one: one.steady(share, rate / len(self._each)))

    def rush(self, allowance: Callable[[], int], rate: float) -> None:
        self._all(lambda _, one: one.rush(lambda: self._share(allowance()), rate / len(self._each)))

    def backlog(self, events: int) -> None:
        self._all(lambda _, one: one.backlog(self._share(events)))

    def twice_over(self, customers: Sequence[int], times: int) -> None:
        """Each customer has an account in one of the sources."""
        self._all(lambda number, one: one.twice_over(customers[number :: len(self._each)], times))

    def _share(self, events: int) -> int:
        """Rounded up, and so not less than `events` in all."""
        return -(-events // len(self._each))

    def _all(self, work: Callable[[int, Producers], None]) -> None:
        with ThreadPoolExecutor(len(self._each)) as pool:
            for done in [pool.submit(work, number, one) for number, one in enumerate(self._each)]:
                done.result()


def _only(row: tuple[Any, ...] | None) -> Any:
    if row is None:
        raise AssertionError("no row")
    return row[0]
