"""seq goes back: TRUNCATE ... RESTART IDENTITY, ALTER ... RESTART, or rows that came without their sequence."""

from __future__ import annotations

import pytest

from tests.support.variants import first_fast
from tests.support.world import World, until

_RESTART = "alter table outbox.event alter column seq restart"
_LATEST = """
    create table events.latest (key text primary key, n int, seq bigint);
    grant select, insert, update on events.latest to outbox_bridge"""


def _keeps_the_latest(world: World, capture: str) -> None:
    world.target.execute(_LATEST)

    def change(document: dict[str, object]) -> None:
        source, pipelines = document["source"], document["pipelines"]
        assert isinstance(source, dict)
        assert isinstance(pipelines, dict)
        source.update(capture=capture, poll_interval="100ms")
        pipelines["latest"] = {
            "event": "latest",
            "destinations": {
                "latest": {
                    "connection": "warehouse",
                    "table": "events.latest",
                    "mode": "upsert",
                    "key": ["key"],
                    "version": "$meta.seq",
                    "columns": {"key": "$meta.key", "n": "$event.n", "seq": "$meta.seq"},
                }
            },
        }

    world.configure(change)


def _put(world: World, n: int) -> None:
    world.source.execute(
        "insert into outbox.event (type, key, payload) values ('latest', 'k', jsonb_build_object('n', %s::int))",
        [n],
    )


def _n(world: World) -> int | None:
    rows = world.target.execute("select n from events.latest")
    return int(rows[0][0]) if rows else None


@pytest.mark.fault(84)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.parametrize("runs", [True, False], ids=["bridge up", "bridge down"])
def test_a_newer_event_counts_as_newer_though_seq_went_back(
    world: World, capture: str, *, runs: bool
) -> None:
    _keeps_the_latest(world, capture)
    bridge = world.bridge().start()
    bridge.wait_ready()
    with world.producer() as producer:
        producer.transaction(20)
    _put(world, 1)
    until(lambda: _n(world) == 1, "the old one")
    before = world.checkpoint("floor_lsn")
    world.caught_up()
    until(lambda: world.checkpoint("floor_lsn") != before, "the floor has risen")
    if not runs:
        assert bridge.terminate() == 0
    world.source.execute(_RESTART)
    for n in (2, 3):
        _put(world, n)
    if not runs:
        bridge.start()
    try:
        until(lambda: _n(world) == 3, "the newest one")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{world.log_tails()}") from None
    if capture == "slot":
        world.drop_slot()  # catch-up reads the same seqs from the table
    _put(world, 4)
    until(lambda: _n(world) == 4, "and the next")
    world.law()
    repeated = (
        "select seq, array_agg(xid::text || ' ' || type) from outbox.event group by seq having count(*) > 1"
    )
    assert world.source.execute(repeated) == [], world.log_tails()


@pytest.mark.fault(84)
def test_a_transaction_left_open_beside_renumbered_rows_is_renumbered_too(world: World) -> None:
    _keeps_the_latest(world, "slot")
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(20)

    def risen() -> None:
        before = world.checkpoint("floor_lsn")
        until(lambda: world.checkpoint("floor_lsn") != before, "the floor has risen")

    _put(world, 1)
    until(lambda: _n(world) == 1, "the old one")
    risen()
    world.source.execute(_RESTART)
    with world.source.connect() as late, late.transaction():
        late.execute("insert into outbox.event (type, key, payload) values ('latest', 'k', '{\"n\": 3}')")
        _put(world, 2)
        until(lambda: _n(world) == 2, "the one that committed")
        risen()
    until(lambda: _n(world) == 3, "the open one")
    world.law()


@pytest.mark.fault(84)
def test_a_session_sees_it_that_began_before_the_floor_had_risen(world: World) -> None:
    _keeps_the_latest(world, "slot")
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(20)
    _put(world, 1)
    until(lambda: _n(world) == 1, "the old one")
    bridge.kill()
    since = len(bridge.lines)
    bridge.start()
    bridge.wait_log('"phase":"streaming"', since=since)
    world.source.execute(_RESTART)
    for n in (2, 3):
        _put(world, n)
    until(lambda: _n(world) == 3, "the newest one")
    world.law()


@pytest.mark.fault(84)
def test_where_the_bridge_may_not_write_seq_the_statements_are_printed(world: World) -> None:
    """An outbox of the customer's own, or an installation from before."""
    _keeps_the_latest(world, "slot")
    world.source.execute("revoke update (seq) on outbox.event from outbox_bridge")
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(20)
    _put(world, 1)
    world.caught_up()
    assert bridge.terminate() == 0
    world.source.execute(_RESTART)
    _put(world, 2)
    bridge.start()
    body = bridge.wait_halted("seq_went_back")
    assert _n(world) == 1
    hint = body.partition("as the table's owner: ")[2].replace('\\"', '"')
    setval, _, update = hint.partition("   then: ")
    world.source.typed(setval)
    world.source.typed(update.partition(";")[0])
    until(lambda: _n(world) == 2, "the newer one")
    bridge.wait_ready()
    world.law()
