"""PgBouncer in front of the source and of the target, as a pool of sessions and as one of transactions.

Every part and every command works, or is refused with the fix for that cause. Nothing is left behind for the next
client of the pool."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from bridge.errors import CannotConnect, Halt
from bridge.postgres import profiles
from bridge.postgres.connect import Pool, connect, connect_pq
from bridge.postgres.profiles import Profile
from tests.security.pgbouncer import PgBouncer
from tests.support.receiver import Receiver
from tests.support.servers import Database, free_port
from tests.support.world import Document, World, until

KINDS = ("session", "transaction")
REFUSES_OR_DROPS = pytest.mark.parametrize(
    "settings", [{}, {"ignore_startup_parameters": "options"}], ids=["refuses", "drops"]
)
PROFILES = [value for value in vars(profiles).values() if isinstance(value, Profile)]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
KEY = "0123456789abcdef0123456789abcdef"
USAGE = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 9, "plan": "pro"}

Pooler = Callable[..., PgBouncer]


def _poll(document: Document) -> None:
    document["source"] |= {"capture": "poll", "poll_interval": "200ms"}
    [enrich] = [step["enrich.entity"] for step in document["pipelines"]["usage-limit-hits"]["steps"]]
    enrich["cache"] = "0s"  # every batch looks up, more often than a statement stays unprepared


@pytest.mark.security(1)
@pytest.mark.fault(54, 68)
@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}], ids=["refuses", "drops"])
def test_polling_works_behind_a_pooler_in_transaction_mode(
    world: World, pgbouncer: Pooler, settings: dict[str, Any]
) -> None:
    """Whether it refuses the options of the startup packet or drops them in silence."""
    world.configure(_poll)
    pooler = pgbouncer(world.source.dsn, "transaction", **settings)
    with world.producer() as producer:
        producer.burst(2500)
        bridge = world.bridge(source=pooler.dsn(world.source.bridge_dsn)).start().wait_ready()
        assert "timer" in bridge.wait_log('"event":"polling"')  # LISTEN is of no use there, and it knows
        for _ in range(8):
            producer.transaction(3, via="emit")
            world.caught_up()
    assert world.law().expected > 2500
    assert not [line for line in bridge.logs if line.get("level") == "error"], bridge.log_tail()


@pytest.mark.security(1)
@pytest.mark.fault(68)
def test_a_pooler_that_cannot_carry_replication_is_named(world: World, pgbouncer: Pooler) -> None:
    pooler = pgbouncer(world.source.dsn, "transaction")
    bridge = world.bridge(source=pooler.dsn(world.source.bridge_dsn)).start()
    assert "source.capture to poll" in bridge.wait_log("a pooler cannot carry replication")


@pytest.mark.security(2)
@pytest.mark.fault(68)
@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}], ids=["refuses", "drops"])
def test_a_target_behind_a_pool_of_sessions_is_as_good_as_the_server(
    world: World, pgbouncer: Pooler, settings: dict[str, Any]
) -> None:
    pooler = pgbouncer(world.target.dsn, "session", **settings)
    bridge = world.bridge(target=pooler.dsn(world.target.bridge_dsn)).start().wait_ready()
    with world.producer() as producer:
        producer.burst(1000)
        producer.transaction(3)
        world.caught_up()
        bridge.kill()
        producer.transaction(3)
        bridge.start().wait_ready()
    world.law()


@pytest.mark.security(2)
@pytest.mark.fault(68)
@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}], ids=["refuses", "drops"])
def test_a_target_behind_a_transaction_pool_is_refused_before_any_setting(
    world: World, pgbouncer: Pooler, settings: dict[str, Any]
) -> None:
    pooler = pgbouncer(world.target.dsn, "transaction", **settings)
    with world.producer() as producer:
        producer.transaction(3)
    bridge = world.bridge(target=pooler.dsn(world.target.bridge_dsn)).start()
    assert "pool_mode = session" in bridge.wait_halted("target_pooled")
    world.configure(lambda document: document.update(scale={"share": True}))
    sharing = world.bridge(target=pooler.dsn(world.target.bridge_dsn)).start()
    assert "pool_mode = session" in sharing.wait_halted("target_pooled")
    assert world.applied() == 0
    assert world.target.value("select count(*) from pg_locks where locktype = 'advisory'") == 0
    left = world.target.value(
        "select count(*) from pg_stat_activity where application_name like 'bridge/%' and datname = current_database()"
    )
    assert left == 0


# -- every part and every command ----------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def _everything(document: Document, receiver: Receiver, ingress: int) -> None:
    """Polling, an ingress, a table and a sink."""
    _poll(document)
    document["ingress"] = {"listen": f"127.0.0.1:{ingress}", "api_keys": [KEY]}
    hook = {"type": "webhook", "url": receiver.url, "secret": SECRET, "allow": ["127.0.0.0/8"]}
    document["connections"]["hook"] = hook
    document["pipelines"]["usage-limit-hits"]["destinations"]["hook"] = {"connection": "hook"}


def _posted(port: int) -> int:
    """The status of an event sent to the ingress."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | {
            "idempotency-key": "once"
        }
        connection.request("POST", "/v1/events/usage.limit_reached", json.dumps(USAGE), headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture(params=KINDS)
def pooled(
    request: pytest.FixtureRequest, world: World, pgbouncer: Pooler, receiver: Receiver
) -> tuple[World, str, int]:
    """A world whose source is behind such a pool and whose target is behind a pool of sessions; the dsn of the source's
    owner through it; the ingress's port."""
    source, target = pgbouncer(world.source.dsn, request.param), pgbouncer(world.target.dsn, "session")
    port = free_port()
    world.configure(lambda document: _everything(document, receiver, port))
    world.environment |= {
        "SOURCE_DSN": source.dsn(world.source.bridge_dsn),
        "WAREHOUSE_DSN": target.dsn(world.target.bridge_dsn),
    }
    return world, source.dsn(world.source.dsn), port


def _bridge(world: World) -> Any:
    environment = world.environment
    return world.bridge(source=environment["SOURCE_DSN"], target=environment["WAREHOUSE_DSN"])


@pytest.mark.fault(68)
def test_every_part_works_behind_either_pool(pooled: tuple[World, str, int], receiver: Receiver) -> None:
    world, _, port = pooled
    bridge = _bridge(world).start().wait_ready()
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
    assert [_posted(port), _posted(port)] == [202, 200]  # the same event
    until(lambda: world.applied() == 7, "the ingress's event is applied, and the marker")
    receiver.wait_for(lambda found: len({one.identity for one in found}) == 7)
    until(lambda: '"suppressed":{"usage.limit_reached":1}' in bridge.get("/status")[1], "the backlog is read")
    assert bridge.terminate() == 0
    assert not [line for line in bridge.logs if line.get("level") in ("warning", "error")], bridge.log_tail()


@pytest.mark.timeout(600)  # fifteen commands and a bridge
@pytest.mark.fault(68)
@pytest.mark.parametrize(
    "pooled", ["transaction", pytest.param("session", marks=pytest.mark.slow)], indirect=True
)
def test_every_command_works_behind_either_pool(pooled: tuple[World, str, int]) -> None:
    world, owner, _ = pooled
    assert "the outbox is at version" in world.run("install", SOURCE_DSN=owner).stdout
    assert world.command("emit", "usage.limit_reached", json.dumps(USAGE))
    broken = {**USAGE, "metric": "no such metric"}
    event = world.command("emit", "--force", "usage.limit_reached", json.dumps(broken)).strip()
    bridge = _bridge(world).start()
    until(lambda: world.applied() == 1 and world.dead_letters(), "one is applied, one is dead")
    assert bridge.wait_ready().terminate() == 0
    [told] = world.json("status", code=1)["pipelines"]
    assert (told["pipeline"], told["dead_letters"]) == ("usage-limit-hits", 2)
    assert "usage-limit-hits" in world.command("top")
    assert event in world.command("tail", "--no-follow")
    assert "its transaction is applied" in world.command("explain", event)
    assert "contract" in world.command("dead", "list")
    assert "0 retried" not in world.command("dead", "retry", "--all", code=1)
    assert "2 events read, 1 written" in world.command(
        "replay", "--destination", "events", "--since", "1h", code=1
    )
    assert "0 events deleted" in world.command("prune")
    world.command("prove")
    assert "starts again with this source" in world.command("recover", "--accept-source")
    found = {(one["where"], one["check"]): one["level"] for one in world.json("doctor")["checks"]}
    assert found["source", "pooler"] == found["warehouse", "pooler"] == "ok"


# -- what holds in a connection, and what the pool's next client gets ----------------------------------------


ODD = {
    "search_path": "crm",
    "datestyle": "SQL, DMY",
    "timezone": "Asia/Tokyo",
    "synchronous_commit": "off",
    "bytea_output": "escape",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
}
"""The role's own settings, against which a profile must hold."""


@pytest.fixture
def odd_role(source: Database) -> Database:
    with source.connect() as connection:
        for name, value in ODD.items():
            connection.execute(
                f"alter role outbox_bridge in database {source.name} set {name} = {value!r}".encode()
            )
    return source


def _seen(profile: Profile) -> str:
    """Whether each setting is as the profile has it, and the time."""
    held = [
        f"array['{name}', current_setting('{name}'), set_config('{name}', '{value}', true)]"
        for name, value in profile.settings
        if not name.startswith("default_transaction_")  # _check looks at the transaction's own
    ]
    read_only = "current_setting('transaction_read_only')"
    timeout = "current_setting('statement_timeout')"
    pinned = ("datestyle", "ISO,YMD") in profile.settings  # the customer's SQL has the role's formats
    now = "now()" if pinned else "null"
    isolation = "current_setting('transaction_isolation')"
    return (
        f"select array[{', '.join(held)}], {timeout}, {read_only}, current_setting('synchronous_commit'), {now},"
        f" {isolation}"
    )


def _check(profile: Profile, row: Any, isolation: str = "read committed") -> None:
    held, timeout, read_only, commit, now, isolated = row
    pinned = ("default_transaction_isolation", "read committed") in profile.settings
    assert isolated == (isolation if pinned or isolation != "read committed" else "serializable")
    assert not [one for one in held if one[1].strip('"') != one[2]], profile.name
    assert timeout == {0: "0", 60: "1min"}.get(profile.statement_seconds, f"{profile.statement_seconds}s")
    assert read_only == ("on" if ("default_transaction_read_only", "on") in profile.settings else "off")
    assert commit == ("on" if profile.durable or ("synchronous_commit", "on") in profile.settings else "off")
    if ("timezone", "UTC") in profile.settings:
        assert now.utcoffset().total_seconds() == 0


def _left_behind(dsn: str, clients: int = 8) -> set[tuple[str, ...]]:
    """What a stranger finds in the servers that the pool gives out, several at once."""
    names = (*ODD, "statement_timeout", "lock_timeout", "row_security", "default_transaction_read_only")
    query = f"select {', '.join(f'current_setting({name!r})' for name in names)}"
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(psycopg.connect(dsn)) for _ in range(clients)]
        return {stranger.execute(query.encode()).fetchone() or () for stranger in strangers}


UNTOUCHED = {(*ODD.values(), "0", "0", "on", "off")}


@pytest.mark.security(7)
@pytest.mark.fault(68)
@pytest.mark.parametrize(
    "profile", [one for one in PROFILES if not one.needs_session], ids=lambda one: one.name
)
def test_settings_hold_in_every_statement_and_are_not_left_behind(
    odd_role: Database, pgbouncer: Pooler, profile: Profile
) -> None:
    direct, transactions, sessions = (
        odd_role.bridge_dsn,
        *(pgbouncer(odd_role.dsn, kind).dsn(odd_role.bridge_dsn) for kind in ("transaction", "session")),
    )
    seen = _seen(profile).encode()

    async def asynchronous(dsn: str) -> Any:
        async with Pool(dsn, profile, "test") as pool, pool.connection() as connection:
            return await (await connection.execute(seen)).fetchone()

    for dsn in (direct, transactions, sessions):
        with connect(dsn, profile, "test") as connection:
            assert connection.lent == (dsn is not direct)
            _check(profile, connection.execute(seen).fetchone())
            with connection.transaction():
                _check(profile, connection.execute(seen).fetchone())
                connection.execute("savepoint one")
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                connection.execute("select 1 / 0")
            connection.begin("isolation level repeatable read")
            _check(profile, connection.execute(seen).fetchone(), "repeatable read")
            connection.commit()
        _check(profile, asyncio.run(asynchronous(dsn)))
    assert _left_behind(transactions) == UNTOUCHED


@pytest.mark.security(2)
@pytest.mark.fault(68)
@pytest.mark.parametrize("profile", [one for one in PROFILES if one.needs_session], ids=lambda one: one.name)
def test_a_use_that_needs_a_session_gets_one_or_is_refused(
    odd_role: Database, pgbouncer: Pooler, profile: Profile
) -> None:
    transactions, sessions, statements = (
        pgbouncer(odd_role.dsn, kind).dsn(odd_role.bridge_dsn)
        for kind in ("transaction", "session", "statement")
    )
    with connect(sessions, profile, "test") as connection:
        assert not connection.lent
        _check(profile, connection.execute(_seen(profile).encode()).fetchone())
    connect_pq(sessions, profile, "test").finish()

    async def asynchronous(dsn: str) -> None:
        async with Pool(dsn, profile, "test") as pool, pool.connection():
            raise AssertionError("it was given a connection")

    for dsn, opens in itertools.product(
        (transactions, statements),
        (
            lambda dsn: connect(dsn, profile, "test"),
            lambda dsn: connect_pq(dsn, profile, "test"),
            lambda dsn: asyncio.run(asynchronous(dsn)),
        ),
    ):
        with pytest.raises(Halt, match="pooler in transaction mode") as caught:
            opens(dsn)
        assert caught.value.reason == "target_pooled"
        assert "pool_mode = session" in caught.value.hint
    assert _left_behind(transactions) == UNTOUCHED


@pytest.mark.fault(68)
def test_what_a_pooler_refuses_has_the_fix_for_that_cause(source: Database, pgbouncer: Pooler) -> None:
    transactions, statements = (pgbouncer(source.dsn, kind) for kind in ("transaction", "statement"))
    with_options = f"{transactions.dsn(source.bridge_dsn)} options='-c work_mem=64MB'"
    for dsn, fix in (
        (with_options, "remove `options` from it"),
        (statements.dsn(source.bridge_dsn), "pool_mode = statement allows no transactions"),
        (transactions.dsn(f"{source.bridge_dsn} user=nobody_such"), "correct `user` in the dsn"),
        (transactions.dsn(f"{source.bridge_dsn} dbname=nowhere"), "correct `dbname` in the dsn"),
    ):
        with pytest.raises(CannotConnect) as caught:
            connect(dsn, profiles.SOURCE, "test")
        assert fix in caught.value.hint


@pytest.mark.fault(68)
def test_the_doctor_tells_what_a_pooler_cannot_do(world: World, pgbouncer: Pooler) -> None:
    for kind in KINDS:
        world.environment["SOURCE_DSN"] = pgbouncer(world.source.dsn, kind).dsn(world.source.bridge_dsn)
        found = [one for one in world.json("doctor", code=3)["checks"] if one["level"] == "error"]
        assert [(one["where"], one["check"]) for one in found] == [("source", "pooler")]
        assert "set source.capture to poll" in found[0]["fix"]
    del world.environment["SOURCE_DSN"]
    world.environment["WAREHOUSE_DSN"] = pgbouncer(world.target.dsn, "transaction").dsn(
        world.target.bridge_dsn
    )
    found = [one for one in world.json("doctor", code=1)["checks"] if one["level"] == "error"]
    assert [(one["where"], one["check"]) for one in found] == [("warehouse", "target_pooled")]
    for command in (
        "prove",
        "status",
        "tail --no-follow",
        "dead list",
        "replay --destination events --since 1h",
    ):
        assert "pool_mode = session" in world.run(*command.split()).stderr
