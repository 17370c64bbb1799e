"""A row of an own outbox has the same text by the stream and by the table, whatever the column's type, whatever the
role and the database have set."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.postgres.connect import connect
from bridge.postgres.missing import MissingReader
from bridge.postgres.outbox import Outbox
from bridge.postgres.profiles import SOURCE_ROWS
from bridge.postgres.replication import ReplicationStream
from bridge.protocol.events import NOTHING, Event, Lsn, parse_snapshot
from bridge.protocol.facts import BEFORE_ALL
from bridge.protocol.requests import ReadMissing
from bridge.stream.decode import Decoder
from tests.support.servers import Database
from tests.support.world import until

ODD = {
    "bytea_output": "escape",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "search_path": "odd",
    "default_transaction_isolation": "serializable",
    "quote_all_identifiers": "on",
}
TYPES = """
    create schema odd;
    create type odd.mood as enum ('sad', 'a "b"', 'ok');
    create domain odd.short as text check (length(value) < 1000);
    create domain odd.blob as bytea;
    create type odd.pair as (a int, b text);
"""
COLUMNS = {  # column -> (type, an expression over the random numbers a and b, and the text t)
    "c_text": ("text", "t"),
    "c_varchar": ("varchar(2000)", "t"),
    "c_bpchar": ("char(40)", "left(t, 40)"),
    "c_name": ("name", "left(t, 15)"),
    "c_domain": ("odd.short", "left(t, 900)"),
    "c_bytea": ("bytea", "convert_to(t, 'UTF8')"),
    "c_blob": ("odd.blob", "convert_to(t, 'UTF8')"),
    "c_json": ("json", "json_build_object(t, t)"),
    "c_jsonb": ("jsonb", "jsonb_build_object(t, a)"),
    "c_int2": ("int2", "(a % 32768)::int2"),
    "c_int8": ("int8", "a"),
    "c_float4": ("float4", "(a::float8 / 7)::float4"),
    "c_float8": ("float8", "b / 3"),
    "c_numeric": ("numeric", "a::numeric / 7"),
    "c_money": ("money", "((a % 100000000) / 100.0)::numeric::money"),
    "c_bool": ("bool", "a % 2 = 0"),
    "c_date": ("date", "date '2000-01-01' + (a % 100000)::int"),
    "c_time": ("time", "time '00:00' + make_interval(secs => (abs(a) % 86400)::int)"),
    "c_timetz": ("timetz", "timetz '00:00+05:45' + make_interval(secs => (abs(a) % 86400)::int)"),
    "c_timestamp": ("timestamp", "timestamp '2000-01-01' + make_interval(secs => (a % 1000000000)::int)"),
    "c_timestamptz": (
        "timestamptz",
        "timestamptz '2000-01-01+02' + make_interval(secs => (a % 1000000000)::int)",
    ),
    "c_interval": ("interval", "make_interval(months => (a % 1000)::int, days => (a % 77)::int, secs => b)"),
    "c_uuid": ("uuid", "md5(t)::uuid"),
    "c_inet": ("inet", "inet '10.0.0.0' + (abs(a) % 16777216)"),
    "c_bits": ("varbit", "(a % 1024)::int::bit(12)::varbit"),
    "c_enum": ("odd.mood", "(enum_range(null::odd.mood))[1 + abs(a) % 3]"),
    "c_pair": ("odd.pair", "row((a % 1000)::int, t)::odd.pair"),
    "c_texts": ("text[]", "array[t, null, 'NULL', '']"),
    "c_stamps": (
        "timestamptz[]",
        "array[timestamptz '2000-01-01+02' + make_interval(secs => (a % 100000)::int)]",
    ),
    "c_bytes": ("bytea[]", "array[convert_to(t, 'UTF8'), null]"),
    "c_range": (
        "tstzrange",
        "tstzrange('2000-01-01+02', timestamptz '2000-01-01+02' + make_interval(days => 3))",
    ),
    "c_point": ("point", "point(b, a)"),
    "c_class": ("regclass", "'odd.\"Odd Name\"'::regclass"),
    "c_vector": ("tsvector", "to_tsvector('simple', left(t, 200))"),
    "c_null": ("text", "null"),
}


class Fan:
    """Every decoder gets every message."""

    behind = False

    def __init__(self, decoders: list[Decoder]) -> None:
        self.decoders = decoders

    def feed(self, messages: Sequence[bytes]) -> None:
        for decoder in self.decoders:
            decoder.feed(messages)


class Both:
    """Rows of one table, as the slot and as the table give them."""

    def __init__(self, source: Database) -> None:
        source.execute(TYPES)
        source.execute('create table odd."Odd Name" (id int)')
        columns = ", ".join(f"{name} {kind}" for name, (kind, _) in COLUMNS.items())
        source.execute(
            "create table odd.own (id uuid default gen_random_uuid(), type text default 'a', payload text default '{}',"
            f" seq bigint generated always as identity, xid xid8 default pg_current_xact_id(), {columns});"
            "grant usage on schema odd to outbox_bridge; grant select on odd.own to outbox_bridge;"
            "create publication same for table odd.own with (publish = 'insert')"
        )
        for name, value in ODD.items():
            source.execute(f"alter database {source.name} set {name} = '{value}'")
            source.execute(f"alter role outbox_bridge in database {source.name} set {name} = '{value}'")
        source.execute("select pg_create_logical_replication_slot('same', 'pgoutput')")
        self.source = source
        self.customer = psycopg.connect(source.dsn, autocommit=True)
        self.reader = connect(source.bridge_dsn, SOURCE_ROWS, "same")
        self.stream = ReplicationStream(source.bridge_dsn, "same", "same", "same", Lsn(0))
        names = {name: name for name in ("id", "type", "payload", "seq", "xid")}
        self.outboxes = [Outbox("odd", "own", {**names, "key": column}) for column in COLUMNS]
        self.fan = Fan([Decoder("odd", "own", one.columns) for one in self.outboxes])
        self.read = 0

    def put(self, a: int, b: float, t: str) -> None:
        values = ", ".join(expression for _, expression in COLUMNS.values()).replace("%", "%%")
        self.customer.execute(
            f"insert into odd.own ({', '.join(COLUMNS)}) select {values}"
            " from (values (%s::int8, %s::float8, %s::text)) as r(a, b, t)",
            [a, b, t],
        )

    def by_stream(self) -> list[Event]:
        """One event a column, of the last row."""

        def came() -> bool:
            self.stream.pump(self.fan)
            return all(decoder.collected for decoder in self.fan.decoders)

        until(came, "the row by the stream")
        self.stream.status(Lsn(0))  # a silent client is closed
        batches = [decoder.take() for decoder in self.fan.decoders]
        return [batch.events[-1] for batch in batches if batch is not None]

    def by_table(self) -> list[Event]:
        (now,) = self.customer.execute("select pg_current_snapshot()::text").fetchone() or ("",)
        rows = []
        for outbox in self.outboxes:
            reader = MissingReader(self.reader, outbox, 100)
            request = ReadMissing(NOTHING, parse_snapshot(now), self.read or BEFORE_ALL, None)
            rows.append(reader.read(request).batch.events[-1])
            reader.close()
        self.read = int(rows[0].seq)
        return rows

    def close(self) -> None:
        self.stream.close()
        self.reader.close()
        self.customer.close()
        self.source.execute("select pg_drop_replication_slot('same')")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)


@pytest.mark.matrix
@pytest.mark.slow
def test_a_row_has_the_same_text_by_the_stream_and_by_the_table(source: Database) -> None:
    both = Both(source)

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(
        st.integers(-(1 << 62), 1 << 62),
        st.floats(-1e9, 1e9) | st.sampled_from([0.1, 1e-9, 123456789.12345678]),
        texts | st.sampled_from(["\\x41", "\\", "a\\b", "\n\t", 'q"', "{}", "Ærøskøbing", "NULL", ""]),
    )
    def same(a: int, b: float, t: str) -> None:
        both.put(a, b, t)
        streamed, read = both.by_stream(), both.by_table()
        differing = {
            column: (one, other)
            for column, one, other in zip(COLUMNS, streamed, read, strict=True)
            if one != other
        }
        assert not differing

    try:
        same()
    finally:
        both.close()


def test_the_odd_settings_would_show(source: Database) -> None:
    """A plain session of the same role prints other texts: otherwise the test above could not fail."""
    both = Both(source)
    try:
        both.put(86_400, 0.1, "line\nbreak")
        with psycopg.connect(source.bridge_dsn) as session:
            plain = session.execute(
                "select c_bytea::text, c_timestamptz::text, c_interval::text, c_float8::text from odd.own"
            ).fetchone()
        rows = dict(zip(COLUMNS, both.by_table(), strict=True))
        names = ("c_bytea", "c_timestamptz", "c_interval", "c_float8")
        assert plain is not None
        for name, text in zip(names, plain, strict=True):
            assert (rows[name].key or b"").decode() != text, name
    finally:
        both.close()
