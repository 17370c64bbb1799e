"""This release beside the next one's schemas: what is compatible goes on, what is not stops, and both go back."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from bridge.postgres.schema import Migration, migrations, sql_directory
from bridge.postgres.versions import KNOWN, NEWER_LEDGER, NEWER_OUTBOX
from tests.integration.ops.conftest import emit, usage
from tests.integration.ops.test_doctor import findings
from tests.integration.sinks.conftest import SECRET
from tests.support.fixes import line_in
from tests.support.receiver import Receiver
from tests.support.servers import Database
from tests.support.world import STREAM, World, until

_NEXT = {
    "bridge.migration": "alter table bridge.checkpoint add column region text;"
    " alter table bridge.delivery add column region text;",
    "outbox.migration": "alter table outbox.stream add column region text;",
}
_UNDO = {
    "bridge.migration": "alter table bridge.checkpoint drop column region;"
    " alter table bridge.delivery drop column region",
    "outbox.migration": "alter table outbox.stream drop column region",
}


def _migrate(database: Database, table: str, *, compatible: bool) -> None:
    """The next release's migration, as its `schema target` or `install` would run it."""
    side: Any = "target" if table == "bridge.migration" else "source"
    known = KNOWN[side]
    text = f"{f'-- compatible from: {known}' if compatible else '-- the next'}\n{_NEXT[table]}\n"
    migration = Migration(known + 1, "next", text)
    database.execute(f"begin; {migration.sql} {migration.record(table)} commit")


def _go_back(database: Database, table: str) -> None:
    """docs/operations.md, Roll back."""
    database.execute(f"begin; {_UNDO[table]}; delete from {table} where name = 'next'; commit")


def test_the_numbers_are_those_of_the_files() -> None:
    assert {side: migrations(side)[-1].version for side in KNOWN} == KNOWN
    for side, query in (("source", NEWER_OUTBOX), ("target", NEWER_LEDGER)):
        assert query.count(f"> {migrations(side)[-1].version}") == 2


def test_an_older_program_stops_at_the_next_ledger_and_goes_on_after_it(
    world: World, source: Database, target: Database
) -> None:
    with closing(Receiver()) as receiver:

        def change(document: dict[str, Any]) -> None:
            document["connections"]["hook"] = {
                "type": "webhook",
                "url": receiver.url,
                "allow": ["127.0.0.0/8"],
                "secret": SECRET,
            }
            pipeline = document["pipelines"]["usage-limit-hits"]
            pipeline["destinations"]["told"] = {"connection": "hook"}

        world.configure(change)
        bridge = world.bridge().start().wait_ready()
        emit(source, usage())
        until(lambda: world.applied() == 1 and len(receiver.requests) == 1, "a row and a message")

        _migrate(target, "bridge.migration", compatible=True)
        emit(source, usage())
        until(lambda: world.applied() == 2 and len(receiver.requests) == 2, "the older program goes on")
        assert bridge.terminate() == 0
        assert " error " not in world.command("doctor")
        bridge = world.bridge().start().wait_ready()
        emit(source, usage())
        until(lambda: world.applied() == 3 and len(receiver.requests) == 3, "and starts")
        _go_back(target, "bridge.migration")

        _migrate(target, "bridge.migration", compatible=False)
        before = world.checkpoint("(applied_lsn, epoch)")
        [event] = emit(source, usage())
        bridge.wait_halted("ledger_newer")
        bridge.wait_log('"dispatcher fault"')
        assert world.checkpoint("(applied_lsn, epoch)") == before
        said = world.command("status", code=1)
        assert "ledger_newer  the ledger is at version 5 (next)" in said
        assert bridge.terminate() == 0
        bridge = world.bridge().start()
        bridge.wait_halted("ledger_newer")
        assert "ledger_newer" in world.command("doctor", code=1)
        for command in (
            ("dead", "retry", "--all"),
            ("dead", "discard", "--all"),
            ("replay", "--destination", "usage-limit-hits/events", "--since", "1h"),
            ("recover", "--stream", STREAM, "--accept-source", "--since", "now"),
            ("sink", "pause", "told"),
            ("sink", "resume", "told"),
            ("sink", "resume", "told", "--recipient", "x"),
            ("prune",),
        ):
            ran = world.run(*command)
            assert ran.returncode == 1, command
            assert "the ledger is at version 5 (next), made by a newer release" in ran.stderr, command
        for command, words in (
            (("tail", "--no-follow"), "usage.limit_reached"),
            (("explain", event), "usage-limit-hits"),
            (("dead", "list"), "no open dead letters"),
            (("sink", "list"), "no message waits"),
            (("top",), "ledger_newer"),
            (("prove",), "lost 0"),
        ):
            ran = world.run(*command)
            assert (ran.returncode, words in ran.stdout) == (0, True), f"{command}: {ran.stdout}{ran.stderr}"
        assert world.checkpoint("(applied_lsn, epoch)") == before
        assert len(receiver.requests) == 3
        _go_back(target, "bridge.migration")
        until(lambda: world.applied() == 4 and len(receiver.requests) == 4, "it goes on by itself")
        world.check_confirmed()


def test_an_older_program_stops_at_the_next_outbox(world: World, source: Database) -> None:
    bridge = world.bridge().start().wait_ready()
    _migrate(source, "outbox.migration", compatible=True)
    emit(source, usage())
    until(lambda: world.applied() == 1, "the older program goes on")
    assert "migration" not in world.run("install").stderr
    assert " error " not in world.command("doctor")
    _go_back(source, "outbox.migration")

    _migrate(source, "outbox.migration", compatible=False)
    bridge.wait_halted("outbox_newer")
    emit(source, usage())  # producers are not concerned
    world.command(
        "emit", "usage.limit_reached", '{"customer_id":"c","metric":"seats","limit":1,"used":1,"plan":"p"}'
    )
    for command in (("prune",), ("recover", "--stream", STREAM, "--accept-source"), ("install",)):
        ran = world.run(*command)
        assert ran.returncode == 1, command
        assert "newer" in ran.stderr, command
    assert "outbox_newer" in world.command("doctor", code=1)
    assert bridge.terminate() == 0
    assert "outbox_newer" in world.command("status", code=1)
    bridge = world.bridge().start()
    bridge.wait_halted("outbox_newer")
    _go_back(source, "outbox.migration")
    until(lambda: world.applied() == 3, "it goes on by itself")
    world.check_confirmed()


def test_a_ledger_of_version_1_is_migrated_under_load_and_back(world: World, target: Database) -> None:
    """A stream of a release before 002 and 003, whose row does not say which database its source is."""
    world.applied_some()
    tables = "drop table bridge.sink, bridge.sink_hold, bridge.audit, bridge.sample;"
    tables += (
        " alter table bridge.delivery drop column history; alter table bridge.dead_letter drop column edited;"
    )
    columns = "source_database, drop column source_database_oid"
    target.execute(
        f"begin; {tables} alter table bridge.dead_letter drop column settled_by;"
        f" alter table bridge.checkpoint drop column {columns};"
        " alter table bridge.migration drop column compatible_from;"
        " delete from bridge.migration where version > 1; commit"
    )
    bridge = world.bridge().start()
    halted = bridge.wait_halted("ledger_version")
    printed = line_in(halted, "bridge schema target | psql <target>").partition("   (")[0]
    place = {"<target>": f"'{target.dsn}'"}
    [finding] = [one for one in findings(world) if one.check == "ledger_version"]
    with world.producer() as producer:
        producer.transaction(5)
        world.typed(finding.fix, fill=place)
        producer.transaction(5)
        bridge.wait_ready()
        world.caught_up()
        assert world.checkpoint("source_database") == world.source.name
        # -- back, as the file says, and forward again, while it is written
        producer.transaction(5)
        undo = (sql_directory() / "target" / "003_source.sql").read_text().partition("--   begin;")[2]
        target.execute("begin; " + undo.replace("--   ", ""))
        producer.transaction(5)
        bridge.wait_halted("ledger_version")
        world.typed(printed, fill=place)
        producer.transaction(5)
        bridge.wait_ready()
    assert world.law().expected > 25
    assert world.checkpoint("source_database") == world.source.name
