"""Everything that is done to the rig, each fault a method that writes down what it did. nulls: rows, so far."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

import psycopg

from tests.support.servers import EmbeddedServer
from tests.torture import own
from tests.torture.rig import STALLED, Rig

_PENDING = """
select exists (select from outbox.event e, outbox.stream s where not pg_visible_in_snapshot(e.xid, s.floor))"""


class Faults:
    """`every`: the faults, the likelier ones twice. withheld: when the publication left inserts out, unix seconds."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.withheld: list[tuple[float, float]] = []
        self.every: list[Callable[[], None]] = [
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
        self.nulls = 0
        if rig.own:
            self.every += [self.move_rows, self.move_rows, self.delete_rows, self.insert_nulls]

    def kill(self) -> None:
        self.rig.chance.choice(self.rig.bridges).kill()
        self.rig.happened.add("kills at random")

    def freeze(self) -> None:
        bridge = self.rig.chance.choice(self.rig.bridges)
        bridge.pause()
        time.sleep(self.rig.chance.uniform(0.5, 5))  # beyond the sender's patience, or not
        bridge.resume()
        self.rig.happened.add("freezes")

    def stop(self) -> None:
        bridge = self.rig.chance.choice(self.rig.bridges)
        code = bridge.terminate(STALLED)
        if any("failpoint " in line and ": kill" in line for line in bridge.lines[self.rig.seen[bridge] :]):
            return  # its own failpoint was faster
        assert code in (0, -signal.SIGTERM) or "fenced" in bridge.log_tail(), bridge.log_tail()
        self.rig.happened.add("clean stops")

    def crash_target(self) -> None:
        self._crash(self.rig.target, "target crashes")

    def crash_source(self) -> None:
        self._crash(self.rig.source, "source crashes")

    def _crash(self, cluster: EmbeddedServer, what: str) -> None:
        cluster.crash()
        time.sleep(self.rig.chance.uniform(0, 1))
        cluster.start()
        self.rig.happened.add(what)

    def end_session(self) -> None:
        ended = self.rig.world.target.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'outbox_bridge'"
        )
        if ended:
            self.rig.happened.add("target sessions ended", sessions=len(ended))

    def lose_commit(self) -> None:
        if self.rig.lost is None:
            self.rig.lost = self.rig.links["target"].lose_commit_answer(
                b"usage_limits", self.rig.chance.randint(1, 5)
            )

    def reset(self) -> None:
        name = self.rig.chance.choice(list(self.rig.links))
        if self.rig.links[name].reset_all():
            self.rig.happened.add("links reset", link=name)

    def half_open(self) -> None:
        for _ in range(20):  # the bridges may just have died: then nothing is connected
            name = self.rig.chance.choice(list(self.rig.links))
            if self.rig.links[name].half_open():
                time.sleep(self.rig.chance.uniform(0.5, 4))
                self.rig.clear()
                self.rig.happened.add("links half open", link=name)
                return
            self.rig.tend()
            time.sleep(0.1)

    def drop_slot(self) -> None:
        if self.rig.slot_exists():
            pending = self.rig.world.source.value(_PENDING)
            self.rig.world.drop_slot()
            self.rig.happened.add(f"slots dropped {'with events' if pending else 'with nothing'} pending")

    def advance_slot(self) -> None:
        """End its reader and be faster than the next one."""
        if not self.rig.slot_exists():
            return
        slot = self.rig.world.slot
        with self.rig.world.source.connect() as somebody:
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
                        self.rig.happened.add("slots advanced with events pending")
                    return

    def toggle_publication(self) -> None:
        with self.rig.world.source.connect() as owner:
            owner.execute("alter publication outbox_bridge set (publish = 'update')")
            self.withheld.append((time.time(), time.time() + 60))
            time.sleep(self.rig.chance.uniform(0, 0.5))
            owner.execute("alter publication outbox_bridge set (publish = 'insert')")
            self.withheld[-1] = (self.withheld[-1][0], time.time())
        self.rig.happened.add("publications toggled")

    def hide_table(self) -> None:
        self.rig.world.target.execute("alter table events.usage_limits rename to hidden")
        time.sleep(self.rig.chance.uniform(0.2, 2))
        self.rig.world.target.execute("alter table events.hidden rename to usage_limits")
        self.rig.happened.add("tables missing for a while")

    def move_rows(self) -> None:
        if moved := own.move_rows(self.rig.world):
            self.rig.happened.add("rows moved between partitions", rows=moved)

    def delete_rows(self) -> None:
        if deleted := own.delete_rows(self.rig.world):
            self.rig.happened.add("applied rows deleted", rows=deleted)

    def insert_nulls(self) -> None:
        self.nulls += own.insert_nulls(self.rig.world)
        self.rig.happened.add("rows with NULL")

    def lock_table(self) -> None:
        with self.rig.world.target.connect() as owner, owner.transaction():
            owner.execute("lock table events.usage_limits in exclusive mode")
            time.sleep(self.rig.chance.uniform(0.2, 3))
        self.rig.happened.add("table locks")
