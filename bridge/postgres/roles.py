"""What a role may do beyond what the bridge needs. That works, and is told; `strict: true` refuses it."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg


def excess_powers(connection: psycopg.Connection, tables: Sequence[tuple[str, str]] = ()) -> list[str]:
    """In words: superuser, BYPASSRLS, owner of one of `tables`, (schema, table)."""
    row = connection.execute(
        "select rolname, rolsuper, rolbypassrls,"
        " (select string_agg(format('%%I.%%I', n.nspname, c.relname), ', ')"
        "  from unnest(%s::text[], %s::text[]) as t(schema, name)"
        "  join pg_catalog.pg_namespace n on n.nspname = t.schema"
        "  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.name"
        "  where pg_has_role(current_user, c.relowner, 'usage'))"
        " from pg_catalog.pg_roles where rolname = current_user",
        [[schema for schema, _ in tables], [name for _, name in tables]],
    ).fetchone()
    if row is None:
        return []
    role, superuser, bypasses, owned = row
    if superuser:  # it may do everything else as well
        return [f"role {role} is a superuser"]
    powers = []
    if bypasses:
        powers.append(f"role {role} has BYPASSRLS")
    if owned:
        powers.append(f"role {role} owns {owned}")
    return powers
