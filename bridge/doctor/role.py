"""The role the bridge connects as: more power than it needs is a warning, an error under `strict: true`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg

from bridge.doctor.check import Check, Level, ok


def power(
    where: str, connection: psycopg.Connection, tables: Sequence[tuple[str, str]], *, strict: bool
) -> Iterator[Check]:
    """superuser, BYPASSRLS, and ownership of `tables`, (schema, table); those that do not exist are left out."""
    level: Level = "error" if strict else "warn"
    row = connection.execute(
        "select quote_ident(current_user), rolsuper, rolbypassrls from pg_catalog.pg_roles"
        " where rolname = current_user"
    ).fetchone()
    role, is_super, bypasses = row or ("", False, False)
    if is_super:
        yield Check(
            level,
            where,
            "role_superuser",
            f"role {role} is a superuser: a stolen password of the bridge is the whole server"
            + ("; strict: true refuses it" if strict else ""),
            "connect as a role of the bridge's own: outbox_bridge, as `bridge schema source` makes it "
            "(on a target: create role outbox_bridge login, and the grants at the end of `bridge schema target`)",
            "config",
        )
        return
    found = []
    if bypasses:
        found.append(
            Check(
                level,
                where,
                "role_bypassrls",
                f"role {role} has BYPASSRLS",
                f"alter role {role} nobypassrls;",
                "sql",
            )
        )
    for table, owner in _owned(connection, tables):
        found.append(
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
    yield from found or [ok(where, "role", f"{role} has no more power than it needs")]


def _owned(connection: psycopg.Connection, tables: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Which of them our role owns, and the database's owner, or postgres where that is us too."""
    return connection.execute(
        "select format('%%I.%%I', n.nspname, c.relname), case when d.datdba = c.relowner then 'postgres'"
        " else quote_ident(pg_get_userbyid(d.datdba)) end"
        " from unnest(%s::text[], %s::text[]) as t(schema, name)"
        " join pg_catalog.pg_namespace n on n.nspname = t.schema"
        " join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.name"
        " join pg_catalog.pg_database d on d.datname = current_database()"
        " where pg_has_role(current_user, c.relowner, 'usage')",
        [[schema for schema, _ in tables], [name for _, name in tables]],
    ).fetchall()
