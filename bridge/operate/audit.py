"""Who does something, and the row that says so in the ledger (bridge.audit).

The console and its API require the table: what they do is never without its row. A command works on an older ledger
too, whose grants may lack it, as it did before there was one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bridge.errors import BridgeError

if TYPE_CHECKING:
    import psycopg

Via = Literal["console", "api", "command"]
_IDS = 100  # of those that were chosen, as many are kept
UPGRADE = "bridge schema target | psql <target>   (as the owner of the database); then the grants at its end"


@dataclass(frozen=True, slots=True)
class Actor:
    """who: the name of the token; of a command, user@host."""

    who: str
    via: Via
    reason: str | None = None


def keeps_audit(connection: psycopg.Connection[Any]) -> bool:
    """False: the ledger is older than 004_audit.sql, or its grants are."""
    row = connection.execute(
        "select coalesce(bool_or(has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'select')), false)"
        " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'bridge' and c.relname = 'audit'"
    ).fetchone()
    return bool(row and row[0])


def need_audit(connection: psycopg.Connection[Any], actor: Actor, action: str) -> None:
    """Raise BridgeError where an action of the console could not be recorded."""
    if actor.via != "command" and not keeps_audit(connection):
        raise BridgeError(
            f"`{action}` in the console needs version 4 of the ledger, which keeps who did what",
            reason="ledger_version",
            hint=UPGRADE,
        )


def record(
    connection: psycopg.Connection[Any],
    actor: Actor,
    action: str,
    stream: str,
    *,
    ids: Sequence[str] = (),
    subject: Mapping[str, Any] | None = None,
    result: str = "",
) -> None:
    """Add the row. subject: what was chosen, without values of events."""
    from psycopg.types.json import Jsonb  # noqa: PLC0415

    if actor.via == "command" and not keeps_audit(connection):
        return
    told = {**({"ids": list(ids[:_IDS]), "count": len(ids)} if ids else {}), **(subject or {})}
    connection.execute(
        "insert into bridge.audit (who, via, action, stream, subject, reason, result)"
        " values (%s, %s, %s, %s, %s, %s, %s)",
        [actor.who, actor.via, action, stream, Jsonb(told), actor.reason, result],
    )


def newest(connection: psycopg.Connection[Any], stream: str, limit: int) -> list[dict[str, Any]]:
    """The last actions on a stream; none on an older ledger."""
    from psycopg.rows import dict_row  # noqa: PLC0415

    if not keeps_audit(connection):
        return []
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "select at, who, via, action, stream, subject, reason, result from bridge.audit"
            " where stream = %s order by at desc, id desc limit %s",
            [stream, limit],
        ).fetchall()
