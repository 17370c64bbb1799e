"""Compile a batch's effects into statements: upserts, deliveries, dead letters.

The only module that composes identifiers into SQL (psycopg.sql.Identifier); values are always parameters. Every
column is one text[] (or uuid[], if that is equivalent) in binary form; assignment.py says what becomes of it on the
server.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import pack

from psycopg import sql

from bridge.planning.plan import Column, DeadLetter, Deliver, Owner, TableShape, Write
from bridge.planning.spec import TableSpec
from bridge.postgres.assignment import unaltered_sql, value_sql
from bridge.postgres.stored import ascii_json, ascii_text, enveloped
from bridge.postgres.target import Statement, text_array, uuid_array
from bridge.protocol.events import NULL


def write_statement(write: Write, *, new: bool = False) -> Statement:
    """One set-based insert or upsert for all rows of the write; no key may occur twice. new: a plain insert, refused
    (23505) if a row exists already; it costs the server a sixth less than checking each row."""
    arrays: list[bytes | None] = list(map(text_array, write.columns))
    elements = ["text"] * len(arrays)
    for place in _uuids(write.shape, write.names):
        uuids = uuid_array(write.columns[place])
        if uuids is not None:
            arrays[place], elements[place] = uuids, "uuid"
    if not write.names:
        arrays.append(pack("!i", len(write.events)))
    text = _compile(write.spec, write.shape, write.names, tuple(elements), new=new)
    return Statement(text, arrays, binary=True)


class _Uuids:
    """The places of columns that are uuids. As for _Compiled, identity is a sufficient key."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, tuple[str, ...]], tuple[list[int], TableShape]] = {}

    def __call__(self, shape: TableShape, names: tuple[str, ...]) -> list[int]:
        known = self._places.get((id(shape), names))
        if known is None:
            if len(self._places) > 512:
                self._places.clear()
            columns = [shape.columns[name] for name in names]
            places = [place for place, one in enumerate(columns) if "uuid" in (one.base, one.type_sql)]
            known = self._places[id(shape), names] = places, shape
        return known[0]


_uuids = _Uuids()


class _Compiled:
    """A cache of compiled SQL. Specs and shapes are frozen and few, so identity is a sufficient key."""

    def __init__(self) -> None:
        self._texts: dict[tuple[object, ...], tuple[bytes, TableSpec, TableShape]] = {}

    def __call__(
        self,
        spec: TableSpec,
        shape: TableShape,
        names: tuple[str, ...],
        elements: tuple[str, ...],
        *,
        new: bool,
    ) -> bytes:
        place = (id(spec), id(shape), names, elements, new)
        known = self._texts.get(place)
        if known is None:
            if len(self._texts) > 512:
                self._texts.clear()
            text = compile_write(spec, shape, names, elements, new=new)
            known = self._texts[place] = (text, spec, shape)
        return known[0]


_compile = _Compiled()


def compile_write(
    spec: TableSpec,
    shape: TableShape,
    names: Sequence[str],
    elements: Sequence[str],
    *,
    new: bool = False,
    only: sql.Composable | None = None,
) -> bytes:
    """`insert into t (a, b) select c0::type, ... from (select unnest($1::text[]) as c0, ...) as r [on conflict ...]`.

    elements: the type of each array's. new: without `on conflict`. only: a condition over a row of r. Arrays
    of one length are unnested in step; in a select list for less than in a from clause, which keeps all rows before it
    hands out the first."""
    table = sql.Identifier(shape.schema, shape.table).as_string()
    columns = f"({', '.join(map(_quoted, names))})" if names else ""
    values = ", ".join(
        _value(shape.columns[name], place) if element == "text" else f"r.c{place}"
        for place, (name, element) in enumerate(zip(names, elements, strict=True))
    )
    arrays = ", ".join(
        f"pg_catalog.unnest(${place + 1}::pg_catalog._{element}) as c{place}"
        for place, element in enumerate(elements)
    )
    if not names:  # of each event nothing but that there was one: a row of defaults
        arrays = "pg_catalog.generate_series(1, $1::pg_catalog.int4)"
    query = f"insert into {table} as target {columns} select {values} from (select {arrays}) as r"
    conditions: list[sql.Composable] = [unaltered_sql(shape)] if shape.identity else []
    conditions += [only] if only is not None else []
    if conditions:
        query += " where " + " and ".join(condition.as_string() for condition in conditions)
    return (query if new else query + _on_conflict(spec, shape, names)).encode()


# A batch may have a statement for each of thousands of sets of fields: psycopg composes a column once.
@lru_cache(4096)
def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string()


@lru_cache(4096)
def _value(column: Column, place: int) -> str:
    return value_sql(column, f"r.c{place}")


def _on_conflict(spec: TableSpec, shape: TableShape, names: Sequence[str]) -> str:
    if not spec.key:
        return ""
    key = ", ".join(map(_quoted, spec.key))
    others = [_quoted(name) for name in names if name not in spec.key]
    if spec.mode == "insert" or not others:
        return f" on conflict ({key}) do nothing"
    changes = ", ".join(f"{name} = excluded.{name}" for name in others)
    query = f" on conflict ({key}) do update set {changes}"
    if spec.version_column:
        version = sql.Identifier(spec.version_column)
        later = _later(version, shape.columns[spec.version_column]).as_string()
        query += f" where {later} or target.{version.as_string()} is null"
    return query


def _later(version: sql.Identifier, column: Column) -> sql.Composed:
    """Is the new version later than the row's? doctor calls a type that cannot hold versions an error; until it is
    mended, text compares numbers as numbers, and equal floats, which may be rounded, go by the order of events."""
    old, new = (
        sql.SQL("target.{}").format(version),
        sql.SQL("excluded.{}").format(version),
    )
    if column.kind == "text":
        return sql.SQL(
            "case when {0}::pg_catalog.text operator(pg_catalog.~) '^[0-9]{{1,99}}$'"
            " and {1}::pg_catalog.text operator(pg_catalog.~) '^[0-9]{{1,99}}$'"
            " then {0}::pg_catalog.text::pg_catalog.numeric"
            " operator(pg_catalog.<) {1}::pg_catalog.text::pg_catalog.numeric"
            " else {0}::pg_catalog.text operator(pg_catalog.<) {1}::pg_catalog.text end"
        ).format(old, new)
    sign = "<=" if column.base in ("float4", "float8") else "<"
    return sql.SQL(f"{{}} operator(pg_catalog.{sign}) {{}}").format(old, new)


def _arrays(rows: Sequence[Sequence[bytes | None]], width: int) -> list[bytes | None]:
    columns = zip(*rows, strict=True) if rows else [()] * width
    return [text_array(list(column)) for column in columns]


# A unit's id follows from the event's id. In an outbox of the customer's own two rows may have one id: the second one
# (another seq, or another payload where there is no seq) is a dead letter of its own.
_DEAD = b"""
    with given as materialized (
        select r.*, r.id::uuid as unit,
            case when r.seq::bigint = 0 then md5(concat_ws('/', r.payload, r.raw)) else r.seq end as row
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
            $17::text[], $18::text[]) with ordinality
            as r(id, stream, pipeline, destination, event_id, seq, xid, type, key, at, idempotency_key, headers,
                 payload, raw, code, cause, wait, patience, place)
    ), placed as (
        select g.*, case when g.row = first_value(g.row) over (partition by g.unit order by g.place)
                and coalesce((select d.event_seq = g.seq::bigint and (d.event_seq <> 0 or (d.payload, d.raw)
                        is not distinct from (g.payload::jsonb, g.raw::bytea))
                    from bridge.dead_letter d where d.id = g.unit), true)
            then g.unit else md5(concat_ws('/', g.unit, g.row))::uuid end as letter
        from given g
    )
    insert into bridge.dead_letter (id, stream, pipeline, destination, event_id, event_seq, event_xid, event_type,
        event_key, occurred_at, idempotency_key, headers, payload, raw, code, cause, retry_at, retry_until)
    select distinct on (letter)
        letter, stream, pipeline, destination, event_id, seq::bigint, xid::xid8, type, key, at::timestamptz,
        idempotency_key, headers::jsonb, payload::jsonb, raw::bytea, code, cause,
        now() + (wait || 'seconds')::interval, now() + (patience || 'seconds')::interval
    from placed order by letter, place desc
    on conflict (id) do update set state = 'open', code = excluded.code, cause = excluded.cause,
        attempts = dead_letter.attempts + 1, retry_at = excluded.retry_at, updated_at = now()"""

RETRY_SECONDS = 10
"""Seconds after which a parked unit (`missing: retry`) is retried."""


def dead_letter_statement(owner: Owner, letters: Sequence[DeadLetter], *, escaped: bool = False) -> Statement:
    """escaped: the payloads as bytes and the other texts in ASCII, because the database refused them as they are."""
    kept = ascii_text if escaped else _safe
    rows = [
        (
            str(owner.unit_id(_text(letter.event.id), letter.pipeline, letter.destination)).encode(),
            owner.stream.encode(),
            letter.pipeline.encode(),
            letter.destination.encode(),
            b"" if letter.event.id == NULL else kept(letter.event.id),
            letter.event.seq,
            letter.event.xid,
            b"" if letter.event.type == NULL else kept(letter.event.type),
            kept(letter.event.key),
            letter.event.occurred_at,
            kept(letter.event.idempotency_key),
            ascii_json(letter.event.headers) if escaped else letter.event.headers,
            *_payload(letter, raw=escaped),
            letter.code.encode(),
            kept(letter.cause.encode()),
            None if letter.retry_for_seconds is None else b"%d" % RETRY_SECONDS,
            None if letter.retry_for_seconds is None else b"%f" % letter.retry_for_seconds,
        )
        for letter in letters
    ]
    return Statement(_DEAD, _arrays(rows, 18), binary=True)


def _payload(letter: DeadLetter, *, raw: bool) -> tuple[bytes | None, bytes | None]:
    """The columns payload and raw. A payload that is too large stays in the outbox; the dead letter refers to it."""
    if letter.code == "too_large" or letter.event.payload == NULL:
        return None, None
    if raw or letter.code == "payload":
        return None, b"\\x" + letter.event.payload.hex().encode()
    return letter.event.payload, None


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _safe(value: bytes | None) -> bytes | None:
    """Text that any UTF-8 database accepts."""
    return None if value is None else _text(value).encode()


# As for dead letters, a second row with the id of another is a message of its own.
_DELIVER = b"""
    with given as materialized (
        select r.id::uuid as id, stream, pipeline, destination, event_id, seq::bigint as seq, type, key,
            at::timestamptz as at, body::jsonb as body
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::text[], $10::text[])
            as r(id, stream, pipeline, destination, event_id, seq, type, key, at, body)
    ), made as (
        insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, event_key,
            occurred_at, body)
        select * from given on conflict (id) do nothing
        returning id, event_seq, case when event_seq = 0 then body end as body
    )
    insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, event_key,
        occurred_at, body)
    select md5(concat_ws('/', g.id, g.seq, case when g.seq = 0 then g.body end))::uuid, stream, pipeline, destination,
        event_id, seq, type, key, at, body
    from given g
    where (select count(*) from made) < (select count(*) from given)  -- mostly each was made, and nothing is left
        and not exists (
            select from made where made.id = g.id and made.event_seq = g.seq and (g.seq <> 0 or made.body = g.body))
        and coalesce((select d.event_seq <> g.seq or (g.seq = 0 and d.body <> g.body)
            from bridge.delivery d where d.id = g.id), true)
    on conflict (id) do nothing"""


def delivery_statement(
    owner: Owner, deliveries: Sequence[Deliver], *, again: str = "", escaped: bool = False
) -> Statement:
    """Messages for sinks: rows of the apply transaction, sent by the dispatcher. again: a replay's name. escaped: the
    texts in ASCII and the body in an envelope, because the database refused them as they are."""
    kept = ascii_text if escaped else _safe
    rows = [
        (
            str(
                owner.unit_id(_text(delivery.event.id), delivery.pipeline, delivery.destination, again)
            ).encode(),
            owner.stream.encode(),
            delivery.pipeline.encode(),
            delivery.destination.encode(),
            kept(delivery.event.id),
            delivery.event.seq,
            kept(delivery.event.type),
            kept(delivery.event.key),
            delivery.event.occurred_at,
            enveloped(delivery.body) if escaped else delivery.body,
        )
        for delivery in deliveries
    ]
    return Statement(_DELIVER, _arrays(rows, 10), binary=True)
