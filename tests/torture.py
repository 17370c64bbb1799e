"""Faults at random under load: `python -m tests.torture --minutes 30 --seed 7 --report build/torture.json`.

Four producers, two bridges, a proxy before each server. Every minute the producers pause and the conservation
law must hold. The report says what really happened; a class of faults that never struck is a failure, because
then the run has proved less than it says. Apart from pytest because it runs as long as one likes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from bridge.demo.cluster import Cluster
from tests.faults.world import IMPATIENT, World, until
from tests.support import customer
from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Producer
from tests.support.proxy import FaultProxy, LostAnswer
from tests.support.servers import Database, Servers, create_database
from tests.support.truth import Verdict, conservation

CLASSES = (
    "kills with a batch open",
    "kills between commit and confirmation",
    "kills at random",
    "freezes",
    "clean stops",
    "target crashes",
    "source crashes",
    "target sessions ended",
    "lost commit answers",
    "links reset",
    "links half open",
    "slots dropped with events pending",
    "slots advanced with events pending",
    "publications toggled",
    "tables missing for a while",
    "table locks",
    "transactions rolled back",
    "transactions in two phases",
    "transactions larger than a batch",
    "duplicate keys",
    "dead letters",
    "takeovers",
)
"""What must have happened at least once."""

KILLS = 5
"""SIGKILLs more in each round of all faults."""

STALLED = 300.0
"""Seconds without progress after which the run has failed. Nothing else has a deadline: a machine can be slow."""
LONGER = 300.0
"""Seconds more, at most, for the classes of faults that have not struck yet."""

OPEN_BATCH = ("apply.sent", "apply.chunk", "bisect.commit")
UNCONFIRMED = ("settle.durable", "confirm.before")
BATCH = 500
_TWO_PHASE = (
    "with made as materialized (select gen_random_uuid() as id, jsonb_build_object('customer_id', 'cus_1',"
    " 'metric', 'seats', 'limit', 1, 'used', 1, 'plan', 'pro') as payload from generate_series(1, %s)),"
    " events as (insert into outbox.event (id, type, payload) select id, 'usage.limit_reached', payload from made)"
    " insert into rig.truth (event_id, type, payload) select id, 'usage.limit_reached', payload from made"
)
_PENDING = """
select exists (select from outbox.event e, outbox.stream s where not pg_visible_in_snapshot(e.xid, s.floor))"""


class Happened:
    """What happened, counted and written down."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.log: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def add(self, what: str, **detail: Any) -> None:
        with self._lock:
            self.counts[what] += 1
            if "transactions" not in what and what != "duplicate keys":
                at = round(time.monotonic() - self._began, 2)
                self.log.append({"at": at, "what": what, **detail})


class Load(threading.Thread):
    """One producer: 1 to 5,000 rows a transaction, rollbacks, two phases, duplicate keys, bad events."""

    def __init__(
        self, source: Database, name: str, seed: int, go: threading.Event, happened: Happened
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.producer = Producer(source.dsn, name=name, seed=seed)
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
        elif what < 0.86:
            bad = {"customer_id": "cus_1", "metric": "seats", "limit": 1, "used": 1, "plan": "bad"}
            producer.transaction(payloads=[{**bad, "plan": "pro"}, bad, {**bad, "plan": "pro"}])
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


class Torture:
    """The servers, the bridges and the faults."""

    def __init__(self, world: World, source: Cluster, target: Cluster, chance: random.Random) -> None:
        self.world = world
        self.source, self.target = source, target
        self.chance = chance
        self.happened = Happened()
        self.withheld: list[tuple[float, float]] = []  # when the publication left inserts out, unix seconds
        self.links = {
            "source": FaultProxy(world.source.bridge_dsn),
            "target": FaultProxy(world.target.bridge_dsn),
        }
        self.bridges: list[BridgeProcess] = []
        self.seen: dict[BridgeProcess, int] = {}
        self.lost: LostAnswer | None = None
        self.epoch = 0
        self.faults: list[Callable[[], None]] = [
            self.kill,
            self.freeze,
            self.stop,
            self.crash_target,
            self.crash_source,
            self.end_session,
            self.lose_commit,
            self.lose_commit,
            self.reset,
            self.half_open,
            self.drop_slot,
            self.drop_slot,
            self.advance_slot,
            self.toggle_publication,
            self.hide_table,
            self.lock_table,
        ]

    # -- bridges ----------------------------------------------------------------------------------------

    def start(self) -> None:
        for _ in range(2):
            made = self.world.bridge(
                source=self.links["source"].dsn, target=self.links["target"].dsn, options=IMPATIENT
            )
            self.bridges.append(made)
            self.begin(made)

    def begin(self, bridge: BridgeProcess, *, armed: bool = True) -> None:
        """Start it, most times armed to kill itself somewhere soon."""
        self.seen[bridge] = len(bridge.lines)
        point = self.chance.choice((*OPEN_BATCH, *UNCONFIRMED, "")) if armed else ""
        count = 1 if point in ("apply.chunk", "bisect.commit") else self.chance.randint(1, 15)
        bridge.start(**({"BRIDGE_FAILPOINTS": f"{point}=kill@{count}"} if point else {}))

    def tend(self, *, armed: bool = True) -> None:
        """Start again what has ended, and write down of what; a takeover is an epoch more."""
        for bridge in self.bridges:
            if bridge.running:
                continue
            code = bridge.wait()
            lines = [
                line
                for line in bridge.lines[self.seen[bridge] :]
                if "failpoint " in line and ": kill" in line
            ]
            point = lines[-1].split("failpoint ")[1].split(":")[0] if lines else ""
            if point:
                kind = "with a batch open" if point in OPEN_BATCH else "between commit and confirmation"
                self.happened.add(f"kills {kind}", point=point)
            elif code not in (0, -signal.SIGKILL, -signal.SIGTERM):  # a SIGTERM during its imports
                self.happened.add("ended by itself", code=code, fenced="fenced" in bridge.log_tail())
            self.begin(bridge, armed=armed)
        if self.lost is not None and self.lost.happened:
            self.happened.add("lost commit answers")
            self.links["target"].clear()
            self.lost = None
        with contextlib.suppress(psycopg.OperationalError, ValueError):
            epoch = int(self.world.checkpoint("epoch"))
            if epoch > self.epoch:
                self.happened.add("takeovers", epoch=epoch)
            self.epoch = epoch

    # -- faults -----------------------------------------------------------------------------------------

    def kill(self) -> None:
        self.chance.choice(self.bridges).kill()
        self.happened.add("kills at random")

    def freeze(self) -> None:
        bridge = self.chance.choice(self.bridges)
        bridge.pause()
        time.sleep(self.chance.uniform(0.5, 5))  # beyond the sender's patience, or not
        bridge.resume()
        self.happened.add("freezes")

    def stop(self) -> None:
        bridge = self.chance.choice(self.bridges)
        code = bridge.terminate(STALLED)
        if any("failpoint " in line and ": kill" in line for line in bridge.lines[self.seen[bridge] :]):
            return  # its own failpoint was faster
        assert code in (0, -signal.SIGTERM) or "fenced" in bridge.log_tail(), bridge.log_tail()
        self.happened.add("clean stops")

    def crash_target(self) -> None:
        self._crash(self.target, "target crashes")

    def crash_source(self) -> None:
        self._crash(self.source, "source crashes")

    def _crash(self, cluster: Cluster, what: str) -> None:
        cluster.crash()
        time.sleep(self.chance.uniform(0, 1))
        cluster.start()
        self.happened.add(what)

    def end_session(self) -> None:
        ended = self.world.target.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'outbox_bridge'"
        )
        if ended:
            self.happened.add("target sessions ended", sessions=len(ended))

    def lose_commit(self) -> None:
        if self.lost is None:
            self.lost = self.links["target"].lose_commit_answer(b"usage_limits", self.chance.randint(1, 5))

    def reset(self) -> None:
        name = self.chance.choice(list(self.links))
        if self.links[name].reset_all():
            self.happened.add("links reset", link=name)

    def half_open(self) -> None:
        name = self.chance.choice(list(self.links))
        if self.links[name].half_open():
            time.sleep(self.chance.uniform(0.5, 4))
            self.clear()
            self.happened.add("links half open", link=name)

    def clear(self) -> None:
        for link in self.links.values():
            link.clear()
        if self.lost is not None and self.lost.happened:
            self.happened.add("lost commit answers")
        self.lost = None

    def drop_slot(self) -> None:
        if self._slot_exists():
            pending = self.world.source.value(_PENDING)
            self.world.drop_slot()
            self.happened.add(f"slots dropped {'with events' if pending else 'with nothing'} pending")

    def advance_slot(self) -> None:
        """End its reader and be faster than the next one."""
        if not self._slot_exists():
            return
        slot = self.world.slot
        with self.world.source.connect() as somebody:
            pending = somebody.execute(_PENDING.encode()).fetchone() == (True,)
            for _ in range(200):
                somebody.execute(
                    "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s and active",
                    [slot],
                )
                with contextlib.suppress(
                    psycopg.errors.ObjectInUse, psycopg.errors.ObjectNotInPrerequisiteState
                ):
                    somebody.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])
                    if pending:
                        self.happened.add("slots advanced with events pending")
                    return

    def _slot_exists(self) -> bool:
        query = "select count(*) from pg_replication_slots where slot_name = %s"
        return bool(self.world.source.value(query, [self.world.slot]))

    def toggle_publication(self) -> None:
        with self.world.source.connect() as owner:
            owner.execute("alter publication outbox_bridge set (publish = 'update')")
            self.withheld.append((time.time(), time.time() + 60))
            time.sleep(self.chance.uniform(0, 0.5))
            owner.execute("alter publication outbox_bridge set (publish = 'insert')")
            self.withheld[-1] = (self.withheld[-1][0], time.time())
        self.happened.add("publications toggled")

    def _late_by_right(self, verdict: Verdict) -> bool:
        """All that came out of order was inserted while a publication withheld inserts: such rows come later than
        their neighbours (docs/guarantees.md, The promise). A second for a transaction's begin and its insert."""
        at = {
            str(event): moment
            for event, moment in self.world.source.execute(
                "select id::text, extract(epoch from occurred_at)::float8 from outbox.event where id = any(%s)",
                [verdict.out_of_order],
            )
        }
        return all(
            any(began - 1 <= at[str(event)] <= ended + 0.1 for began, ended in self.withheld)
            for event in verdict.out_of_order
        )

    def hide_table(self) -> None:
        self.world.target.execute("alter table events.usage_limits rename to hidden")
        time.sleep(self.chance.uniform(0.2, 2))
        self.world.target.execute("alter table events.hidden rename to usage_limits")
        self.happened.add("tables missing for a while")

    def lock_table(self) -> None:
        with self.world.target.connect() as owner, owner.transaction():
            owner.execute("lock table events.usage_limits in exclusive mode")
            time.sleep(self.chance.uniform(0.2, 3))
        self.happened.add("table locks")

    # -- the law ----------------------------------------------------------------------------------------

    def law(self) -> dict[str, Any]:
        """With the producers at rest and all faults cleared."""
        self.clear()
        for database in (self.world.source, self.world.target):
            until(lambda database=database: _accepts(database), "the server accepts", STALLED)  # type: ignore[misc]
        for (gid,) in self.world.source.execute("select gid from pg_prepared_xacts"):  # of a crashed producer
            self.world.source.execute(f"commit prepared '{gid}'")
        took = self._caught_up()
        verdict = conservation(self.world.source.dsn, self.world.target.dsn)
        dead = len(self.world.dead_letters())
        self.happened.counts["dead letters"] = dead
        if self._slot_exists():
            self.world.check_confirmed()
        late = len(verdict.out_of_order) if self._late_by_right(verdict) else 0
        holds = verdict.holds or (bool(late) and replace(verdict, out_of_order=[]).holds)
        found = {
            "holds": holds,
            "verdict": str(verdict),
            "late_because_withheld": late,
            "seconds_to_catch_up": round(took, 2),
        }
        rightly = f", all of them withheld by a publication: {late}" if late else ""
        print(f"{time.strftime('%H:%M:%S')} {verdict}{rightly} ({took:.0f} s to catch up)", flush=True)
        return found

    def _caught_up(self) -> float:
        """Wait for a marker, as long as more and more effects arrive; seconds. Armed bridges may still die of their
        failpoints: those that follow are not armed."""
        began = moved = time.monotonic()
        with self.world.producer("marker") as producer:
            [marker] = producer.transaction(1)
        arrived = "select count(*) from rig.effects where row ->> 'event_id' = %s"
        last = None
        while not self.world.target.value(arrived, [str(marker)]):
            self.tend(armed=False)
            newest = self.world.target.value("select max(n) from rig.effects")
            if newest != last:
                last, moved = newest, time.monotonic()
            assert time.monotonic() < moved + STALLED, (
                f"nothing applied for {STALLED:.0f} s\n{self.world._tails()}"
            )
            time.sleep(0.2)
        return time.monotonic() - began

    def missing(self) -> list[str]:
        """The classes of faults that have not struck."""
        return [name for name in CLASSES if not self.happened.counts[name]]


def _accepts(database: Database) -> bool:
    try:
        database.value("select 1")
    except psycopg.OperationalError:
        return False
    return True


def _database(cluster: Cluster, name: str, fill: Callable[[customer.Connection], None]) -> Database:
    customer.make_roles(cluster)
    database = create_database(cluster, name)
    with database.connect() as connection:
        fill(connection)
    return database


def _at_rest(loads: list[Load]) -> None:
    """Wait until every producer has ended its transaction."""
    for load in loads:
        assert load.idle.wait(STALLED), f"{load.name} does not pause"
        assert load.failure is None, f"{load.name}: {load.failure!r}"


def torture(minutes: float, seed: int, directory: Path) -> dict[str, Any]:
    """Run; the report. `ok`: the law held every time and every class of fault struck. While one has not, the run goes
    on, up to five minutes more."""
    chance = random.Random(seed)
    servers = Servers()
    source, target = servers.private("source"), servers.private("target")
    if not isinstance(source, Cluster) or not isinstance(target, Cluster):
        raise SystemExit("torture crashes servers of its own: it needs the embedded provider")
    world = World(
        _database(source, "torture", customer.make_source),
        _database(target, "torture", customer.make_target),
        directory,
    )
    world.target.execute("alter table events.usage_limits add constraint plan_is_good check (plan <> 'bad')")
    world.target.execute("create index on rig.effects (n)")
    world.target.execute("create index on rig.effects ((row ->> 'event_id'))")
    for cluster in (source, target):  # a crash is recovered from in seconds, on a slow machine too
        cluster.configure(checkpoint_timeout="30s")
    world.configure(lambda c: c["source"].update(batch={"max_events": BATCH}))
    run = Torture(world, source, target, chance)
    go = threading.Event()
    loads = [Load(world.source, f"producer-{n}", seed, go, run.happened) for n in range(4)]
    checks: list[dict[str, Any]] = []
    failure = ""
    began = time.monotonic()
    try:
        run.start()
        for load in loads:
            load.start()
        end = began + minutes * 60
        while not checks or (checks[-1]["holds"] and time.monotonic() < end):
            go.set()
            pause = min(time.monotonic() + 60, end)
            faults: list[Callable[[], None]] = []
            while time.monotonic() < pause:
                # each before any again, and between them a kill: that is what the promise is first of all about
                faults = faults or chance.sample([*run.faults, *[run.kill] * KILLS], len(run.faults) + KILLS)
                # a server is just down, or the slot was given up a moment ago
                with contextlib.suppress(psycopg.OperationalError, psycopg.errors.UndefinedObject):
                    faults.pop()()
                run.tend()
                time.sleep(chance.uniform(0.1, 1.2))
            go.clear()
            _at_rest(loads)
            checks.append(run.law())
            if time.monotonic() >= end and run.missing():
                end = min(time.monotonic() + 60, began + minutes * 60 + LONGER)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        print(failure, flush=True)
    finally:
        for load in loads:
            load.ended.set()
        go.set()
        for load in loads:
            if load.is_alive():
                load.join(30)
        world.close()
        for link in run.links.values():
            link.close()
        servers.close()
    missing = run.missing()
    return {
        "ok": not failure and not missing and bool(checks) and all(check["holds"] for check in checks),
        "seed": seed,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "failure": failure,
        "never_happened": missing,
        "happened": dict(sorted(run.happened.counts.items())),
        "checks": checks,
        "faults": run.happened.log,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--report", type=Path, default=Path("build/torture.json"))
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as directory:
        report = torture(arguments.minutes, seed, Path(directory))
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps(report, indent=1, default=str))
    print(json.dumps({key: report[key] for key in ("ok", "failure", "never_happened", "happened")}, indent=1))
    print(f"report: {arguments.report}")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
