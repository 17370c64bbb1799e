"""Which columns the default mapping fills where no contract says it: asked of the newest events.

Apart from subject.py because it reads events; what it finds decides only which columns are compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import psycopg
from psycopg import sql

from bridge.postgres.outbox import Outbox

NEWEST = 10_000
"""Events looked at. A field that none of them has is not compared, and the report says so."""

_NAMED = sql.SQL(
    "with newest as materialized (select {payload} as payload from {table} where {type} ~ %(types)s"
    " order by {xid} desc, {seq} desc limit %(limit)s)"
    " select name from unnest(%(names)s::text[]) as name"
    " where exists (select from newest where jsonb_exists(payload, name))"
)


def named_by_events(
    source: psycopg.Connection, outbox: Outbox, patterns: Sequence[str], names: Sequence[str]
) -> set[str]:
    """Those of `names` that are fields of a new event of these types. None of an outbox of the customer's own, whose
    payload may be of any type."""
    if outbox.is_foreign or not names:
        return set()
    query = _NAMED.format(
        table=outbox.name, **{name: outbox.column(name) for name in ("payload", "type", "xid", "seq")}
    )
    types = "|".join(map(_expression, patterns))
    rows = source.execute(query, {"types": f"^({types})$", "limit": NEWEST, "names": list(names)})
    return {row[0] for row in rows}


def _expression(glob: str) -> str:
    """A glob as a regular expression of Postgres; `[...]` is the same in both, but for its `!`."""
    parts = re.split(r"(\[[^]]+\]|[*?])", glob)
    words = {"*": ".*", "?": "."}
    return "".join(
        part.replace("[!", "[^", 1) if part.startswith("[") else words.get(part) or re.escape(part)
        for part in parts
    )
