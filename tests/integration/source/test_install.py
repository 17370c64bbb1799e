"""Installing the outbox: once, again, changed underneath, by a role that may do little."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors

from bridge.errors import ConfigError
from bridge.postgres.schema import (
    Installation,
    SchemaError,
    install_source,
    migrations,
    source_sql,
    source_version,
    target_sql,
)
from tests.support.servers import Database, create_database

pytestmark = pytest.mark.matrix
GRANTS = ["granted outbox_producer what it needs", "granted outbox_bridge what it needs"]


def install(database: Database, *arguments: str, user: str = "postgres") -> Installation:
    with psycopg.connect(database.server.dsn(database.name, user=user)) as connection:
        return install_source(connection, *arguments)


def test_an_install_makes_everything_and_a_second_one_changes_nothing(empty: Database) -> None:
    newest = max(migration.version for migration in migrations("source"))
    first = install(empty)
    assert first.done == [
        *(f"applied migration {m.version} ({m.name})" for m in migrations("source")),
        "created publication outbox_bridge for outbox.event",
        *GRANTS,
    ]
    assert first.remaining == []
    before = empty.execute("select * from outbox.migration")
    second = install(empty)
    assert second == Installation(newest, GRANTS, [])
    assert empty.execute("select * from outbox.migration") == before
    with empty.connect() as connection:
        assert source_version(connection) == newest


def test_a_database_without_an_outbox_has_version_0(empty: Database) -> None:
    with empty.connect() as connection:
        assert source_version(connection) == 0


def test_the_printed_sql_installs_the_same_and_may_run_again(empty: Database) -> None:
    for _ in range(2):
        empty.execute(source_sql("app_events"))
    assert install(empty, "app_events").done == GRANTS


def test_the_printed_target_sql_records_itself(empty: Database) -> None:
    empty.execute(target_sql())
    recorded = empty.execute("select version, name, checksum from bridge.migration order by version")
    assert recorded == [(m.version, m.name, m.checksum) for m in migrations("target")]
    newest = recorded[-1][0]
    assert "create table" not in target_sql(after=newest)


def test_the_printed_target_sql_may_run_again_and_adds_what_is_new(empty: Database) -> None:
    empty.execute(target_sql())
    empty.execute("insert into bridge.dispatcher (name, epoch) values ('s', 7); drop table bridge.sink_pause")
    empty.execute(target_sql())
    assert empty.value("select count(*) from bridge.sink_pause") == 0
    assert empty.value("select epoch from bridge.dispatcher") == 7


def test_installs_at_the_same_time_take_turns(empty: Database) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: install(empty).done, range(3)))
    assert sorted(map(len, done))[:2] == [len(GRANTS)] * 2
    assert empty.value("select count(*) from outbox.migration") == len(migrations("source"))


def test_a_changed_checksum_stops_the_install_and_says_what_to_do(empty: Database) -> None:
    install(empty)
    empty.execute("update outbox.migration set checksum = 'edited' where version = 1")
    with pytest.raises(
        SchemaError, match=r"migration 1 \(outbox\), applied on .* differs from the one"
    ) as caught:
        install(empty)
    statement = caught.value.hint[caught.value.hint.index("update ") :]
    empty.typed(statement)
    assert install(empty).done == GRANTS


def test_an_outbox_of_a_newer_bridge_is_left_alone(empty: Database) -> None:
    install(empty)
    empty.execute("insert into outbox.migration values (999, 'later', 'x')")
    with pytest.raises(SchemaError, match=r"migration 999 \(later\), .* is from a newer bridge") as caught:
        install(empty)
    assert "pip install --upgrade outbox-bridge" in caught.value.hint


def test_an_altered_publication_is_reported_with_the_sql_that_fixes_it(empty: Database) -> None:
    install(empty)
    empty.execute("alter publication outbox_bridge set (publish = 'insert, delete')")
    [remaining] = install(empty).remaining
    assert "publishes insert, delete, where insert alone is wanted" in remaining.reason
    empty.execute(remaining.sql)
    assert install(empty).remaining == []


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("alter publication outbox_bridge drop table outbox.event", "publishes no table"),
        ("alter publication outbox_bridge set table public.other", "publishes other"),
        ("alter publication outbox_bridge add table public.other", r"publishes outbox\.event, other"),
        (
            "alter publication outbox_bridge set table outbox.event where (type = 'a')",
            r"publishes outbox\.event with a filter",
        ),
        (
            "drop publication outbox_bridge; create publication outbox_bridge for all tables",
            "publishes all tables",
        ),
    ],
)
def test_a_publication_of_another_table_is_reported_with_the_sql_to_fix_it(
    empty: Database, statement: str, reason: str
) -> None:
    install(empty)
    empty.execute("create table public.other (id integer primary key)")
    if " where " in statement and int(empty.value("show server_version_num")) < 150000:
        with pytest.raises(errors.SyntaxError):  # row filters came with 15
            empty.typed(statement)
        return
    empty.typed(statement)
    [remaining] = install(empty).remaining
    assert "it should publish every row of outbox.event" in remaining.reason
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(remaining.reason)
    empty.execute(remaining.sql)
    assert install(empty).remaining == []


def test_a_publication_name_that_could_carry_sql_is_refused() -> None:
    for name in ("", "Upper", "a b", "x; drop table y", "a$$b", "a" * 64):
        with pytest.raises(ConfigError, match="is not a valid name for a publication"):
            source_sql(name)


def test_an_outbox_of_the_customers_own_gets_a_publication_and_grants(
    empty: Database,
) -> None:
    empty.execute('create schema "Shop"; create table "Shop"."out box" (id uuid primary key, payload jsonb)')
    assert install(empty, "shop", "Shop.out box").remaining == []
    assert empty.execute("select pubname, schemaname, tablename from pg_publication_tables") == [
        ("shop", "Shop", "out box")
    ]
    with empty.connect("outbox_bridge") as connection:
        assert connection.execute('select * from "Shop"."out box"').fetchall() == []


def test_an_installer_without_rights_in_the_database_is_told_what_to_do(empty: Database) -> None:
    with pytest.raises(SchemaError, match="role app may not create the outbox in database empty_") as caught:
        install(empty, user="app")
    assert "bridge schema source | psql" in caught.value.hint
    assert empty.value("select to_regnamespace('outbox')") is None


def test_a_read_only_server_is_named(empty: Database) -> None:
    read_only = psycopg.connect(empty.dsn, options="-c default_transaction_read_only=on")
    with read_only as connection, pytest.raises(SchemaError, match="read-only"):
        install_source(connection)


@pytest.fixture
def owned(source_cluster: Any) -> Database:
    """A database of `shop`, who may not create roles, on a server that has no roles of ours."""
    database = create_database(source_cluster, "shop")
    database.execute("create role shop login password 'bridge'; alter database shop owner to shop")
    return database


def test_without_createrole_all_but_the_roles_is_installed(
    owned: Database,
) -> None:
    first = install(owned, user="shop")
    assert "created publication outbox_bridge for outbox.event" in first.done
    assert [remaining.reason.split(":")[0] for remaining in first.remaining] == [
        "role outbox_producer",
        "role outbox_bridge",
    ]
    for remaining in first.remaining:
        owned.execute(remaining.sql)
    second = install(owned, user="shop")
    assert (second.done, second.remaining) == (GRANTS, [])


def test_roles_that_are_absent_are_created(owned: Database) -> None:
    done = install(owned).done
    assert done[-2:] == ["created role outbox_producer", "created role outbox_bridge"]
    assert owned.execute(
        "select rolname, rolcanlogin, rolreplication, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls "
        "from pg_roles where rolname like 'outbox%' order by rolname"
    ) == [
        ("outbox_bridge", True, True, False, False, False, False),
        ("outbox_producer", False, False, False, False, False, False),
    ]


def test_a_polling_role_without_replication_is_left_without_it(owned: Database) -> None:
    owned.execute("create role outbox_bridge login")
    [remaining] = install(owned).remaining
    assert "has no REPLICATION" in remaining.reason
    assert owned.value("select rolreplication from pg_roles where rolname = 'outbox_bridge'") is False
    owned.execute(remaining.sql)
    assert install(owned).remaining == []


def test_a_server_that_cannot_decode_is_named(owned: Database, source_cluster: Any) -> None:
    owned.execute("alter system set wal_level = 'replica'")
    source_cluster.restart()
    [remaining] = install(owned).remaining
    assert remaining.reason.startswith("wal_level is not logical")
    owned.execute(remaining.sql)
    source_cluster.restart()
    assert install(owned).remaining == []


def test_the_bridges_role_has_exactly_the_printed_rights(source: Database) -> None:
    tables = source.execute(
        """
        select c.relname || ' ' || lower(a.privilege_type)
        from pg_class c, aclexplode(c.relacl) a
        where c.relnamespace = 'outbox'::regnamespace and a.grantee = 'outbox_bridge'::regrole order by 1
        """
    )
    registry = [f"{t} {p}" for t in ("pruned", "stream") for p in ("delete", "insert", "select", "update")]
    assert [row[0] for row in tables] == sorted(
        [
            *("event delete", "event select", "migration select", *registry),
            *("origin select", "origin update"),
            *(f"relay {privilege}" for privilege in ("delete", "insert", "select", "update")),
            *(f"event_seq_seq {privilege}" for privilege in ("select", "update", "usage")),
            *(f"entity {privilege}" for privilege in ("insert", "select", "update")),
            *(f"{t} {p}" for t in ("suppressed", "webhook_delivery") for p in ("delete", "insert", "select")),
        ]
    )
    columns = source.execute(
        """
        select lower(x.privilege_type) || ' ' || a.attname
        from pg_attribute a, aclexplode(a.attacl) x
        where a.attrelid = 'outbox.event'::regclass and x.grantee = 'outbox_bridge'::regrole order by 1
        """
    )
    given = ("id", "type", "key", "payload", "idempotency_key", "headers", "occurred_at")
    assert [row[0] for row in columns] == sorted(
        ["update payload", "update headers", "update seq", *(f"insert {column}" for column in given)]
    )


@pytest.mark.parametrize(
    "statement",
    [
        "insert into outbox.event (type, payload, xid) values ('a', '{}', '3')",
        "update outbox.event set xid = '3'",
        "update outbox.event set type = 'b'",
        "truncate outbox.event",
        "update outbox.migration set name = 'x'",
        "create table outbox.mine ()",
        "alter table outbox.event add column mine text",
        "drop publication outbox_bridge",
    ],
)
def test_the_bridges_role_cannot_falsify_the_outbox(source: Database, statement: str) -> None:
    with source.connect("outbox_bridge") as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement.encode())
