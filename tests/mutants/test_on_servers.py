"""What only a server can show: locks, snapshots, sessions, savepoints. Each test is one sentence of the protocol."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from bridge.postgres import ledger as ledger_sql
from bridge.postgres import wire
from bridge.postgres.connect import connect
from bridge.postgres.missing import MissingReader
from bridge.postgres.outbox import Outbox
from bridge.postgres.profiles import SOURCE
from bridge.postgres.source import Source
from bridge.postgres.target import BEGIN, COMMIT, Refused, ResultRows, Statement, TargetLink
from bridge.protocol.events import Lsn, Seqs, Snapshot
from bridge.protocol.facts import Ledger, SourceIdentity
from bridge.protocol.requests import ReadMissing
from tests.support import truth
from tests.support.servers import Database
from tests.support.world import World, until

STREAM = b"s"
PLACE = SourceIdentity("1", "app", 5)
Link = Callable[[], "Session"]


def fence(*, create: bool) -> list[Statement]:
    """Of a new session; its row is the last answer but one."""
    return ledger_sql.fence(STREAM.decode(), str(uuid.uuid4()), PLACE, None, create=create)


class Session:
    """A bridge's target session, as far as the ledger goes."""

    def __init__(self, database: Database) -> None:
        self.link = TargetLink(database.bridge_dsn, "bridge/s/0")

    def wait(self) -> None:
        wire.wait([self.link.descriptor], [self.link.descriptor] if self.link.wants_write else [], 1.0)

    def run(self, *statements: Statement) -> ResultRows:
        return self.link.run(statements, self.wait)

    def fence(self) -> Ledger:
        answer = self.run(BEGIN, *fence(create=True), COMMIT)
        return ledger_sql.read_row(answer[-3][0])


@pytest.fixture
def session(target: Database) -> Iterator[Link]:
    made: list[Session] = []

    def make() -> Session:
        made.append(Session(target))
        return made[-1]

    yield make
    for each in made:
        each.link.close()


EFFECT = Statement(
    b"insert into events.usage_limits (event_id, customer_id, payload) values (gen_random_uuid(), 'c', '{}')"
)


def test_a_bridge_that_was_taken_over_writes_nothing_more(target: Database, session: Link) -> None:
    zombie, successor = session(), session()
    before = zombie.fence()
    successor.fence()
    refused = ""
    try:
        zombie.run(BEGIN, ledger_sql.change(before, replace(before, applied_lsn=Lsn(16))), EFFECT, COMMIT)
    except Refused as error:
        refused = error.sqlstate
    assert refused == "22012"
    assert target.value("select count(*) from events.usage_limits") == 0


def test_the_fence_waits_for_a_commit_in_flight_and_reads_what_it_wrote(
    target: Database, session: Link
) -> None:
    first, second = session(), session()
    before = first.fence()
    first.run(BEGIN, ledger_sql.change(before, replace(before, applied_lsn=Lsn(16))), EFFECT)
    second.link.send([BEGIN, *fence(create=False), COMMIT])
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    until(lambda: target.value(waiting), "the fence waits for the row")
    first.run(COMMIT)
    answer = second.link.settle(second.wait)
    assert ledger_sql.read_row(answer[1][0]).applied_lsn == 16


def test_a_new_floor_takes_out_of_applied_only_what_it_shows(session: Link) -> None:
    one = session()
    for xids in ([10], [10, 13], [14]):
        one.run(ledger_sql.list_applied("s", 1, xids, [Lsn(8)] * len(xids), Seqs.of(xids)))
    one.run(ledger_sql.thin("s", Snapshot(12, 15, frozenset({12, 13}))))
    left = one.run(Statement(ledger_sql.LISTED, [STREAM, None]))[0]
    assert [ledger_sql.read_listed(row)[0] for row in left] == [[10, 13]]


def test_a_commit_is_durable_whatever_the_role_is_set_to(target: Database, session: Link) -> None:
    target.execute(f'alter role outbox_bridge in database "{target.name}" set synchronous_commit = off')
    assert session().run(Statement(b"show synchronous_commit"))[0] == [(b"on",)]


def test_a_lower_seq_that_commits_later_is_read(source: Database) -> None:
    put = "insert into outbox.event (type, payload) values ('t', '{}') returning id::text"
    outbox = Outbox()
    with (
        source.connect() as slow,
        source.connect() as quick,
        closing(Source(source.bridge_dsn, "s", outbox, "outbox_bridge")) as control,
        connect(source.bridge_dsn, SOURCE, "s") as reading,
    ):
        slow.execute("begin")
        [late] = slow.execute(put).fetchall()
        quick.execute(put)
        floor, _ = control.take_snapshot()  # shows the quick one, which has the greater seq
        slow.execute("commit")
        upto, _ = control.take_snapshot()
        missing = MissingReader(reading, outbox, 100).read(ReadMissing(floor, upto, 0, None))
    assert [event.id.decode() for event in missing.batch.events] == [late[0]]


@pytest.mark.parametrize(
    "away_and_back",
    [
        ("alter publication {p} set (publish = 'update')", "alter publication {p} set (publish = 'insert')"),
        ("drop publication {p}", "create publication {p} for table outbox.event with (publish = 'insert')"),
        ("alter publication {p} drop table outbox.event", "alter publication {p} add table outbox.event"),
    ],
    ids=["not publishing", "dropped", "without the table"],
)
def test_a_publication_that_was_away_is_another_one(source: Database, away_and_back: tuple[str, str]) -> None:
    with closing(Source(source.bridge_dsn, "s", Outbox(), "outbox_bridge")) as control:
        before = control.facts(None, None, None).publication
        assert before is not None
        assert control.facts(None, None, None).publication == before
        for statement in away_and_back:
            source.execute(statement.format(p="outbox_bridge"))
        after = control.facts(None, None, None).publication
    assert after is not None
    assert after != before


# --- whole bridges ------------------------------------------------------------------------------------

GOOD = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 1, "plan": "pro"}


def test_killed_before_the_commit_of_a_bisected_batch_no_unit_is_nowhere(world: World) -> None:
    world.target.execute("alter table events.usage_limits add check (used <> 7)")
    doomed = world.bridge(failpoints="bisect.commit=kill").start().wait_ready()
    doomed.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(3, payloads=[GOOD, {**GOOD, "used": 7}, GOOD])
    assert doomed.wait() < 0
    world.bridge().start().wait_ready()
    assert world.law().in_dead_letters == 1


def test_a_batch_refused_half_way_is_applied_once(world: World) -> None:
    world.target.execute(
        "create table events.copy (like events.usage_limits including all, check (used <> 7))"
    )
    world.target.execute("grant select, insert, update on events.copy to outbox_bridge")

    def copied(document: dict[str, Any]) -> None:
        destinations = document["pipelines"]["usage-limit-hits"]["destinations"]
        destinations["copy"] = {**destinations["events"], "table": "events.copy"}

    world.configure(copied)
    with world.target.connect() as connection:
        truth.watch(connection, "events.copy")
    world.bridge().start().wait_ready().wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(3, payloads=[GOOD, {**GOOD, "used": 7}, GOOD])
    world.law()
    verdict = world.law(truth.Unit(destination="copy", table="events.copy"))
    assert verdict.in_dead_letters == 1
