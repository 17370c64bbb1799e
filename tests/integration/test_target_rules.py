"""What a target's table must be, and what the role may do on it, is found before the first event: by doctor and at the
start alike. Where rights are missing, the server is asked the same, and the printed statements must satisfy it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import closing

import psycopg
import pytest

from bridge.planning.spec import TableSpec
from bridge.postgres.catalog import ledger_findings, table_shape
from bridge.postgres.connect import connect
from bridge.postgres.profiles import CATALOG
from bridge.postgres.target_rules import Finding
from bridge.postgres.triggers import Use, uses
from bridge.postgres.write import compile_write
from tests.support.servers import Database
from tests.support.world import Document, World

_ROLE = "outbox_bridge"


def look(
    target: Database,
    columns: dict[str, str] | None,
    *,
    key: Sequence[str] = (),
    version: str | None = None,
    kinds: dict[str, str] | None = None,
    nulls: dict[str, bool] | None = None,
    table: str = "x",
) -> list[Finding]:
    """The findings for a destination t.TABLE, by the bridge's role."""
    mode = "upsert" if key else "insert"
    spec = TableSpec("d", "warehouse", "t", table, mode, tuple(key), version, columns)  # type: ignore[arg-type]
    with closing(connect(target.bridge_dsn, CATALOG, "test")) as connection:
        return table_shape(connection, spec, kinds or {}, nulls)[1]


def errors(found: Sequence[Finding]) -> list[Finding]:
    return [one for one in found if one.level == "error"]


def make(target: Database, *statements: str) -> None:
    for statement in ("create schema if not exists t", f"grant usage on schema t to {_ROLE}", *statements):
        target.execute(statement)


# -- the version ----------------------------------------------------------------------------------------

_SEQ = "$meta.seq"
_AT = "$meta.occurred_at"
VERSIONS = [
    # (type, source, contract type, level)
    ("bigint", _SEQ, "", ""),
    ("numeric", _SEQ, "", ""),
    ("numeric(20)", _SEQ, "", ""),
    ("xid8", _SEQ, "", ""),
    ("jsonb", _SEQ, "", ""),
    ("t.d_bigint", _SEQ, "", ""),
    ("integer", _SEQ, "", "warn"),
    ("smallint", _SEQ, "", "warn"),
    ("oid", _SEQ, "", "warn"),
    ("numeric(6,2)", _SEQ, "", "warn"),
    ("text", _SEQ, "", "error"),
    ("varchar(20)", _SEQ, "", "error"),
    ("char(20)", _SEQ, "", "error"),
    ('"char"', _SEQ, "", "error"),
    ("name", _SEQ, "", "error"),
    ("t.d_text", _SEQ, "", "error"),
    ("t.d_d_text", _SEQ, "", "error"),
    ("t.mood", _SEQ, "", "error"),
    ("real", _SEQ, "", "error"),
    ("double precision", _SEQ, "", "error"),
    ("t.d_real", _SEQ, "", "error"),
    ("money", _SEQ, "", "error"),
    ("json", _SEQ, "", "error"),
    ("xid", _SEQ, "", "error"),
    ("point", _SEQ, "", "error"),
    ("timestamptz", _SEQ, "", "error"),
    ("boolean", _SEQ, "", "error"),
    ("uuid", _SEQ, "", "error"),
    ("bytea", _SEQ, "", "error"),
    ("text[]", _SEQ, "", "error"),
    ("bigint", "$event.n", "integer", ""),
    ("integer", "$event.n", "integer", ""),
    ("text", "$event.n", "integer", "error"),
    ("double precision", "$event.n", "integer", "error"),
    ("double precision", "$event.n", "number", "warn"),
    ("real", "$event.n", "number", "error"),
    ("numeric", "$event.n", "number", ""),
    ("numeric(10,2)", "$event.n", "number", "warn"),
    ("text", "$event.n", "timestamp", "error"),
    ("timestamptz", "$event.n", "timestamp", ""),
    ("timestamptz(0)", "$event.n", "timestamp", "warn"),
    ("date", "$event.n", "timestamp", "error"),
    ("jsonb", "$event.n", "timestamp", "error"),
    ("timestamptz", _AT, "", ""),
    ("timestamp", _AT, "", ""),
    ("timestamptz(3)", _AT, "", "error"),
    ("time", _AT, "", "error"),
    ("text", _AT, "", "error"),
    ("text", "$event.n", "string", "warn"),
    ("text", "$event.n", "", "warn"),
    ("t.mood", "$event.n", "string", ""),
    ("uuid", "$event.n", "string", ""),
    ("bigint", "$event.n", "", ""),
    ("json", "$event.n", "", "error"),
]


@pytest.mark.matrix
def test_a_version_is_kept_where_a_later_one_is_greater(target: Database) -> None:
    """The statement that is printed for an error makes the column fit, whatever it was."""
    make(
        target,
        "create domain t.d_bigint as bigint check (value > 0)",
        "create domain t.d_text as text",
        "create domain t.d_d_text as t.d_text",
        "create domain t.d_real as real",
        "create type t.mood as enum ('a', 'b')",
    )
    versions = list(VERSIONS)
    if target.value("select exists (select from pg_available_extensions where name = 'citext')"):
        make(target, "create extension citext schema t", "create domain t.d_citext as t.citext")
        versions += [("t.citext", _SEQ, "", "error"), ("t.d_citext", _SEQ, "", "error")]
    for type_sql, source, kind, level in versions:
        make(
            target,
            f"create table t.x (k text primary key, v {type_sql})",
            f"grant select, insert, update on t.x to {_ROLE}",
        )
        columns, kinds = {"k": "$event.k", "v": source}, {"v": kind} if kind else {}
        found = [
            one
            for one in look(target, columns, key=["k"], version=source, kinds=kinds)
            if one.reason != "column_zone"
        ]
        assert [one.level for one in found] == ([level] if level else []), (type_sql, source, kind, found)
        for one in found:
            assert one.reason == "column_type"
            assert "'v'" in one.message
        if found and not found[0].fix.startswith("if "):
            target.typed(found[0].fix)
            assert look(target, columns, key=["k"], version=source, kinds=kinds) == [], type_sql
        zones = {"column_zone"}
        assert {one.reason for one in look(target, columns, kinds=kinds)} <= zones, (
            "an insert compares no versions"
        )
        target.execute("drop table t.x")


def test_the_versions_column_needs_no_place_in_the_mapping(target: Database) -> None:
    make(
        target, "create table t.x (k text primary key, v text, version text)", f"grant all on t.x to {_ROLE}"
    )
    [found] = look(target, {"k": "$event.k", "v": "$event.v"}, key=["k"], version=_SEQ)
    assert (found.reason, found.level) == ("column_type", "error")
    assert "'version', text" in found.message
    target.execute("alter table t.x drop column version")
    [found] = look(target, {"k": "$event.k", "v": "$event.v"}, key=["k"], version=_SEQ)
    assert (found.reason, found.level) == ("column_missing", "error")


# -- rows that a crash takes ----------------------------------------------------------------------------


@pytest.mark.matrix
def test_a_table_that_a_crash_empties_is_refused_with_its_partitions(target: Database) -> None:
    make(
        target,
        "create unlogged table t.x (k text primary key)",
        "create table t.p (k text, part int) partition by list (part)",
        "create table t.p1 partition of t.p for values in (1)",
        "create table t.p2 partition of t.p for values in (2, 3) partition by list (part)",
        'create unlogged table t."P3" partition of t.p2 for values in (3)',
        f"grant insert on t.x, t.p to {_ROLE}",
    )
    [found] = look(target, {"k": "$event.k"})
    assert (found.reason, found.level, found.fix) == (
        "table_unlogged",
        "error",
        "alter table t.x set logged;",
    )
    target.typed(found.fix)
    assert look(target, {"k": "$event.k"}) == []
    [found] = look(target, {"k": "$event.k"}, table="p")
    assert (found.reason, found.fix) == ("table_unlogged", 'alter table t."P3" set logged;')
    target.typed(found.fix)
    assert look(target, {"k": "$event.k"}, table="p") == []


def test_an_unlogged_ledger_is_refused(target: Database) -> None:
    with closing(connect(target.bridge_dsn, CATALOG, "test")) as connection:
        assert ledger_findings(connection) == []
        target.execute("alter table bridge.applied set unlogged")
        [found] = ledger_findings(connection)
        assert (found.reason, found.fix) == ("table_unlogged", "alter table bridge.applied set logged;")
        target.typed(found.fix)
        assert ledger_findings(connection) == []


def test_an_unlogged_sequence_that_is_used_is_refused(target: Database) -> None:
    if target.value("show server_version_num") < "150000":
        return  # its sequences are all logged
    make(
        target,
        "create table t.x (k text, id bigserial, n bigint generated by default as identity)",
        f"grant insert on t.x to {_ROLE}; grant usage on sequence t.x_id_seq to {_ROLE}",
        "alter sequence t.x_id_seq set unlogged; alter sequence t.x_n_seq set unlogged",
    )
    found = look(target, {"k": "$event.k"})
    assert {one.fix for one in found} == {
        f"alter sequence t.x_{name}_seq set logged;" for name in ("id", "n")
    }
    assert {one.reason for one in found} == {"table_unlogged"}
    assert look(target, {"k": "$event.k", "id": _SEQ, "n": _SEQ}) == []


# -- NULL -----------------------------------------------------------------------------------------------


@pytest.mark.matrix
def test_a_key_that_may_be_null_is_warned_of(target: Database) -> None:
    make(
        target,
        "create table t.x (k text, r text, v int, unique (k), unique (k, r))",
        f"grant all on t.x to {_ROLE}",
    )
    columns = {"k": "$event.k", "r": "$event.r", "v": "$event.v"}
    found = look(target, columns, key=["k", "r"], version=None)
    assert {(one.reason, one.level) for one in found} == {("key_nullable", "warn")}
    assert [re.findall(r"'(\w+)'", one.message) for one in found] == [["k"], ["r"]]
    assert all("NULL" in one.message for one in found)
    assert [one.reason for one in look(target, columns, key=["k"])] == ["key_nullable"]
    assert look(target, columns, key=["k"], nulls={"k": ""}) == [], "the contract requires it"
    assert look(target, {**columns, "k": "$meta.id"}, key=["k"]) == [], "each event has an id"
    for one in found:
        target.typed(one.fix)
    assert look(target, columns, key=["k", "r"]) == []
    if target.value("show server_version_num") >= "150000":
        make(
            target, "create table t.y (k text, unique nulls not distinct (k))", f"grant all on t.y to {_ROLE}"
        )
        assert look(target, {"k": "$event.k"}, key=["k"], table="y") == []


def test_an_optional_field_for_a_not_null_column_is_warned_of(target: Database) -> None:
    make(
        target,
        "create table t.x (k text not null, d int not null default 7, n int default 7)",
        f"grant all on t.x to {_ROLE}",
    )
    columns = {"k": "$event.k", "d": "$event.days", "n": "$event.n"}
    [found] = look(target, columns, nulls={"k": "", "d": "null", "n": "null"})
    assert (found.reason, found.level) == ("column_not_null", "warn")
    assert "'d'" in found.message
    assert "'days'" in found.message
    assert look(target, columns, nulls={"k": "", "d": "absent"}) == [], "the default is there"
    assert 'alter table "t"."x" alter column "d" drop not null;' in found.fix
    assert look(target, columns, nulls={"k": "", "d": ""}) == []


# -- rights ---------------------------------------------------------------------------------------------

_PARENT = "create table t.parent (id text primary key)"
_TRIGGER = (
    "create function t.f() returns trigger language plpgsql {options} as $f$ {body} $f$",
    "create trigger a after insert on t.x for each row {condition} execute function t.f()",
)


def _trigger(body: str, options: str = "", condition: str = "") -> list[str]:
    audit = "create table t.audit (id text primary key)"
    return [audit, *(one.format(body=body, options=options, condition=condition) for one in _TRIGGER)]


_ADD = "begin insert into t.audit (id) values (new.k); return new; end"
RIGHTS: dict[str, tuple[str, list[str], str]] = {
    # name -> (the table's columns beside k and v, more statements, what the finding must name; "": nothing is missing)
    "plain": ("", [], ""),
    "sequence of a serial": ("id bigserial", [], "t.x_id_seq"),
    "sequence inside a default": (
        "",
        ["create sequence t.s", "alter table t.x add c text default ('A' || nextval('t.s'))"],
        "t.s",
    ),
    "update is enough for a sequence": (
        "id bigserial",
        [f"grant update on sequence t.x_id_seq to {_ROLE}"],
        "",
    ),
    "identity": ("id bigint generated always as identity", [], ""),
    "default's function": ("c text default t.g()", [], "t.g()"),
    "function inside a default": ("c text default ('a' || t.g())", [], "t.g()"),
    "generated column": ("c text generated always as (t.i(v)) stored", [], "t.i(text)"),
    "check": ("check (t.b(v))", [], "t.b(text)"),
    "check of a domain": ("c t.checked", [], "t.b(text)"),
    "check by an operator": ("check (v operator(t.===) 'x')", [], "t.eq(text,text)"),
    "index": ("", ["create index on t.x (t.i(v))"], "t.i(text)"),
    "condition of a trigger": (
        "",
        [
            "create trigger a before insert on t.x for each row when (t.b(new.v)) execute function t.nothing()",
        ],
        "t.b(text)",
    ),
    "a trigger's own function": (
        "",
        ["create trigger a before insert on t.x for each row execute function t.nothing()"],
        "",
    ),
    "a foreign key": ("", [_PARENT, "alter table t.x add foreign key (v) references t.parent"], ""),
    "a trigger's table": ("", _trigger(_ADD), "t.audit"),
    "a trigger's table after statements": (
        "",
        _trigger(
            "declare n int; begin /* insert into t.parent */ n := 1; perform 1 from t.x where false;"
            " UPDATE t.audit SET id = 'x' where id = new.k; if n > 1 then return null; end if; return new; end"
        ),
        "t.audit",
    ),
    "a trigger's table that is read and updated": (
        "",
        _trigger(
            "begin insert into t.audit values (new.k) on conflict (id) do update set id = excluded.id; return new; end"
        ),
        "t.audit",
    ),
    "a trigger's table in a schema that is closed": (
        "",
        [
            "create schema closed",
            *_trigger(_ADD.replace("t.audit", "closed.audit")),
            "alter table t.audit set schema closed",
        ],
        "closed.audit",
    ),
    "the sequence of a trigger's table": (
        "",
        [
            *_trigger(_ADD),
            "alter table t.audit add n serial, add m int generated always as identity",
            f"grant insert on t.audit to {_ROLE}",
        ],
        "t.audit_n_seq",
    ),
    "a table that a trigger reads": (
        "",
        _trigger("begin perform 1 from t.audit; return new; end"),
        "t.audit",
    ),
    "a table that a default's function reads": (
        "",
        [
            "create table t.audit (id text)",
            "create function t.last() returns text language sql as $$ select max(id) from t.audit $$",
            f"grant execute on function t.last() to {_ROLE}",
            "alter table t.x add c text default t.last()",
        ],
        "t.audit",
    ),
    "a trigger with its owner's rights": ("", _trigger(_ADD, options="security definer"), ""),
    "a trigger with its own path": (
        "",
        _trigger(_ADD.replace("t.audit", "audit"), options="set search_path = t, pg_temp"),
        "t.audit",
    ),
}


def _prepare(target: Database, more: str, statements: Sequence[str]) -> None:
    target.execute("drop schema if exists t, closed cascade")
    make(
        target,
        "create function t.g() returns text language sql as $$ select 'x' $$",
        "create function t.i(text) returns text immutable language plpgsql as $$ begin return $1; end $$",
        "create function t.b(text) returns boolean language plpgsql as $$ begin return true; end $$",
        "create function t.eq(text, text) returns boolean language plpgsql as $$ begin return true; end $$",
        "create operator t.=== (function = t.eq, leftarg = text, rightarg = text)",
        "create domain t.checked as text check (t.b(value))",
        "create function t.nothing() returns trigger language plpgsql as $$ begin return new; end $$",
        "revoke execute on all functions in schema t from public",
        f"create table t.x (k text primary key, v text{', ' if more else ''}{more})",
        f"grant select (k, v), insert (k, v), update (v) on t.x to {_ROLE}",
        *statements,
    )


def _insert(target: Database) -> str | None:
    """Why the server refuses the statement of an upsert of one row that exists and one that does not; then undone."""
    columns = {"k": "$event.k", "v": "$event.v"}
    spec = TableSpec("d", "warehouse", "t", "x", "upsert", ("k",), columns=columns)
    with closing(connect(target.bridge_dsn, CATALOG, "test")) as connection:
        shape, _ = table_shape(connection, spec, {})
        assert shape is not None
        statement = compile_write(spec, shape, ("k", "v"), ("text", "text"))
        connection.begin()
        try:
            with closing(psycopg.RawCursor(connection)) as cursor:
                for _ in range(2):
                    cursor.execute(statement, [["1"], ["a"]])
        except psycopg.errors.InsufficientPrivilege as error:
            return str(error)
        except psycopg.errors.ForeignKeyViolation:
            return None  # it was checked, by the owner
        finally:
            connection.rollback()
    return None


@pytest.mark.matrix
def test_what_the_server_would_refuse_is_named_with_the_grant_that_mends_it(target: Database) -> None:
    columns = {"k": "$event.k", "v": "$event.v"}
    for name, (more, statements, names) in RIGHTS.items():
        _prepare(target, more, statements)
        found = look(target, columns, key=["k"], nulls={"k": "", "v": "null"})
        assert (_insert(target) is None) == (not names), (name, _insert(target))
        assert all(one.reason == "privilege_missing" and one.level == "error" for one in found), (name, found)
        assert len(found) == bool(names), (name, found)
        for one in found:
            assert names in one.message, (name, one)
            target.typed(one.fix)
        assert _insert(target) is None, name
        assert look(target, columns, key=["k"], nulls={"k": "", "v": "null"}) == [], name


@pytest.mark.matrix
def test_a_types_schema_must_be_open_to_the_role(target: Database) -> None:
    """Not for what has no name in the statement: the base of a domain."""
    make(
        target,
        "create schema hidden",
        "create type hidden.mood as enum ('a', 'b')",
        "create domain t.feeling as hidden.mood",
    )
    for type_sql, value, missing in (
        ("hidden.mood", "a", True),
        ("hidden.mood[]", "{a}", True),
        ("t.feeling", "a", False),
    ):
        make(target, f"create table t.x (v {type_sql})", f"grant insert on t.x to {_ROLE}")
        found = look(target, {"v": "$event.v"})
        assert [one.fix for one in found] == [f"grant usage on schema hidden to {_ROLE};"] * missing, type_sql
        target.execute(f"revoke usage on schema hidden from {_ROLE}")
        with target.connect(user=_ROLE) as connection:
            statement = f"insert into t.x select c::{type_sql} from (select unnest(%s::text[]) as c) r"
            if missing:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.encode(), [[value]])
                target.typed(found[0].fix)
                assert look(target, {"v": "$event.v"}) == []
            connection.execute(statement.encode(), [[value]])
        target.execute(f"revoke usage on schema hidden from {_ROLE}")
        target.execute("drop table t.x")


@pytest.mark.matrix
def test_grants_on_columns_that_are_enough_are_enough(target: Database) -> None:
    """Each right is taken away, column by column; the grant that is printed is that of these columns, and mends it."""
    make(
        target,
        "create table t.x (k text primary key, v text, n bigint, other text)",
        "create table t.p (k text primary key, v text, n bigint, other text) partition by list (k)",
        "create table t.p1 partition of t.p default",
    )
    columns = {"k": "$event.k", "v": "$event.v", "n": _SEQ}
    wanted = {"insert": "kvn", "update": "vn", "select": "kvn"}
    for table in ("x", "p"):
        for privilege, names in wanted.items():
            target.execute(f"grant {privilege} ({', '.join(names)}) on t.{table} to {_ROLE}")

        def written(table: str = table) -> bool:
            spec = TableSpec("d", "warehouse", "t", table, "upsert", ("k",), _SEQ, columns)
            with closing(connect(target.bridge_dsn, CATALOG, "test")) as connection:
                shape, _ = table_shape(connection, spec, {})
                assert shape is not None
                text = compile_write(spec, shape, tuple(columns), ("text", "text", "text"))
                try:
                    with closing(psycopg.RawCursor(connection)) as cursor:
                        cursor.execute(text, [["1"], ["a"], ["1"]])
                except psycopg.errors.InsufficientPrivilege:
                    return False
            return True

        def found(table: str = table) -> list[Finding]:
            nulls = {"k": False}
            return look(target, columns, key=["k"], version=_SEQ, nulls=nulls, table=table)

        assert found() == []
        assert written()
        for privilege, names in wanted.items():
            for name in names:
                target.execute(f"revoke {privilege} ({name}) on t.{table} from {_ROLE}")
                assert not written(), (privilege, name)
                [one] = found()
                assert one.fix == f'grant {privilege} ("{name}") on "t"."{table}" to {_ROLE};'
                target.typed(one.fix)
                assert written()
                assert found() == []
            target.execute(f"revoke {privilege} ({', '.join(names)}) on t.{table} from {_ROLE}")
            [one] = found()
            assert one.fix == f'grant {privilege} on "t"."{table}" to {_ROLE};', (
                "it has none: the whole table"
            )
            target.typed(one.fix)
            assert written()


def test_under_the_default_mapping_only_what_events_have_is_needed(target: Database) -> None:
    make(
        target,
        "create table t.x (event_id uuid primary key, v text, id bigserial, internal text)",
        f"grant insert (event_id, v) on t.x to {_ROLE}",
    )
    found = look(target, None, nulls={"v": ""})
    assert {(one.level, one.fix) for one in found} == {
        ("error", f"grant usage on sequence t.x_id_seq to {_ROLE};"),
        ("warn", f'grant insert ("id", "internal") on "t"."x" to {_ROLE};'),
    }
    sequence = [one for one in look(target, None, nulls={"v": "", "id": "null"}) if "sequence" in one.message]
    assert [one.level for one in sequence] == ["error"], (
        "an event without the optional field takes the default"
    )
    assert "sequence" not in str(look(target, None, nulls={"v": "", "id": ""})), "each event has it"
    target.execute(f"revoke insert (v) on t.x from {_ROLE}")
    fixes = {one.fix for one in errors(look(target, None, nulls={"v": ""}))}
    assert f'grant insert ("v") on "t"."x" to {_ROLE};' in fixes


def test_what_may_never_run_is_a_warning(target: Database) -> None:
    """A trigger's statement behind a condition, in a handler, with an unqualified name; a trigger with a condition."""
    columns = {"k": "$event.k", "v": "$event.v"}
    for body, condition in (
        ("begin if new.v = 'x' then insert into t.audit values (new.k); end if; return new; end", ""),
        ("begin return new; insert into t.audit values (new.k); end", ""),
        (
            "begin insert into t.audit values (new.k); return new; exception when others then return new; end",
            "",
        ),
        (_ADD, "when (new.v = 'x')"),
        ("begin for i in 1..0 loop delete from t.audit; end loop; return new; end", ""),
    ):
        _prepare(target, "", _trigger(body, condition=condition))
        assert _insert(target) is None, body
        [found] = look(target, columns, nulls={"k": ""}, key=["k"])
        assert (found.reason, found.level) == ("privilege_missing", "warn"), body
        assert "t.audit" in found.message
        target.typed(found.fix)
        assert look(target, columns, nulls={"k": ""}, key=["k"]) == []


def test_what_no_rule_foresees_is_said_in_the_servers_words(target: Database) -> None:
    """A rule on the table: an upsert into it is refused. Nothing is written by asking."""
    make(
        target,
        "create table t.x (k text primary key)",
        f"grant select, insert, update on t.x to {_ROLE}",
        "create rule r as on insert to t.x do also select 1",
    )
    [found] = look(target, {"k": "$event.k"}, key=["k"], nulls={"k": ""})
    assert found.reason == "target_structure"
    assert "cannot be used with table that has INSERT or UPDATE rules" in found.message
    target.execute("drop rule r on t.x")
    assert look(target, {"k": "$event.k"}, key=["k"], nulls={"k": ""}) == []
    assert target.value("select count(*) from t.x") == 0


def test_a_functions_text_is_read_without_its_comments_and_strings() -> None:
    text = """
        declare n int := 0;
        begin
            -- insert into commented
            insert into "Odd ""name"" x" . B$1 values ('delete from quoted; ', $q$ update dollar set $q$, E'\\'from e');
            update only app.account set n = 1 from app.rate r where r.id = new.id;
            select count(*) into n from app.log join app.entry on true where extract(year from now) = 1;
            insert into t.u (ID, "B c") values (1, 2 is distinct from s.t) on conflict (id) do update set n = 2;
            case when n = 1 then delete from late; end case;
        end"""
    assert uses(text) == [
        Use(("insert",), 'Odd "name" x', "b$1", True),
        Use(("update", "select"), "app", "account", True),
        Use(("select",), "app", "rate", True),
        Use(("select",), "app", "log", True),
        Use(("select",), "app", "entry", True),
        Use(("select",), "", "now", False),
        Use(("insert", "update", "select"), "t", "u", True, ("id", "B c")),
        Use(("select",), "s", "t", False),
        Use(("delete",), "", "late", False),
    ]
    [use] = uses("select max(id) from app.entry where id is not null", plpgsql=False)
    assert use == Use(("select",), "app", "entry", True)


# -- doctor and the start -------------------------------------------------------------------------------


def _into_t(document: Document) -> None:
    contract = {"customer_id": "string?", "used": "number?"}
    document["events"] = {"usage.limit_reached": contract}
    document["pipelines"] = {
        "p": {
            "event": "usage.limit_reached",
            "destinations": {
                "d": {
                    "connection": "warehouse",
                    "table": "t.x",
                    "mode": "upsert",
                    "key": ["customer_id"],
                    "version": _SEQ,
                    "columns": {"customer_id": "$event.customer_id", "used": "$event.used"},
                }
            },
        }
    }


def test_doctor_and_the_start_find_the_same(world: World, target: Database) -> None:
    make(
        target,
        "create unlogged table t.x (customer_id text unique, used numeric not null default 1, version text, id serial)",
        f"grant select, insert, update on t.x to {_ROLE}",
    )
    world.configure(_into_t)
    asked = world.run("doctor", "--json")
    assert asked.returncode == 1
    said = [one for one in json.loads(asked.stdout)["checks"] if one["where"] == "warehouse"]
    bad = {(one["level"], one["check"]) for one in said if one["level"] != "ok"}
    assert bad == {
        ("error", "table_unlogged"),
        ("error", "column_type"),
        ("error", "privilege_missing"),
        ("warn", "key_nullable"),
        ("warn", "column_not_null"),
    }
    bridge = world.bridge().start()
    halted = json.loads(bridge.wait_log('"event":"halted"'))
    stops = [one for one in said if one["check"] == "privilege_missing"]
    for one in stops:
        assert one["message"] in halted["message"]
        assert one["fix"] in halted["fix"]
        target.execute(one["fix"])
    bridge.wait_ready()
    logged = [json.loads(line) for line in bridge.lines if "cost events" in line]
    assert [(one["what"], one["fix"]) for one in logged] == [
        (one["message"], one["fix"]) for one in said if one["level"] != "ok" and one not in stops
    ]
    for one in said:
        if one["level"] == "error" and one not in stops:
            target.execute(one["fix"])
    assert world.run("doctor").returncode == 0
