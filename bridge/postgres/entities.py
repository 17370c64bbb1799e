"""Entities: look them up for a batch, one query for all keys that are not cached, and write those that events keep.

Runs beside the stream's thread, which goes on answering keepalives meanwhile. What events keep is written to
`outbox.entity` in the source, not in the target's transaction. It need not be: a field takes the value of the event
with the greatest seq, so a batch that is planned again after a crash writes nothing twice and nothing back
(planning/entity.py says the same for the events of one batch).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import psycopg

from bridge.attempts import bisect
from bridge.errors import CannotConnect, Halt, Retry, Verdict, verdict_of
from bridge.expressions.document import json_text
from bridge.planning.entity import Keep, folded
from bridge.planning.lookup import Lookup, LookupSpec, Unreadable
from bridge.postgres.connect import connect
from bridge.postgres.looked_up import Row, described, rows_of, takes_text
from bridge.postgres.profiled import ProfiledConnection, Waits
from bridge.postgres.profiles import ENRICH, ENTITY
from bridge.postgres.safe_error import safe_message
from bridge.problem import nearest

# One statement and one durable commit (ENTITY). A row in which nothing is newer is left as it is.
_WRITE = b"""
    insert into outbox.entity as kept (entity, key, fields, seqs)
    select said.entity, said.key, said.fields::jsonb, said.seqs::jsonb
    from unnest(%(entities)s::text[], %(keys)s::text[], %(fields)s::text[], %(seqs)s::text[])
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
    """One event's fields that the server refused, and the cause without values."""

    keep: Keep
    code: str
    cause: str


class EntityStore:
    """Writes entities over its own connection, opened on first use."""

    def __init__(self, dsn: str, stream: str) -> None:
        self._dsn = dsn
        self._stream = stream
        self._connection: psycopg.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def write(self, keeps: Sequence[Keep]) -> list[RefusedKeep]:
        """Write them durably, except those whose values are refused; returns these. Raises Retry and Halt."""
        return [
            RefusedKeep(keep, error.sqlstate or "22000", safe_message(error))
            for keep, error in bisect(keeps, self._try)
        ]

    def _try(self, keeps: Sequence[Keep]) -> psycopg.Error | None:
        try:
            self._put(keeps)
        except psycopg.Error as error:
            self._judge(error)
            return error
        return None

    def _put(self, keeps: Sequence[Keep]) -> None:
        if self._connection is None or self._connection.closed:
            try:
                self._connection = connect(self._dsn, ENTITY, self._stream)
            except CannotConnect as error:
                why = f"an entity cannot be written: {error.args[0]}"
                raise Retry(why, reason="entity_failed", hint=error.hint) from None
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
        """Returns if a value is the cause; raises otherwise."""
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
    """outbox.entity does not exist, or we may not use it."""
    reasons = {"42P01": "outbox_missing", "3F000": "outbox_missing", "42501": "privilege_missing"}
    hints = {
        "outbox_missing": "bridge install",
        "privilege_missing": "grant select, insert, update on outbox.entity to outbox_bridge;  -- or the bridge's role",
    }
    reason = reasons.get(error.sqlstate or "", "server_refused")
    return Halt(
        f"entities that events maintain: {safe_message(error)} (SQLSTATE {error.sqlstate})",
        reason=reason,
        hint=hints.get(reason, "bridge doctor shows what outbox.entity lacks"),
    )


_CACHE_LIMIT = 100_000
_SPARE_SECONDS = 10.0


def _uncounted(_entity: str, _result: str, _n: int) -> None:
    pass


def _now(future: Future[Any]) -> Any:
    return future.result()


class Enricher:
    """Answers Lookups from a cache and from the connection each entity names, and writes what events keep.

    dsns: "source" and connection names -> dsn. count: (entity, result, n) for metrics, results hit,
    found, missing. Rows that are missing are never cached: the next event may come with them.
    waits: the caller's thread asks, and waits so. Without it, and to connect and to write, another thread does the
    work. result_of: waits for it, and may do something else meanwhile; done: told there when it is ready. Every method
    that waits raises Retry and Halt.
    """

    def __init__(
        self,
        dsns: Mapping[str, str],
        stream: str,
        count: Callable[[str, str, int], None] = _uncounted,
        *,
        waits: Waits | None = None,
        result_of: Callable[[Future[Any]], Any] = _now,
        done: Callable[[], None] | None = None,
    ) -> None:
        self._dsns = dsns
        self._stream = stream
        self._count = count
        self._waits = waits
        self._result_of = result_of
        self._done = done
        self._cache: dict[LookupSpec, dict[str, tuple[float, Row]]] = {}
        self._columns: dict[LookupSpec, tuple[str, ...]] = {}  # as the query last had them
        self._checking: Thread | None = None
        self._halt: Halt | None = None
        self._connections: dict[str, ProfiledConnection] = {}
        self._spare: dict[str, ProfiledConnection] = {}  # that the check left, for the first lookup
        self._spare_until = time.monotonic() + _SPARE_SECONDS
        self._store = EntityStore(dsns["source"], stream)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"enrich {stream}")

    def begin_check(self, lookups: Sequence[Lookup]) -> None:
        """Ask each server which columns its query has, beside everything else: checked() tells."""
        self._checking = Thread(target=self._check, args=[lookups], name="check lookups", daemon=True)
        self._checking.start()

    def checked(self, patience: float = 0.0) -> None:
        """Raises Halt (reason lookup_column) if a query does not have a column that is read of it. What else is wrong
        with a query, its first lookup tells. patience: seconds to wait for servers that have not answered."""
        if self._checking is not None:
            self._checking.join(patience)
        if self._halt is not None:
            raise self._halt
        if self._spare and time.monotonic() > self._spare_until:
            self._close_spare()

    def _check(self, lookups: Sequence[Lookup]) -> None:
        asked = [one for one in lookups if one.entity.kept is None and one.reads]
        try:
            for source in dict.fromkeys(one.entity.source for one in asked):
                here = [one for one in asked if one.entity.source == source]
                with suppress(psycopg.Error, CannotConnect), ExitStack() as failed:
                    connection = failed.enter_context(closing(self._connect(source)))
                    for entity in dict.fromkeys(one.entity for one in here):
                        self._columns.setdefault(entity, tuple(described(connection, entity.sql)))
                    failed.pop_all()
                    self._spare[source] = connection
                for lookup in here:
                    self._require(lookup)
        except Halt as halt:
            self._halt = halt

    def _require(self, lookup: Lookup) -> None:
        """A column that the query does not have would be NULL in every row, for ever."""
        entity = lookup.entity
        columns = self._columns.get(entity)
        if columns is None or entity.kept is not None or lookup.reads.issubset(columns):
            return
        missing = sorted(lookup.reads.difference(columns))
        near = next(filter(None, (nearest(name, columns) for name in missing)), "")
        names = ", ".join(f"${entity.as_name}.{name}" for name in missing)
        raise Halt(
            f"the lookup of {entity.as_name} has no column {', '.join(missing)}: {names} would be NULL for every event"
            f" (it has {', '.join(columns)})",
            reason="lookup_column",
            hint=f"{near + ' ' if near else ''}correct the name in bridge.yaml, or select the column in the sql of"
            f" enrich.entity {entity.as_name}",
        )

    def answer(self, lookup: Lookup, visible: Callable[[], bool] | None = None) -> dict[Any, Row]:
        """The rows that exist, by key; waits for them (reason enrich_failed).

        visible: whether the source shows all that the events' transactions wrote; it waits a little where not. Rows of
        the source that are missing are asked for again until then, and once more: a stream can run ahead of
        visibility. Without it, what is missing is missing.
        """
        found, wanted = self._cached(lookup)
        last = visible is None or lookup.entity.source != "source"
        while wanted:
            rows = self._rows(lookup.entity, wanted)
            found.update((key, rows[str(key)]) for key in wanted if str(key) in rows)
            wanted = [key for key in wanted if str(key) not in rows]
            if last or not wanted:
                break
            last = visible is None or visible()
        self._require(lookup)
        return found

    def _rows(self, entity: LookupSpec, keys: list[Any]) -> dict[str, Row]:
        link = self._connections.get(entity.source)
        if self._waits is not None and (link is None or link.closed):
            self._beside(self._connection, entity.source)
        rows: dict[str, Row] = (
            self._beside(self._fetch, entity, keys) if self._waits is None else self._fetch(entity, keys)
        )
        return rows

    def keep(self, keeps: Sequence[Keep]) -> list[RefusedKeep]:
        """Write what events keep, and wait until it is durable. Those that the server refused for their values."""
        refused: list[RefusedKeep] = self._beside(self._keep, keeps)
        return refused

    def _beside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of work in the other thread."""
        future = self._worker.submit(work, *arguments)
        if (done := self._done) is not None:
            future.add_done_callback(lambda _: done())
        return self._result_of(future)

    def _cached(self, lookup: Lookup) -> tuple[dict[Any, Row], list[Any]]:
        """The cached rows, and the keys to look up."""
        cache = self._cache.get(lookup.entity, {})
        now = time.monotonic()
        found: dict[Any, Row] = {}
        wanted: list[Any] = []
        for key in lookup.keys:
            entry = cache.get(str(key))
            if entry is not None and entry[0] > now:
                found[key] = entry[1]
            else:
                wanted.append(key)
        if found:
            self._count(lookup.entity.as_name, "hit", len(found))
        return found, wanted

    def _fetch(self, entity: LookupSpec, keys: list[Any]) -> dict[str, Row]:
        """The rows by key text."""
        rows = self._query(entity, keys)
        found = _found(keys, rows)
        self._count(entity.as_name, "found", found)
        self._count(entity.as_name, "missing", len(keys) - found)
        if entity.cache_seconds > 0:
            cache = self._cache.setdefault(entity, {})
            if len(cache) > _CACHE_LIMIT:
                cache.clear()
            expires = time.monotonic() + entity.cache_seconds
            cache.update((key, (expires, row)) for key, row in rows.items())
        return rows

    def _keep(self, keeps: Sequence[Keep]) -> list[RefusedKeep]:
        try:
            return self._store.write(keeps)
        finally:
            for entity, cache in self._cache.items():
                for keep in keeps:
                    if keep.entity == entity.kept:
                        cache.pop(keep.key, None)

    def _query(self, entity: LookupSpec, keys: Sequence[Any]) -> dict[str, Row]:
        """A key that the query's types cannot hold has no row; it is found by bisection. A row for which the query
        fails is there, and unreadable."""
        rows: dict[str, Row] = {}

        def attempt(some: Sequence[Any]) -> psycopg.DataError | None:
            try:
                columns, found = _rows(self._connection(entity.source), entity.sql, some)
                self._columns[entity] = columns
                rows.update(found)
            except psycopg.DataError as error:
                return error
            return None

        try:
            failed = bisect(keys, attempt)
            link = self._connection(entity.source)
            if len(rows) > _found(keys, rows):
                wrong = {key for key, _ in failed}
                _other_spellings(link, entity.sql, [key for key in keys if key not in wrong], rows)
            for key, error in failed:
                if not _refuses(link, entity.sql, key):
                    rows[str(key)] = Unreadable(f"the query fails: {safe_message(error)}")
        except psycopg.Error as error:
            self._drop(entity.source)
            raise self._refused(entity, error) from None
        return rows

    def _refused(self, entity: LookupSpec, error: psycopg.Error) -> Exception:
        state, name = error.sqlstate, entity.as_name
        if verdict_of(state) is Verdict.RETRY:
            return Retry(
                f"the lookup of {name} failed ({state or 'connection lost'})", reason="enrich_failed"
            )
        if entity.kept is not None:
            return refused(error)
        return Halt(
            f"the lookup of {name} failed: {safe_message(error)} (SQLSTATE {state})",
            reason="enrich_failed",
            hint=f"correct the sql of enrich.entity {name} in bridge.yaml, or grant what it "
            "reads; its first column must be the key",
        )

    def _connect(self, name: str) -> ProfiledConnection:
        return connect(self._dsns[name], ENRICH, self._stream, where=f"{name} for a lookup")

    def _drop(self, name: str) -> None:
        broken = self._connections.pop(name, None)
        if broken is not None:
            broken.close()

    def _connection(self, name: str) -> ProfiledConnection:
        connection = self._connections.get(name)
        if connection is None or connection.closed:
            try:
                connection = self._spare.pop(name, None) or self._connect(name)
            except CannotConnect as error:
                raise Retry(str(error.args[0]), reason="enrich_failed", hint=error.hint) from None
            takes_text(connection)
            connection.waits = self._waits
            self._connections[name] = connection
        return connection

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._store.close()
        self._close_spare()
        for connection in self._connections.values():
            connection.close()

    def _close_spare(self) -> None:
        """No event came that needs it."""
        while self._spare:
            self._spare.popitem()[1].close()


def _rows(
    connection: psycopg.Connection, sql: str, keys: Sequence[Any]
) -> tuple[tuple[str, ...], dict[str, Row]]:
    """The query's columns, and the rows by key text."""
    cursor = connection.cursor()
    cursor.execute(sql.encode(), {"keys": [*keys]})
    return tuple(column.name for column in cursor.description or ()), dict(rows_of(cursor))


def _found(keys: Sequence[Any], rows: Mapping[str, Row]) -> int:
    return sum(map(rows.__contains__, map(str, keys)))


def _refuses(connection: psycopg.Connection, sql: str, key: Any) -> bool:
    """Does the query fail for this key whatever the rows are? EXPLAIN reads the key and no row."""
    try:
        connection.execute(f"explain {sql}".encode(), {"keys": [key]})
    except psycopg.DataError:
        return True
    return False


def _other_spellings(
    connection: psycopg.Connection, sql: str, keys: Sequence[Any], rows: dict[str, Row]
) -> None:
    """Give rows whose own key is none of `keys` to the key that the query takes for it: `A@x` finds the row `a@x` of a
    citext. Which one it is, the query alone knows, so it is asked by single keys."""
    for key in keys:
        if str(key) not in rows:
            _, found = _rows(connection, sql, [key])
            if len(found) > 1:
                return  # the first column is no key
            rows.update((str(key), row) for row in found.values())
