"""What real servers put into their errors: the canary is in psycopg's text, and not in ours."""

from __future__ import annotations

import json

import psycopg

from bridge.postgres.safe_error import safe_error, safe_message
from tests.support.servers import Database

CANARY = "canary-4f1b9c"

TABLES = f"""
create type level as enum ('low', 'high');
create table parent (id text primary key);
create table child (
    id      integer primary key,
    email   text unique,
    name    text not null,
    parent  text references parent deferrable initially deferred,
    amount  numeric(4, 2) check (amount > 0),
    level   level,
    at      timestamptz,
    body    jsonb,
    span    int4range,
    exclude using gist (span with &&)
);
insert into child (id, email, name) values (1, '{CANARY}', 'x');
create function complain() returns trigger language plpgsql as $$
begin
    if new.name = 'borrowed' then
        raise exception 'customer % is blocked', new.email using errcode = 'insufficient_privilege';
    elsif new.name = 'dynamic' then
        execute format('select %I from parent', new.email);
    end if;
    raise exception 'customer % is blocked', new.email;
end $$;
create table guarded (email text, name text);
create trigger complain before insert on guarded for each row execute function complain();
create table checked (email text check (length(email) < 3));
create view narrow as select * from checked where email = 'a' with check option;
create domain short as text check (length(value) < 5);
create table domained (email short);
"""

STATEMENTS = {
    "unique": "insert into child (id, email, name) values (2, %(canary)s, 'x')",
    "not null": "insert into child (id, email) values (3, 'other ' || %(canary)s)",
    "foreign key": "insert into child (id, name, parent) values (4, 'x', %(canary)s)",
    "check": "insert into checked values (%(canary)s)",
    "view check": "insert into narrow values ('b' || left(%(canary)s, 1))",
    "domain": "insert into domained values (%(canary)s)",
    "integer": "select %(canary)s::text::integer",
    "numeric": "select (%(canary)s::text)::numeric",
    "enum": "select %(canary)s::text::level",
    "timestamp": "select %(canary)s::text::timestamptz",
    "uuid": "select %(canary)s::text::uuid",
    "json": "select ('{\"a\": ' || %(canary)s || '}')::jsonb",
    "bytea": "select ('\\x' || %(canary)s)::bytea",
    "range": "select ('[' || %(canary)s || ']')::int4range",
    "interval": "select %(canary)s::text::interval",
    "overflow": "insert into child (id, name, amount) values (5, %(canary)s, 12345)",
    "regular expression": "select 'x' ~ ('[' || %(canary)s)",
    "trigger": "insert into guarded values (%(canary)s, 'x')",
    "trigger with a borrowed code": "insert into guarded values (%(canary)s, 'borrowed')",
    "trigger with a statement": "insert into guarded values (%(canary)s, 'dynamic')",
    "cast of a record": "select ('(' || %(canary)s || ',1)')::child",
    "set": "select set_config('work_mem', %(canary)s, false)",
    "time zone": "select now() at time zone %(canary)s::text",
    "regclass": "select (%(canary)s::text)::regclass",
    "format": "select to_date(%(canary)s, 'YYYY-MM-DD')",
}


def test_no_error_of_a_server_lets_a_row_value_out(target: Database) -> None:
    told: dict[str, str] = {}
    leaked = 0
    with target.connect() as connection:
        connection.execute(TABLES.encode())
        connection.execute("set log_parameter_max_length_on_error = -1")
        for name, statement in STATEMENTS.items():
            error = None
            try:
                connection.execute(statement.encode(), {"canary": CANARY})
            except psycopg.Error as raised:
                error = raised
            assert error is not None, name
            diag = error.diag
            full = " ".join(filter(None, (str(error), diag.message_detail, diag.context)))
            leaked += CANARY in full
            told[name] = json.dumps(safe_error(error))
    assert {name: text for name, text in told.items() if CANARY in text} == {}
    assert leaked > len(STATEMENTS) * 0.7  # else this test shows nothing
    assert '"constraint": "child_email_key"' in told["unique"]
    assert '"column": "name"' in told["not null"]
    assert "complain() line" in told["trigger"]
    assert all('"sqlstate"' in text for text in told.values())


def test_what_an_operator_must_mend_is_still_named(target: Database) -> None:
    with target.connect() as connection, target.connect(user="outbox_bridge") as bridge:
        connection.execute(b"create schema closed; create table closed.t (a integer)")
        told = []
        for statement in (
            "insert into events.no_such_table values (1)",
            "insert into events.usage_limits (no_such_column) values (1)",
            "select from closed.t",
            "insert into events.usage_limits select on conflict (customer_id) do nothing",
            "create table events.t ()",
        ):
            try:
                bridge.execute(statement.encode())
            except psycopg.Error as raised:
                told.append(safe_message(raised))
    assert told == [
        'relation "events.no_such_table" does not exist',
        'column "no_such_column" of relation "usage_limits" does not exist',
        "permission denied for schema closed",
        "there is no unique or exclusion constraint matching the ON CONFLICT specification",
        "permission denied for schema events",
    ]
