"""What the bridge's roles may do: each right that is missing with its GRANT, and more power than is needed.

More power than needed is a warning, an error under `strict: true`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import sql

from bridge.doctor.check import Check, Severity, ok
from bridge.postgres.catalog import powers
from bridge.postgres.outbox import Outbox


def power(
    where: str, connection: psycopg.Connection, tables: Sequence[tuple[str, str]], *, strict: bool
) -> Iterator[Check]:
    """superuser, BYPASSRLS, and ownership of `tables`, (schema, table); missing tables are left out."""
    level: Severity = "error" if strict else "warn"
    found = powers(connection, tables)
    role = found.role
    if found.superuser:
        yield Check(
            level,
            where,
            "role_superuser",
            (
                f"role {role} is a superuser: a stolen password of the bridge would give access to "
                "the whole server"
            )
            + ("; strict: true refuses it" if strict else ""),
            "connect as a role of the bridge's own: outbox_bridge, as `bridge schema source` makes it "
            "(on a target: create role outbox_bridge login, and the grants at the end of `bridge schema target`)",
            "config",
        )
        return
    checks = []
    if found.bypasses:
        checks.append(
            Check(
                level,
                where,
                "role_bypassrls",
                f"role {role} has BYPASSRLS",
                f"alter role {role} nobypassrls;",
                "sql",
            )
        )
    for table, owner in found.owned:
        checks.append(
            Check(
                level,
                where,
                "role_owner",
                f"role {role} owns {table}: it could alter or drop it",
                f"alter table {table} owner to {owner};\n"
                f"grant select, insert, update, delete on {table} to {role};",
                "sql",
            )
        )
    yield from checks or [ok(where, "role", f"{role} has no privileges that it does not need")]


# (relation, privilege, columns: None is the whole table), for the outbox that install makes
_GRANTS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("outbox.event", "select", None),
    ("outbox.event", "delete", None),
    ("outbox.event", "update", ("payload", "headers")),
    ("outbox.stream", "select", None),
    ("outbox.stream", "insert", None),
    ("outbox.stream", "update", None),
    ("outbox.stream", "delete", None),
    ("outbox.pruned", "select", None),
    ("outbox.pruned", "update", None),
    ("outbox.migration", "select", None),
    ("outbox.suppressed", "select", None),
    ("outbox.suppressed", "delete", None),
    ("outbox.suppressed", "insert", None),
    ("outbox.suppressed", "update", ("count",)),
)


_INGRESS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    (
        "outbox.event",
        "insert",
        ("id", "type", "key", "payload", "idempotency_key", "headers", "occurred_at"),
    ),
    ("outbox.webhook_delivery", "select", None),
    ("outbox.webhook_delivery", "insert", None),
    ("outbox.webhook_delivery", "delete", None),
    ("outbox.webhook_delivery", "update", ("event_id",)),
)
_ENTITIES: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("outbox.entity", "select", None),
    ("outbox.entity", "insert", None),
    ("outbox.entity", "update", None),
)
_FIRST_ID = "outbox.first_id(text, text)"

_RIGHT = """
    select case when %s::text[] is null then has_table_privilege(c.oid, %s)
           else (select bool_and(has_column_privilege(c.oid, name, %s)) from unnest(%s::text[]) as name) end
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = %s and c.relname = %s"""

_EXECUTES = """
    select bool_and(has_function_privilege(p.oid, 'execute'))
    from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'outbox' and p.proname = 'first_id'"""


def grants(
    source: psycopg.Connection, outbox: Outbox, *, ingress: bool = False, entities: bool = False
) -> Iterator[Check]:
    """Each missing privilege with its GRANT. ingress: also those to insert events. entities: also those to maintain
    entities."""
    row = source.execute("select quote_ident(current_user)").fetchone()
    role = row[0] if row else ""
    table = f"{outbox.schema}.{outbox.table}"
    wanted = [*_GRANTS, *(_INGRESS if ingress else ()), *(_ENTITIES if entities else ())]
    if table != "outbox.event":  # of one of theirs we only read
        wanted = [(table, "select", None)] + [each for each in wanted if each[0] != "outbox.event"]
    missing = 0
    for schema in dict.fromkeys(("outbox", outbox.schema)):
        if not may(source, "select has_schema_privilege(%s, 'usage')", [schema]):
            missing += 1
            yield _ungranted(f"use schema {schema}", f'grant usage on schema "{schema}" to {role};')
    for relation, privilege, columns in wanted:
        quoted = sql.Identifier(*relation.split(".", 1)).as_string()
        named = list(columns) if columns else None
        if not may(source, _RIGHT, [named, privilege, privilege, named, *relation.split(".", 1)]):
            missing += 1
            which = f" ({', '.join(columns)})" if columns else ""
            yield _ungranted(
                f"{privilege}{which} on {relation}", f"grant {privilege}{which} on {quoted} to {role};"
            )
    if ingress and not may(source, _EXECUTES, []):
        missing += 1
        yield _ungranted("execute outbox.first_id", f"grant execute on function {_FIRST_ID} to {role};")
    if not missing:
        yield ok("source", "grants", f"role {role} has what it needs on the outbox and its registry")


def may(source: psycopg.Connection, query: str, values: list[Any]) -> bool:
    """The boolean that a query returns; false without a row."""
    row = source.execute(query.encode(), values).fetchone()
    return bool(row and row[0])


def _ungranted(what: str, grant: str) -> Check:
    return Check("error", "source", "privilege_missing", f"the bridge's role may not {what}", grant, "sql")
