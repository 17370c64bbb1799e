"""What prune deletes, empties, keeps, and when it stops."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from bridge.protocol.events import NOTHING, parse_snapshot
from bridge.repair import prune as module
from bridge.repair.prune import PruneResult, prune
from tests.support.servers import Database
from tests.support.world import until

pytestmark = pytest.mark.matrix
WEEK = timedelta(days=7)
MONTH_AND_A_WEEK = 36  # days


def put(
    source: Database, days: float, key: str | None = None, type_: str = "a", count: int = 1
) -> list[UUID]:
    """Events in one transaction, as if put in so many days ago: time, and id of version 7, from then."""
    rows = source.execute(
        """
        insert into outbox.event (id, type, payload, idempotency_key, occurred_at)
        select overlay(outbox.uuid7()::text placing
                       substr(lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0'), 1, 8) || '-' ||
                       substr(lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0'), 9, 4)
                       from 1 for 13)::uuid,
               %s, '{"secret": "canary"}', %s, at
        from (select now() - make_interval(secs => %s * 86400) as at) as moment, generate_series(1, %s)
        returning id
        """,
        [type_, key, days, count],
    )
    return [row[0] for row in rows]


def register(source: Database, stream: str, floor: str | None = None, witness: UUID | None = None) -> None:
    """A stream that has applied what `floor` shows; None: everything up to now."""
    source.execute(
        """
        insert into outbox.stream (stream, floor, witness_id)
        values (%s, coalesce(%s::pg_snapshot, pg_current_snapshot()), %s)
        on conflict (stream) do update set floor = excluded.floor, witness_id = excluded.witness_id
        """,
        [stream, floor, None if witness is None else str(witness)],
    )


def run(source: Database, retention: timedelta = WEEK, **options: Any) -> PruneResult:
    """As the bridge's own role."""
    with source.connect("outbox_bridge") as connection:
        return prune(connection, retention, **options)


def left(source: Database) -> set[UUID]:
    return {row[0] for row in source.execute("select id from outbox.event")}


def test_old_and_applied_rows_go_and_young_ones_stay(source: Database) -> None:
    put(source, 8, count=3)
    young = put(source, 6)
    register(source, "warehouse")
    assert run(source) == PruneResult(deleted=3, batches=2)
    assert left(source) == set(young)


def test_without_a_registered_stream_nothing_goes(source: Database) -> None:
    old = put(source, 100)
    pruned = run(source)
    assert pruned == PruneResult(stopped="no stream is registered, so nothing is known to be delivered")
    assert left(source) == set(old)


def test_the_slowest_stream_decides_and_is_named(source: Database) -> None:
    put(source, 9)
    register(source, "slow")
    kept = put(source, 8)
    register(source, "fast")
    assert run(source) == PruneResult(
        deleted=1, batches=2, stopped="stream slow has not applied the older rows"
    )
    assert left(source) == set(kept)
    register(source, "new", str(NOTHING))
    assert run(source).stopped == "stream new has not applied the older rows"
    assert left(source) == set(kept)


def test_a_transaction_stays_until_every_floor_shows_it(source: Database) -> None:
    with psycopg.connect(source.dsn) as open_transaction:
        open_transaction.execute(
            "insert into outbox.event (type, payload, occurred_at) "
            "values ('late', '{}', now() - interval '9 days')"
        )
        put(source, 8)
        register(source, "warehouse")
    assert run(source).deleted == 1
    assert source.execute("select type from outbox.event") == [("late",)]
    register(source, "warehouse")
    assert run(source).deleted == 1


def test_a_streams_witness_stays(source: Database) -> None:
    [witness] = put(source, 8)
    put(source, 8)
    register(source, "warehouse", witness=witness)
    assert run(source).deleted == 1
    assert left(source) == {witness}


def test_a_key_is_remembered_35_days_and_its_payload_for_the_retention(source: Database) -> None:
    [keyed] = put(source, 34, key="k")
    register(source, "warehouse")
    pruned = run(source, timedelta(0))
    assert (pruned.deleted, pruned.emptied) == (0, 1)
    assert source.execute("select id, payload, headers from outbox.event") == [
        (keyed, {}, {"outbox.pruned": True})
    ]
    with source.connect("app") as app:
        assert app.execute("select outbox.emit('a', '{}', 'k')").fetchone() == (keyed,)
    assert run(source, timedelta(0)).emptied == 0


def test_a_key_is_forgotten_after_35_days(source: Database) -> None:
    put(source, MONTH_AND_A_WEEK, key="k")
    register(source, "warehouse")
    assert run(source).deleted == 1


def test_a_key_for_this_year_is_remembered_until_the_year_is_over(source: Database) -> None:
    this_year = source.value("select outbox.period_key('k', 'year')")
    last_year = source.value("select outbox.period_key('k', 'year', 'UTC', now() - interval '1 year')")
    [kept] = put(source, 300, key=this_year)
    put(source, 300, key=last_year)
    put(source, 300, key="k:9999")
    register(source, "warehouse")
    assert run(source) == PruneResult(deleted=2, emptied=1, batches=2)
    assert left(source) == {kept}
    source.execute("update outbox.event set idempotency_key = %s", [last_year])  # a year goes by ...
    source.execute("update outbox.pruned set walk_at = now() - interval '2 days'")
    assert run(source).deleted == 1


def test_the_key_of_a_backdated_event_is_remembered_from_its_insertion(source: Database) -> None:
    source.execute(
        "insert into outbox.event (type, payload, idempotency_key, occurred_at) "
        "values ('a', '{}', 'imported', now() - interval '400 days')"
    )
    register(source, "warehouse")
    pruned = run(source)
    assert (pruned.deleted, pruned.emptied) == (0, 1)


def test_a_retention_longer_than_35_days_keeps_keys_as_long(source: Database) -> None:
    kept = put(source, MONTH_AND_A_WEEK, key="k")
    register(source, "warehouse")
    assert run(source, timedelta(days=60)) == PruneResult(batches=2)
    assert left(source) == set(kept)


def test_keys_met_by_an_earlier_run_are_forgotten_by_a_later_one(source: Database) -> None:
    put(source, 34, key="k")
    register(source, "warehouse")
    assert run(source).emptied == 1
    source.execute(
        "update outbox.event set id = '00000000-0000-7000-8000-000000000000', "
        "occurred_at = now() - interval '36 days'"
    )
    assert run(source).deleted == 1


def test_a_row_that_the_marks_have_passed_is_found_by_the_daily_walk(source: Database) -> None:
    put(source, 8, count=3)
    [future] = put(source, -2)
    put(source, 8, count=3)
    register(source, "warehouse")
    assert run(source, batch=2).deleted == 6
    source.execute("update outbox.event set occurred_at = now() - interval '8 days'")
    assert left(source) == {future}
    assert run(source, batch=2).deleted == 0
    source.execute("update outbox.pruned set walk_at = now() - interval '25 hours'")
    assert run(source, batch=2).deleted == 1


def test_what_was_deleted_is_recorded_with_it(source: Database) -> None:
    put(source, 8)
    put(source, 8, key="k")
    greatest = source.value("select xid::text from outbox.event order by xid desc limit 1")
    register(source, "warehouse")
    floor = source.value("select floor::text from outbox.stream")
    run(source)
    assert source.execute(
        "select xid::text, floor::text, deleted, emptied, pruned_at is not null from outbox.pruned"
    ) == [(greatest, floor, 1, 1, True)]


def test_the_record_shows_what_was_deleted_under_the_floor_of_a_gone_stream(
    source: Database,
) -> None:
    xid = "select xid::text from outbox.event order by xid desc limit 1"
    put(source, 8)
    first = int(source.value(xid))
    register(source, "first")
    assert run(source).deleted == 1
    source.execute("delete from outbox.stream")
    put(source, 8)
    second = int(source.value(xid))
    register(source, "second", f"{first}:{second + 1}:{first}")  # it would still have to read the first row
    assert run(source).deleted == 1
    recorded = parse_snapshot(source.value("select floor::text from outbox.pruned"))
    assert recorded.shows(first)
    assert recorded.shows(second)


def test_a_dry_run_counts_and_changes_nothing(source: Database) -> None:
    put(source, 8, count=5)
    put(source, 8, key="k")
    put(source, MONTH_AND_A_WEEK, key="k2")
    before = left(source)
    register(source, "warehouse")
    state = source.execute("select * from outbox.pruned")
    pruned = run(source, dry_run=True, batch=3)
    assert (pruned.deleted, pruned.emptied) == (6, 1)
    assert left(source) == before
    assert source.execute("select * from outbox.pruned") == state
    real = run(source, batch=3)
    assert (real.deleted, real.emptied) == (pruned.deleted, pruned.emptied)


def test_batches_are_transactions_and_a_run_can_be_asked_to_stop(source: Database) -> None:
    put(source, 8, count=10)
    register(source, "warehouse")
    answers = iter([True, True, False])
    assert run(source, batch=3, go_on=lambda: next(answers)) == PruneResult(
        deleted=6, batches=2, stopped="asked to stop"
    )
    assert len(left(source)) == 4
    assert run(source, batch=3).deleted == 4


def test_two_runs_do_not_get_into_each_others_way(source: Database) -> None:
    put(source, 8)
    register(source, "warehouse")
    with psycopg.connect(source.dsn) as other:
        other.execute("select 1 from outbox.pruned for update")
        assert run(source) == PruneResult(stopped="another prune is running")
    assert run(source).deleted == 1


def test_pruning_stops_while_a_snapshot_keeps_the_deleted_rows(source: Database) -> None:
    put(source, 8, count=3)
    register(source, "warehouse")
    with psycopg.connect(source.producer_dsn, application_name="monthly report") as report:
        report.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        report.execute("select 1")
        assert run(source).deleted == 3
        put(source, 8)
        register(source, "warehouse")
        stopped = run(source)
        assert (stopped.deleted, stopped.batches) == (0, 0)
        assert stopped.stopped.startswith(
            f"pid {report.info.backend_pid} (app, monthly report) has a snapshot"
        )
    assert run(source).deleted == 1


def test_pruning_stops_within_a_run_that_a_snapshot_outlives(
    source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OUTSTANDING", 2)
    put(source, 8, count=10)
    register(source, "warehouse")
    with psycopg.connect(source.dsn) as writer:
        writer.execute("select pg_current_xact_id()")
        stopped = run(source, batch=1)
        assert stopped.deleted == 2
        assert stopped.stopped.startswith(f"pid {writer.info.backend_pid} ")
    assert run(source, batch=1).deleted == 8


def test_a_forgotten_prepared_transaction_is_named(source: Database) -> None:
    put(source, 8)
    register(source, "warehouse")
    source.execute("begin; select pg_current_xact_id(); prepare transaction 'forgotten'")
    try:
        assert run(source).deleted == 1
        put(source, 8)
        register(source, "warehouse")
        assert run(source).stopped.startswith("prepared transaction 'forgotten' has a snapshot")
    finally:
        source.execute("rollback prepared 'forgotten'")


def test_a_connection_in_a_transaction_is_refused(source: Database) -> None:
    with psycopg.connect(source.dsn) as connection:
        connection.execute("select 1")
        with pytest.raises(ValueError, match="not in a transaction"):
            prune(connection, WEEK)


def test_a_batch_reads_the_index_and_not_the_table(source: Database) -> None:
    source.execute(
        "insert into outbox.event (type, payload) select 'filler', '{}' from generate_series(1, 20000)"
    )
    put(source, 8, count=300)
    register(source, "warehouse")
    parameters = {
        "xid": "0",
        "seq": 0,
        "xmax": source.value("select pg_snapshot_xmax(pg_current_snapshot())::text"),
        "floor": source.value("select pg_current_snapshot()::text"),
        "witnesses": [],
        "age": WEEK,
        "memory": WEEK,
        "batch": 100,
    }
    with source.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("set local enable_seqscan = off; set local enable_bitmapscan = off")
        row = connection.execute(
            f"explain (analyze, buffers, format json, timing off) {module._REMOVE}".encode(), parameters
        ).fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    scans = [node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") == "event"]
    kinds = {(node["Node Type"], node.get("Index Name")) for node in scans if "Scan" in node["Node Type"]}
    assert kinds == {("Index Scan", "event_xid_seq"), ("Tid Scan", None)}
    [page] = [node for node in scans if node["Node Type"] == "Index Scan"]
    assert page["Actual Rows"] <= 101


def test_even_a_small_table_without_statistics_is_not_read_whole(source: Database) -> None:
    put(source, 8, count=20)
    register(source, "warehouse")
    scans = "select {} from pg_stat_user_tables where relname = 'event' and schemaname = 'outbox'"
    whole, indexed = source.value(scans.format("seq_scan")), source.value(scans.format("idx_scan"))
    assert run(source).deleted == 20
    until(lambda: source.value(scans.format("idx_scan")) > indexed, "the server has counted the run")
    assert source.value(scans.format("seq_scan")) == whole


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


def test_later_runs_begin_where_the_last_one_ended(source: Database) -> None:
    for day in range(12, 7, -1):
        put(source, day, count=100, type_=f"day {day}")
    for n in range(50):
        put(source, 8, key=f"k{n}")
    put(source, 1, count=300)
    register(source, "warehouse")
    assert run(source, batch=50).deleted == 500
    again = run(source, batch=50)
    assert (again.deleted, again.emptied, again.batches) == (0, 0, 2)
