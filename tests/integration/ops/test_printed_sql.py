"""Every SQL statement that the program prints for a person is one that Postgres can read."""

from __future__ import annotations

import psycopg

from tests.support.printed import source_texts, statements_in
from tests.support.servers import Database

CLAUSES = {
    "create table if not exists x (x)": "create table if not exists x (x text)",
    "alter table x alter column x x": "alter table x alter column x drop not null",
}
"""Where a whole clause is filled in: with one of those that are."""


def complaint(database: Database, statement: str) -> str:
    """What the server's parser says: PL/pgSQL reads every statement of a block before the first is run."""
    try:
        database.execute(f"do $printed$ begin return; {statement}; end $printed$")
    except psycopg.Error as error:
        return str(error).splitlines()[0]
    return ""


def test_every_statement_in_a_printed_text_parses(target: Database) -> None:
    told = {
        (one.where, statement)
        for one in source_texts()
        if not one.where.startswith("bridge/demo/")
        for statement in statements_in(one.text)
    }
    assert len(told) > 40
    refused = {
        f"{where}: {said}": why for where, said in told if (why := complaint(target, CLAUSES.get(said, said)))
    }
    assert refused == {}
    assert {said for _, said in told} >= CLAUSES.keys()


def test_what_is_no_sql_is_found(target: Database) -> None:
    for statement in ("grant select on to x", "alter tabel x owner to x", "alter role x replicate"):
        assert complaint(target, statement), statement
    assert complaint(target, "alter role x replication") == ""
    assert complaint(target, "drop table bridge.checkpoint") == ""
    assert target.value("select to_regclass('bridge.checkpoint') is not null")
