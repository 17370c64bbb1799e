"""Entities that events keep, in the source: `outbox.entity`.

Apart from the target, because the row is not written in its transaction. It need not be: a field takes the value of the
event with the greatest seq, so a batch that is planned again after a crash writes nothing twice and nothing back.
core/entity.py says the same for the events of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from bridge.core.document import json_text
from bridge.core.entity import Keep, folded
from bridge.errors import Halt, Retry, Verdict, verdict_of
from bridge.postgres.safe_error import safe_message
from bridge.postgres.source import connect_source

# One statement and one commit, which is flushed even where the role says otherwise: once the target has the batch,
# nothing writes it again. A row in which nothing is newer is left as it is.
_WRITE = b"""
    with durable as materialized (
        select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'
        union all select '' where current_setting('synchronous_commit') <> 'off')
    insert into outbox.entity as kept (entity, key, fields, seqs)
    select said.entity, said.key, said.fields::jsonb, said.seqs::jsonb
    from durable, unnest(%(entities)s::text[], %(keys)s::text[], %(fields)s::text[], %(seqs)s::text[])
         as said(entity, key, fields, seqs)
    on conflict (entity, key) do update set (fields, seqs, updated_at) = (
        select kept.fields || jsonb_object_agg(newer.name, newer.value),
               kept.seqs || jsonb_object_agg(newer.name, excluded.seqs -> newer.name), now()
        from jsonb_each(excluded.fields) as newer(name, value)
        where (excluded.seqs ->> newer.name)::bigint > coalesce((kept.seqs ->> newer.name)::bigint, 0))
    where exists (
        select from jsonb_each_text(excluded.seqs) as newer(name, seq)
        where newer.seq::bigint > coalesce((kept.seqs ->> newer.name)::bigint, 0))"""


@dataclass(frozen=True, slots=True)
class RefusedKeep:
    """One event's fields that the server cannot hold, and why, in words without values."""

    keep: Keep
    code: str
    cause: str


class EntityStore:
    """Writes entities over a connection of its own, made when it is first needed."""

    def __init__(self, dsn: str, stream: str) -> None:
        self._dsn = dsn
        self._stream = stream
        self._connection: psycopg.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def write(self, keeps: Sequence[Keep]) -> list[RefusedKeep]:
        """Durable when it returns, but for those that are refused for their values. Raises Retry and Halt."""
        try:
            self._put(keeps)
        except psycopg.Error as error:
            self._judge(error)
            if len(keeps) == 1:
                return [RefusedKeep(keeps[0], error.sqlstate or "22000", safe_message(error))]
            middle = len(keeps) // 2
            return [*self.write(keeps[:middle]), *self.write(keeps[middle:])]
        return []

    def _put(self, keeps: Sequence[Keep]) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = connect_source(self._dsn, f"entity/{self._stream}")
        rows = folded(keeps)
        self._connection.execute(
            _WRITE,
            {
                "entities": [entity for (entity, _), _ in rows],
                "keys": [key for (_, key), _ in rows],
                "fields": [json_text(row.fields).decode() for _, row in rows],
                "seqs": [json_text(row.seqs).decode() for _, row in rows],
            },
        )

    def _judge(self, error: psycopg.Error) -> None:
        """Returns where a value is to blame."""
        state = error.sqlstate
        verdict = verdict_of(state)
        if state is None and isinstance(error, psycopg.DataError):
            return  # psycopg's own, before anything was sent
        if verdict is Verdict.RETRY:
            self.close()
            why = f"{safe_message(error)} ({state or 'connection lost'})"
            raise Retry(f"an entity cannot be written to the source: {why}", reason="entity_failed") from None
        if verdict is Verdict.HALT:
            raise refused(error) from None


def refused(error: psycopg.Error) -> Halt:
    """outbox.entity is not there, or not for us."""
    reasons = {"42P01": "outbox_missing", "3F000": "outbox_missing", "42501": "privilege_missing"}
    hints = {
        "outbox_missing": "bridge install",
        "privilege_missing": "grant select, insert, update on outbox.entity to outbox_bridge;  -- or the bridge's role",
    }
    reason = reasons.get(error.sqlstate or "", "server_refused")
    return Halt(
        f"entities that events keep: {safe_message(error)} (SQLSTATE {error.sqlstate})",
        reason=reason,
        hint=hints.get(reason, "bridge doctor says what outbox.entity lacks"),
    )
