"""One source, one target and the bridges between them: what every fault is done to, and the law at its end.

Apart from tests/support because it knows the product's configuration and ledger; the law itself is there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.bridge_process import DEFAULT_CONFIG, BridgeProcess
from tests.support.producers import Producer
from tests.support.servers import Database
from tests.support.truth import Unit, Verdict, conservation, settle

STREAM = "outbox_bridge_warehouse"
IMPATIENT = "-c wal_sender_timeout=2s"  # for the source's DSN: this stream's walsender alone
Document = dict[str, Any]


def until(condition: Callable[[], Any], what: str, deadline: float = 30.0) -> Any:
    """Look again until the condition holds; its value. Fails after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline:.0f} s: {what}"
        time.sleep(0.02)
    return value


def with_options(dsn: str, options: str) -> str:
    """The DSN with these server options as well."""
    given = str(conninfo_to_dict(dsn).get("options") or "")
    return make_conninfo(dsn, options=f"{given} {options}".strip())


class World:
    """`source` and `target` as the customer has them; `bridge()` makes bridges that end with the test."""

    def __init__(self, source: Database, target: Database, directory: Path) -> None:
        self.source = source
        self.target = target
        self.directory = directory
        self.document: Document = yaml.safe_load(DEFAULT_CONFIG.read_text())
        self.bridges: list[BridgeProcess] = []

    def configure(self, change: Callable[[Document], object]) -> Path:
        """Change the configuration; the file that bridges made from now on (or a SIGHUP) read."""
        document = copy.deepcopy(self.document)
        change(document)
        self.document = document
        return self.write_config()

    @property
    def config(self) -> Path:
        return self.directory / "bridge.yaml"

    def write_config(self) -> Path:
        self.config.write_text(yaml.safe_dump(self.document, sort_keys=False))
        return self.config

    def bridge(
        self,
        *,
        source: str | None = None,
        target: str | None = None,
        options: str = "",
        failpoints: str = "",
        **environment: str,
    ) -> BridgeProcess:
        """A bridge, not started. options: server options of its connections to the source."""
        self.write_config()
        made = BridgeProcess(
            source=with_options(source or self.source.bridge_dsn, options),
            target=target or self.target.bridge_dsn,
            directory=self.directory,
            config=self.config,
            failpoints=failpoints,
            environment=environment,
            name=f"bridge-{len(self.bridges)}",
        )
        self.bridges.append(made)
        return made

    def close(self) -> None:
        for bridge in self.bridges:
            bridge.close()

    def producer(self, name: str = "one") -> Producer:
        return Producer(self.source.dsn, name=name)

    def applied_some(self, events: int = 5) -> BridgeProcess:
        """A bridge that streamed, applied some events and ended in peace."""
        bridge = self.bridge().start()
        bridge.wait_log("streaming")
        with self.producer() as producer:
            producer.transaction(events)
            self.caught_up()
        assert bridge.terminate() == 0
        return bridge

    # -- what is true -----------------------------------------------------------------------------------

    def checkpoint(self, column: str) -> Any:
        """One column of the stream's ledger row, as text."""
        return self.target.value(f"select {column}::text from bridge.checkpoint where stream = '{STREAM}'")

    @property
    def slot(self) -> str | None:
        """The slot that the stream is registered with."""
        rows = self.source.execute("select slot from outbox.stream where stream = %s", [STREAM])
        return rows[0][0] if rows else None

    def dead_letters(self) -> list[tuple[str, str, str]]:
        """(event id, code, cause) of every open dead letter."""
        return [
            (row[0], row[1], row[2])
            for row in self.target.execute(
                "select event_id, code, cause from bridge.dead_letter where state = 'open' order by event_seq"
            )
        ]

    def applied(self, table: str = "events.usage_limits") -> int:
        """Rows of a target table."""
        return int(self.target.value(f"select count(*) from {table}"))

    def caught_up(self, unit: Unit | None = None, deadline: float = 30.0) -> float:
        """Wait for a marker; seconds it took. On failure, the bridges' last lines as well."""
        try:
            return settle(self.source.dsn, self.target.dsn, unit, deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._tails()}") from None

    def law(self, unit: Unit | None = None, deadline: float = 30.0) -> Verdict:
        """Wait for a marker, then: the conservation law, and I1 (the slot never ahead of the ledger)."""
        self.caught_up(unit, deadline)
        verdict = conservation(self.source.dsn, self.target.dsn, unit)
        assert verdict.holds, f"{verdict}\n{self._tails()}"
        self.check_confirmed()
        return verdict

    def check_confirmed(self) -> None:
        """I1: slot.confirmed_flush <= ledger.safe_lsn. safe_lsn only grows, so it is read second.

        A slot that catch-up has just made starts where it was made, before the ledger has taken it over; nothing
        has been confirmed to it.
        """
        confirmed = self.source.execute(
            "select confirmed_flush_lsn::text from pg_replication_slots s join outbox.stream r on r.slot = s.slot_name"
        )
        ((mode, safe),) = self.target.execute(
            f"select mode, safe_lsn::text from bridge.checkpoint where stream = '{STREAM}'"
        )
        if mode != "stream":
            return
        for (lsn,) in confirmed:
            ahead = self.source.value("select %s::pg_lsn > %s::pg_lsn", [lsn, safe])
            assert not ahead, f"the slot is at {lsn}, the ledger at {safe}\n{self._tails()}"

    def _tails(self) -> str:
        return "\n".join(bridge.log_tail() for bridge in self.bridges)

    # -- faults -----------------------------------------------------------------------------------------

    def drop_slot(self) -> None:
        """As somebody else would: end who reads it, drop it before he is back."""
        with self.source.connect() as connection:
            drop_slot(connection, str(self.slot))


def drop_slot(connection: psycopg.Connection[Any], name: str, deadline: float = 20.0) -> None:
    """End whoever reads this slot and drop it."""
    end = time.monotonic() + deadline
    while True:
        connection.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s and active",
            [name],
        )
        try:
            connection.execute("select pg_drop_replication_slot(%s)", [name])
        except psycopg.errors.ObjectInUse:
            assert time.monotonic() < end, f"slot {name} stays in use"
            time.sleep(0.005)
        else:
            return
