"""The producers, who write until they are told to rest."""

from __future__ import annotations

import contextlib
import threading
import uuid

import psycopg

from tests.support.producers import Producer
from tests.support.servers import Database
from tests.torture.poison import LATIN1_NOTES, strike
from tests.torture.rig import BATCH, STALLED, Happened

_TWO_PHASE = (
    "with made as materialized (select gen_random_uuid() as id, jsonb_build_object('customer_id', 'cus_1',"
    " 'metric', 'seats', 'limit', 1, 'used', 1, 'plan', 'pro') as payload from generate_series(1, %s)),"
    " events as (insert into outbox.event (id, type, payload) select id, 'usage.limit_reached', payload from made)"
    " insert into rig.truth (event_id, type, payload) select id, 'usage.limit_reached', payload from made"
)


class Load(threading.Thread):
    """One producer: 1 to 5,000 rows a transaction, rollbacks, two phases, duplicate keys, poison."""

    def __init__(
        self,
        source: Database,
        name: str,
        seed: int,
        go: threading.Event,
        happened: Happened,
        *,
        latin1: bool = False,
    ) -> None:
        super().__init__(name=name, daemon=True)
        notes = {"notes": LATIN1_NOTES} if latin1 else {}
        self.producer = Producer(source.dsn, name=name, seed=seed, **notes)
        self.latin1 = latin1
        self.go = go
        self.ended = threading.Event()
        self.idle = threading.Event()
        self.failure: BaseException | None = None
        self._happened = happened

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                if not self.go.is_set():
                    self.idle.set()
                    self.go.wait(0.1)
                    continue
                self.idle.clear()
                with contextlib.suppress(psycopg.OperationalError):  # the source was crashed: truth knows
                    self._step()
                self.ended.wait(
                    0.1
                )  # so much that a backlog grows while bridges die, and is caught up in seconds
        except BaseException as error:
            self.failure = error
            self.idle.set()
        finally:
            self.producer.close()

    def _step(self) -> None:
        producer, chance = self.producer, self.producer.chance
        what = chance.random()
        if what < 0.55:
            producer.transaction(chance.randint(1, 5))
        elif what < 0.65:
            producer.transaction(chance.randint(1, 10), via="emit")
        elif what < 0.72:
            producer.transaction(chance.randint(1, 20), rollback=True)
            self._happened.add("transactions rolled back")
        elif what < 0.78:
            self._in_two_phases(chance.randint(1, 50))
        elif what < 0.84:
            producer.duplicate()
            self._happened.add("duplicate keys")
        elif what < 0.88:
            strike(producer, latin1=self.latin1)
        elif what > 0.975:
            rows = int(5000 ** chance.random())
            producer.burst(rows)
            if rows >= 2 * BATCH:
                self._happened.add("transactions larger than a batch")

    def _in_two_phases(self, rows: int) -> None:
        """Prepared, and ended before this producer goes on, whatever crashes between: its keys keep their order."""
        gid = f"torture-{uuid.uuid4()}"
        connection = self.producer.connection
        end = "commit" if self.producer.chance.random() < 0.7 else "rollback"
        with contextlib.suppress(psycopg.OperationalError):
            with connection.transaction():
                connection.execute(_TWO_PHASE, [rows])
                # the block's COMMIT then finds no transaction, which is only a warning
                connection.execute(f"prepare transaction '{gid}'".encode())
            self.ended.wait(self.producer.chance.random() * 0.3)
        while not self.ended.is_set():
            with (
                contextlib.suppress(psycopg.OperationalError),
                contextlib.suppress(psycopg.errors.UndefinedObject),
            ):
                self.producer.connection.execute(f"{end} prepared '{gid}'".encode())
                self._happened.add("transactions in two phases")
                return
            with contextlib.suppress(psycopg.OperationalError):
                known = "select count(*) from pg_prepared_xacts where gid = %s"
                row = self.producer.connection.execute(known, [gid]).fetchone()
                if row == (0,):  # never prepared, or ended and the answer was lost
                    return
            self.ended.wait(0.1)


def at_rest(loads: list[Load]) -> None:
    """Wait until every producer has ended its transaction."""
    for load in loads:
        assert load.idle.wait(STALLED), f"{load.name} does not pause"
        assert load.failure is None, f"{load.name}: {load.failure!r}"
