"""Names with quotes, semicolons, dots, blanks, other scripts, of 63 bytes: written to as they are, and never SQL."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from bridge.config.connection import table_names
from bridge.errors import ConfigError
from bridge.planning.plan import Write
from bridge.planning.spec import TableSpec
from bridge.postgres import wire
from bridge.postgres.catalog import excess_powers, table_shape
from bridge.postgres.connect import connect
from bridge.postgres.outbox import Outbox
from bridge.postgres.profiles import CATALOG
from bridge.postgres.schema import publication_sql
from bridge.postgres.source import require_outbox
from bridge.postgres.target import BEGIN, ROLLBACK, Statement, TargetLink
from bridge.postgres.write import write_statement
from bridge.protocol.events import Event
from tests.support.servers import Database

NASTY = [
    *("select", 'a"b', "a;drop table t;--", "a.b", "a b", "a'b", "naïve 数据"),
    *("%s", "$1", "{}", "x" * 63, "é" * 31, "A"),
]
names = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\0"), min_size=1).filter(
        lambda text: len(text.encode()) <= 63
    ),
)


@pytest.mark.security(6)
def test_any_name_is_written_to_as_it_is(target: Database) -> None:
    link = TargetLink(target.dsn, "identifiers")

    def wait() -> None:
        wire.wait([link.descriptor], [], 5.0)

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(names, min_size=4, max_size=4, unique_by=lambda name: name), st.text("ab'\"\\;", max_size=9)
    )
    def holds(chosen: list[str], value: str) -> None:
        schema, table, key, column = chosen
        schema = "s" + schema[:15]
        made = sql.SQL("create table {} ({} text primary key, {} text)").format(
            sql.Identifier(schema, table), sql.Identifier(key), sql.Identifier(column)
        )
        with target.connect() as owner:
            owner.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
            owner.execute(made)
            try:
                written = '"{}"."{}"'.format(schema.replace('"', '""'), table.replace('"', '""'))
                assert table_names(written) == (schema, table)
                spec = TableSpec(
                    "d", "w", schema, table, "upsert", (key,), columns={key: "$meta.id", column: "$event.v"}
                )
                with connect(target.dsn, CATALOG, "identifiers") as looking:
                    shape, findings = table_shape(looking, spec, {})
                    assert excess_powers(looking, [(schema, table)])
                assert findings == []
                assert shape is not None
                event = Event(*([b"1"] * len(Event._fields)))
                write = Write("p", spec, shape, (key, column), [event], [[b"k"], [value.encode()]])
                link.run([write_statement(write)], wait)
                link.run([write_statement(write)], wait)
                rows = owner.execute(
                    sql.SQL("select * from {}").format(sql.Identifier(schema, table))
                ).fetchall()
                assert rows == [("k", value)]
                require_outbox_or_not(owner, Outbox(schema, table))
            finally:
                owner.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))

    try:
        holds()
        link.run([BEGIN, Statement(b"select 1"), ROLLBACK], wait)
    finally:
        link.close()


def require_outbox_or_not(connection: psycopg.Connection, outbox: Outbox) -> None:
    """The name is looked up as one name: found, so what is missing is the registry, which no target has."""
    found = connection.execute("select to_regclass(%s) is not null", [outbox.name.as_string()]).fetchone()
    assert found == (True,)
    with pytest.raises(Exception, match=r"registry outbox\.stream"):
        require_outbox(connection, outbox)


@pytest.mark.security(6)
@pytest.mark.parametrize("name", ['a"b', "a;b", "A", "a b", "", "x" * 64, "é"])
def test_a_slots_name_is_what_postgres_takes_and_nothing_else(name: str) -> None:
    with pytest.raises(ConfigError):
        publication_sql(name)


@pytest.mark.security(6)
def test_a_name_of_64_bytes_is_another_table(target: Database) -> None:
    """Postgres cuts it with a notice; the bridge must not write into the table of the shorter name."""
    target.execute(f'create table events."{"x" * 63}" (k text primary key)')
    spec = TableSpec("d", "w", "events", "x" * 64, columns={"k": f"$meta.{uuid.uuid4().hex[:3]}"})
    with connect(target.dsn, CATALOG, "identifiers") as looking:
        shape, [finding] = table_shape(looking, spec, {})
    assert shape is None
    assert finding.reason == "table_missing"
