"""The world of a test: a source and a target as their customer made them, the bridges and commands between them.

The rig plays the customer, as the demo does (bridge/demo/world.py): it owns the tables, runs the printed SQL and gives
the bridge its role, which has no CREATE anywhere. What is beside the product is in truth.py: what was
committed, what came of it, and the law that compares the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import psycopg
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bridge.demo import world as customer
from bridge.demo.binaries import find_binaries
from tests.support import fixes, truth
from tests.support.bridge_process import DEFAULT_CONFIG, REPOSITORY, BridgeProcess, run_command
from tests.support.producers import Producer
from tests.support.servers import Database, Server, create_database, drop_database, free_port
from tests.support.truth import Unit, Verdict, conservation, settle

STREAM = "outbox_bridge_warehouse"
IMPATIENT = "-c wal_sender_timeout=2s"  # for the source's DSN: this stream's walsender alone
Document = dict[str, Any]
Kind = Literal["source", "target"]


# -- the customer --------------------------------------------------------------------------------------


def make_roles(server: Server) -> None:
    """The bridge's role and an application's; the server may have them."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        customer.make_roles(connection, "bridge")


def fill(database: Database, kind: Kind) -> Database:
    """source: the outbox as printed, the customer's data, rig.truth. target: the ledger as printed, a table for
    usage limits, the trigger that counts effects."""
    with database.connect() as connection:
        if kind == "source":
            customer.make_source(connection)
            truth.install_source(connection)
        else:
            customer.make_target(connection)
            truth.install_target(connection)
            truth.watch(connection, "events.usage_limits")
    return database


def make_database(server: Server, name: str, kind: Kind, *, encoding: str = "") -> Database:
    """A new database with all of that, in place of one of this name. encoding: not the server's."""
    make_roles(server)
    drop_database(Database(server, name))
    template = "template0" if encoding else "template1"
    return fill(create_database(server, name, template, encoding=encoding), kind)


# -- the world -----------------------------------------------------------------------------------------


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
    """`source` and `target` as the customer has them; `bridge()` makes bridges that end with it."""

    def __init__(self, source: Database, target: Database, directory: Path) -> None:
        self.source = source
        self.target = target
        self.directory = directory
        self.config = directory / "bridge.yaml"
        self.text = DEFAULT_CONFIG.read_text()
        self.environment: dict[str, str] = {}  # of commands, beside the DSNs; it may replace them
        self.bridges: list[BridgeProcess] = []
        self._admin = f"127.0.0.1:{free_port()}"

    def close(self) -> None:
        for bridge in self.bridges:
            bridge.close()

    # -- the configuration ------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """The configuration, the demo's at first; bridges and commands started from now on, or a SIGHUP, read it."""
        return self.config.read_text()

    @text.setter
    def text(self, text: str) -> None:
        self.config.write_text(text)

    @property
    def document(self) -> Document:
        """The configuration as values: a copy."""
        document: Document = yaml.safe_load(self.text)
        return document

    def configure(self, change: Callable[[Document], object]) -> Path:
        """Change the configuration; its file."""
        document = self.document
        change(document)
        self.text = yaml.safe_dump(document, sort_keys=False)
        return self.config

    # -- bridges and commands ---------------------------------------------------------------------------

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

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """`bridge COMMAND -c bridge.yaml`, as the bridge's own role; how it ended."""
        command = [sys.executable, "-m", "bridge", *arguments, "-c", str(self.config)]
        return run_command(command, {**self.shell_environment(), **environment}, stdin)

    def shell_environment(self) -> dict[str, str]:
        """Of its commands."""
        given = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        given |= {
            "SOURCE_DSN": self.source.bridge_dsn,
            "WAREHOUSE_DSN": self.target.bridge_dsn,
            "BRIDGE_ADMIN": self.bridges[-1].admin if self.bridges else self._admin,
            "PYTHONPATH": str(REPOSITORY),
        }
        return given | self.environment

    def command(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """What it printed to standard output, after an exit with `code`."""
        ran = self.run(*arguments, stdin=stdin)
        assert ran.returncode == code, f"exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def typed(
        self,
        printed: str,
        *more: str,
        fill: Mapping[str, str] | None = None,
        owner: bool = False,
        code: int = 0,
    ) -> str:
        """A line that was printed, as it was printed, typed into a shell in the configuration's folder; its output, and
        its errors if it fails. more: words behind it, where it says so. fill: for its placeholders. owner: with both
        DSNs of the customer's. Tools that this machine may lack are in `bin` of that folder (debian.at_hand)."""
        fixes.note(printed)
        for place, value in (fill or {}).items():
            assert place in printed
            printed = printed.replace(place, value)
            fixes.note(printed)
        printed = " ".join([printed, *more])
        postgres = find_binaries().directory
        given = {
            **self.shell_environment(),
            **self._owners_login(),
            "BRIDGE_CONFIG": str(self.config),
            "PATH": f"{self.directory / 'bin'}:{Path(sys.executable).parent}:{postgres}:{os.environ['PATH']}",
        }
        if owner:
            given["SOURCE_DSN"], given["WAREHOUSE_DSN"] = self.source.dsn, self.target.dsn
        simple = re.fullmatch(r"bridge [\w :=./@-]+", printed)
        line = [sys.executable, "-m", "bridge", *printed.split()[1:]] if simple else ["sh", "-c", printed]
        with contextlib.chdir(self.directory):
            ran = run_command(line, given)
        assert ran.returncode == code, f"exit {ran.returncode}\n{printed}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout + (ran.stderr if code else "")

    def _owners_login(self) -> dict[str, str]:
        """What the owner of the databases has in a shell: printed lines name no user and no password."""
        both = [conninfo_to_dict(database.dsn) for database in (self.source, self.target)]
        ways = [(w["host"], w["port"], "*", w["user"], w["password"]) for w in both if "password" in w]
        passfile = self.directory / "pgpass"
        passfile.write_text("".join(":".join(str(part) for part in way) + "\n" for way in ways))
        passfile.chmod(0o600)  # libpq reads no other
        stops = self.directory / "psqlrc"
        stops.write_text("\\set ON_ERROR_STOP 1\n")  # a script that fails is a failure
        place = {"PGHOST": str(both[0]["host"]), "PGPORT": str(both[0]["port"]), "PSQLRC": str(stops)}
        return {**place, "PGUSER": str(both[0]["user"]), "PGPASSFILE": str(passfile)}

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The same with --json, read."""
        return json.loads(self.command(*arguments, "--json", code=code))

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
            raise AssertionError(f"{error}\n{self.log_tails()}") from None

    def law(self, unit: Unit | None = None, deadline: float = 30.0) -> Verdict:
        """Wait for a marker, then: the conservation law, and I1 (the slot never ahead of the ledger)."""
        self.caught_up(unit, deadline)
        verdict = conservation(self.source.dsn, self.target.dsn, unit)
        assert verdict.holds, f"{verdict}\n{self.log_tails()}"
        self.check_confirmed()
        return verdict

    def check_confirmed(self) -> None:
        """I1: slot.confirmed_flush <= ledger.safe_lsn. safe_lsn only grows, so it is read second.

        A slot that catch-up has just made starts where it was made, before the ledger has taken it over; nothing
        has been confirmed to it.
        """
        confirmed = self.source.execute(
            "select r.stream, confirmed_flush_lsn::text from pg_replication_slots s join outbox.stream r"
            " on s.slot_name = coalesce(r.slot, r.relay || '_' || r.incarnation)"
        )
        ledger = dict(
            self.target.execute(
                "select stream, safe_lsn::text from bridge.checkpoint where mode = 'stream'"
                f" and stream similar to '{STREAM}(.[0-9]+of[0-9]+)?'"
            )
        )
        for stream, lsn in confirmed:
            if stream not in ledger:
                continue
            ahead = self.source.value("select %s::pg_lsn > %s::pg_lsn", [lsn, ledger[stream]])
            assert not ahead, f"the slot is at {lsn}, {stream} at {ledger[stream]}\n{self.log_tails()}"

    def log_tails(self) -> str:
        """The last lines of every bridge."""
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
