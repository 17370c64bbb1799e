"""Look entities up for a batch: one query for all keys that are not cached. And write those that events keep, since the
cache must know. Runs beside the stream's thread, which goes on answering keepalives meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
from psycopg.rows import dict_row

from bridge.core.entity import Keep
from bridge.core.plan import Lookup
from bridge.core.spec import EnrichSpec
from bridge.errors import Halt, Retry, Verdict, verdict_of
from bridge.postgres import wire
from bridge.postgres.entity import EntityStore, RefusedKeep, refused
from bridge.postgres.pooler import is_pooled
from bridge.postgres.safe_error import safe_message

Row = Mapping[str, Any]
_CACHE_LIMIT = 100_000


class Enricher:
    """Answers Lookups from a cache and from the connection each entity names.

    dsns: "source" and connection names -> dsn. count: (entity, result, n) for metrics, results hit,
    found, missing. Rows that are missing are never cached: the next event may come with them.
    """

    def __init__(self, dsns: Mapping[str, str], stream: str, count: Callable[[str, str, int], None]) -> None:
        self._dsns = dsns
        self._stream = stream
        self._count = count
        self._cache: dict[EnrichSpec, dict[str, tuple[float, Row]]] = {}
        self._connections: dict[str, psycopg.Connection] = {}
        self._pooled: dict[str, bool] = {}
        self._store = EntityStore(dsns["source"], stream)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"enrich {stream}")

    def cached(self, lookup: Lookup) -> tuple[dict[Any, Row], list[Any]]:
        """The rows that are still fresh, and the keys to ask for."""
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

    def fetch(self, lookup: Lookup, keys: Sequence[Any], done: Callable[[], None]) -> Future[dict[str, Row]]:
        """Ask for these keys in the background. The result maps key text to its row; done() when ready."""
        future = self._worker.submit(self._fetch, lookup, list(keys))
        future.add_done_callback(lambda _: done())
        return future

    def answer(self, lookup: Lookup) -> dict[Any, Row]:
        """The rows that exist, by key; waits for them. Raises Retry and Halt (reason enrich_failed)."""
        found, wanted = self.cached(lookup)
        if wanted:
            rows = self.fetch(lookup, wanted, lambda: None).result()
            found.update((key, rows[str(key)]) for key in wanted if str(key) in rows)
        return found

    def _fetch(self, lookup: Lookup, keys: list[Any]) -> dict[str, Row]:
        entity = lookup.entity
        rows = self._query(entity, keys)
        self._count(entity.as_name, "found", len(rows))
        self._count(entity.as_name, "missing", max(0, len(keys) - len(rows)))
        if entity.cache_seconds > 0:
            cache = self._cache.setdefault(entity, {})
            if len(cache) > _CACHE_LIMIT:
                cache.clear()
            expires = time.monotonic() + entity.cache_seconds
            cache.update((key, (expires, row)) for key, row in rows.items())
        return rows

    def keep(self, keeps: Sequence[Keep], done: Callable[[], None]) -> Future[list[RefusedKeep]]:
        """Write what events keep, in the background. The result: those that the server refused; done() when ready."""
        future = self._worker.submit(self._keep, keeps)
        future.add_done_callback(lambda _: done())
        return future

    def _keep(self, keeps: Sequence[Keep]) -> list[RefusedKeep]:
        try:
            return self._store.write(keeps)
        finally:
            for entity, cache in self._cache.items():
                for keep in keeps:
                    if keep.entity == entity.kept:
                        cache.pop(keep.key, None)

    def _query(self, entity: EnrichSpec, keys: list[Any]) -> dict[str, Row]:
        """The rows by key. A key that the query's types cannot hold has no row; it is found by halving."""
        try:
            connection = self._connection(entity.source)
            if not self._pooled[entity.source]:
                return _rows(connection, entity, keys)
            with connection.transaction():  # its settings end with it: the next one may meet another server
                connection.execute("set transaction read only")
                connection.execute("set local statement_timeout = '10s'")
                return _rows(connection, entity, keys)
        except psycopg.DataError:
            if len(keys) == 1:
                return {}
            middle = len(keys) // 2
            return {**self._query(entity, keys[:middle]), **self._query(entity, keys[middle:])}
        except psycopg.Error as error:
            broken = self._connections.pop(entity.source, None)
            if broken is not None:
                broken.close()
            raise self._refused(entity, error) from None

    def _refused(self, entity: EnrichSpec, error: psycopg.Error) -> Exception:
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
            hint=f"mend the sql of enrich.entity {name} in bridge.yaml, or grant what it reads; "
            "the first column it selects must be the key",
        )

    def _connection(self, name: str) -> psycopg.Connection:
        connection = self._connections.get(name)
        if connection is None or connection.closed:
            connection = self._connections[name] = _connect(self._dsns[name], self._stream)
            self._pooled[name] = is_pooled(connection)
            if self._pooled[name]:
                connection.prepare_threshold = None
        return connection

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._store.close()
        for connection in self._connections.values():
            connection.close()


def _rows(connection: psycopg.Connection, entity: EnrichSpec, keys: list[Any]) -> dict[str, Row]:
    cursor = connection.cursor(row_factory=dict_row)
    cursor.execute(entity.sql.encode(), {"keys": keys})
    columns = [column.name for column in cursor.description or ()]
    return {str(row[columns[0]]): row for row in cursor} if columns else {}


def _connect(dsn: str, stream: str) -> psycopg.Connection:
    name = f"bridge-enrich/{stream}"
    options = "-c statement_timeout=10s -c default_transaction_read_only=on -c client_encoding=UTF8"
    try:
        return psycopg.connect(wire.complete(dsn, application_name=name, options=options), autocommit=True)
    except psycopg.OperationalError as error:
        if not wire.takes_no_options(error):
            raise
    return psycopg.connect(wire.complete(dsn, application_name=name), autocommit=True)
