"""The role the bridge connects as: more power than it needs is a warning, an error under `strict: true`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg

from bridge.doctor.check import Check, Level, ok
from bridge.postgres.roles import powers


def power(
    where: str, connection: psycopg.Connection, tables: Sequence[tuple[str, str]], *, strict: bool
) -> Iterator[Check]:
    """superuser, BYPASSRLS, and ownership of `tables`, (schema, table); those that do not exist are left out."""
    level: Level = "error" if strict else "warn"
    found = powers(connection, tables)
    role = found.role
    if found.superuser:
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
    yield from checks or [ok(where, "role", f"{role} has no more power than it needs")]
