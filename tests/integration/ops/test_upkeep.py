"""What runs beside the streams: pruning. (Parked dead letters: test_dead.py.)"""

from __future__ import annotations

import pytest

from bridge.config.load import load
from bridge.plans import stream_plans
from bridge.postgres.whose import Owned
from bridge.repair.upkeep import Upkeep
from bridge.stream.spec import StreamSpec
from tests.support.bridge_process import FAILPOINTS
from tests.support.servers import Database
from tests.support.world import World, until

_OLD = "insert into outbox.event (type, payload, occurred_at) values ('a', '{}', now() - interval '8 days')"
_ALL_APPLIED = "insert into outbox.stream (stream, floor) values ('warehouse', pg_current_snapshot())"


def test_upkeep_prunes_what_is_delivered_and_old_and_ends_when_asked(
    world: World, source: Database, target: Database
) -> None:
    source.execute(_OLD)
    source.execute(_OLD.replace("8 days", "6 days"))
    source.execute(_ALL_APPLIED)
    dsns = {"SOURCE_DSN": source.bridge_dsn, "WAREHOUSE_DSN": target.bridge_dsn}
    plans = stream_plans(load(world.config, dsns))
    upkeep = Upkeep(lambda: plans, Owned(), retry_every=0.05, prune_every=0.0)
    upkeep.start()
    until(lambda: source.value("select count(*) from outbox.event") == 1, "the old row is gone")
    upkeep.stop()
    upkeep.thread.join(20)
    assert not upkeep.thread.is_alive()
    assert source.value("select count(*) from outbox.event") == 1


def test_nothing_is_pruned_while_a_target_has_a_newer_ledger(
    world: World, source: Database, target: Database
) -> None:
    source.execute(_OLD)
    source.execute(_ALL_APPLIED)
    target.execute("insert into bridge.migration (version, name, checksum) values (99, 'next', '')")
    dsns = {"SOURCE_DSN": source.bridge_dsn, "WAREHOUSE_DSN": target.bridge_dsn}
    turns: list[int] = []

    def plans() -> list[StreamSpec]:
        turns.append(1)
        return stream_plans(load(world.config, dsns))

    upkeep = Upkeep(plans, Owned(), retry_every=0.05, prune_every=0.0)
    upkeep.start()
    until(lambda: len(turns) > 20, "many turns, of which each would prune")
    assert source.value("select count(*) from outbox.event") == 1
    target.execute("delete from bridge.migration where version = 99")
    until(lambda: source.value("select count(*) from outbox.event") == 0, "the old row is gone")
    upkeep.stop()
    upkeep.thread.join(20)


def test_a_bridge_dates_what_it_has(world: World, source: Database, target: Database) -> None:
    """Idle for an hour when a deployment stops it: nobody takes it for what is left behind."""
    world.applied_some()
    dsns = {"SOURCE_DSN": source.bridge_dsn, "WAREHOUSE_DSN": target.bridge_dsn}
    plans = stream_plans(load(world.config, dsns))
    before = world.checkpoint("(epoch, session, applied_lsn, safe_lsn)")
    rows = ((source, "outbox.stream"), (target, "bridge.checkpoint"))
    for database, table in rows:
        database.execute(f"update {table} set updated_at = now() - interval '1 hour'")
    upkeep = Upkeep(lambda: plans, Owned(), retry_every=0.05, prune_every=60)
    upkeep.start()
    for database, table in rows:
        fresh = f"select updated_at > now() - interval '5 minutes' from {table}"
        until(lambda database=database, fresh=fresh: database.value(fresh), table)  # type: ignore[misc]
    upkeep.stop()
    upkeep.thread.join(20)
    assert world.checkpoint("(epoch, session, applied_lsn, safe_lsn)") == before


@pytest.mark.parametrize(("act", "code"), [("kill", -9), ("raise", 1), ("hang", -9)])
def test_a_prune_that_ends_in_a_batch_has_deleted_nothing(
    world: World, source: Database, act: str, code: int
) -> None:
    source.execute(_OLD)
    source.execute(_ALL_APPLIED)
    world.environment[FAILPOINTS] = f"prune.batch={act}"
    assert world.run("prune").returncode == code
    assert source.value("select count(*) from outbox.event") == 1
    del world.environment[FAILPOINTS]
    world.command("prune")
    assert source.value("select count(*) from outbox.event") == 0
