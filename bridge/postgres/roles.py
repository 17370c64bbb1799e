"""What the role of a connection may do beyond what the bridge needs: told, and refused under `strict: true`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg


@dataclass(frozen=True, slots=True)
class Powers:
    """Of the current role: its name, whether it is a superuser or has BYPASSRLS, and (table, new owner) of each table
    it owns: the database's owner, or postgres where that is the role itself. Names quoted as in SQL."""

    role: str
    superuser: bool
    bypasses: bool
    owned: tuple[tuple[str, str], ...] = ()


def powers(connection: psycopg.Connection, tables: Sequence[tuple[str, str]] = ()) -> Powers:
    """Asked of the catalog. tables: (schema, table) that it should not own; those that do not exist are left out."""
    row = connection.execute(
        "select quote_ident(rolname), rolsuper, rolbypassrls from pg_catalog.pg_roles where rolname = current_user"
    ).fetchone()
    role, superuser, bypasses = row or ("", False, False)
    owned = connection.execute(
        "select format('%%I.%%I', n.nspname, c.relname), case when d.datdba = c.relowner then 'postgres'"
        " else quote_ident(pg_get_userbyid(d.datdba)) end"
        " from unnest(%s::text[], %s::text[]) as t(schema, name)"
        " join pg_catalog.pg_namespace n on n.nspname = t.schema"
        " join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.name"
        " join pg_catalog.pg_database d on d.datname = current_database()"
        " where pg_has_role(current_user, c.relowner, 'usage')",
        [[schema for schema, _ in tables], [name for _, name in tables]],
    ).fetchall()
    return Powers(role, superuser, bypasses, tuple((table, owner) for table, owner in owned))


def excess_powers(connection: psycopg.Connection, tables: Sequence[tuple[str, str]] = ()) -> list[str]:
    """In words: superuser, BYPASSRLS, owner of one of `tables`, (schema, table)."""
    found = powers(connection, tables)
    if found.superuser:  # it may do everything else as well
        return [f"role {found.role} is a superuser"]
    words = []
    if found.bypasses:
        words.append(f"role {found.role} has BYPASSRLS")
    if found.owned:
        words.append(f"role {found.role} owns {', '.join(table for table, _ in found.owned)}")
    return words
