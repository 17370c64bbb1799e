"""What an enrichment brings is what a plain INSERT of the same row would store: every type, the extremes too."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest

from bridge.planning.lookup import Lookup, LookupSpec, Unreadable
from bridge.postgres.entities import Enricher
from tests.support.servers import Database, drop_database
from tests.support.world import World, until

ODD = {
    "bytea_output": "escape",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "quote_all_identifiers": "on",
}
TYPES = """
    create type public.mood as enum ('sad', 'a "b"', 'ok');
    create domain public.short as varchar(4);
    create domain public.shorter as public.short;
    create type public.pair as (a date, b text);
"""
# type -> the texts of its values, as an INSERT would have them
VALUES: dict[str, list[str]] = {
    "bool": ["true", "false"],
    "int2": ["-32768", "32767"],
    "int4": ["-2147483648", "0"],
    "int8": ["9007199254740993", "-9223372036854775808", "9223372036854775807"],
    "oid": ["4294967295"],
    "float4": ["1e-45", "3.4028235e38", "NaN", "-Infinity", "-0", "16777216", "0.1"],
    "float8": ["5e-324", "1.7976931348623157e308", "NaN", "Infinity", "-0", "1e15", "0.1"],
    "numeric": [
        "NaN",
        "Infinity",
        "0.00000000000000000000",
        "-1.10",
        "123456789012345678901234567890.1234567890",
        "1e400",
    ],
    "numeric(10,2)": ["0.10", "-99999999.99"],
    "money": ["$1,234.56", "-$92,233,720,368,547,758.08"],
    "text": ["", "NULL", "{a}", "\\x41", "q\"'\\", "Ærø\n\t", "2027-01-01", "true", "1.0"],
    "varchar(9)": ["a ", "infinity"],
    "char(5)": ["a", "a b"],
    "name": ["Odd Name"],
    '"char"': ["x"],
    "bytea": ["\\x", "\\x005c27ff", "\\x41"],
    "date": [
        "infinity",
        "-infinity",
        "0044-03-15 BC",
        "4713-01-01 BC",
        "5874897-12-31",
        "10000-01-01",
        "2027-03-04",
        "0001-01-01",
    ],
    "time": ["24:00:00", "23:59:59.999999", "00:00:00"],
    "timetz": ["24:00:00+15:59:59", "00:00:00-15:59", "12:00:00.5+05:45"],
    "timestamp": [
        "infinity",
        "-infinity",
        "4713-01-01 00:00:00 BC",
        "294276-12-31 23:59:59.999999",
        "2027-03-04 05:06:07.8",
    ],
    "timestamptz": [
        "infinity",
        "-infinity",
        "4713-06-01 00:00:00+00 BC",
        "294276-12-31 23:59:59.999999+00",
        "1900-01-01 00:00:00+00",
        "2027-03-04 05:06:07.8+02",
    ],
    "interval": [
        "1 mon",
        "30 days",
        "-1 mon +2 days -03:04:05.000006",
        "178000000 years",
        "-178000000 years 1 day",
        "-00:00:00.000001",
        "1 year 2 mons 3 days 04:05:06",
    ],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"a": 9007199254740993,  "b": 1.10, "a": 1e400}', "[1, 2.50]", '"x"', "1.10", "[]"],
    "jsonb": [
        '{"n": 9007199254740993, "x": 0.12345678901234567890123, "y": 1e400, "l": [1.10, "2"]}',
        "[[1, 2], [3, 4]]",
        '"123"',
        "1.10",
        "123",
        "true",
    ],
    "inet": ["10.0.0.1", "10.0.0.1/24", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "bit(3)": ["101"],
    "varbit": ["0001", ""],
    "tsvector": ["'a':1 'b c':2"],
    "tsquery": ["'a' & 'b'"],
    "jsonpath": ['$."a"[*]'],
    "pg_lsn": ["16/B374D848"],
    "xid8": ["18446744073709551615"],
    "int4range": ["[1,10)", "empty", "(,)"],
    "daterange": ["[infinity,]", "[2027-01-01,10000-01-01)"],
    "tstzrange": ['["2027-01-01 00:00:00+00",infinity)'],
    "numrange": ["[1.10,2.0]"],
    "datemultirange": ["{[2027-01-01,2027-02-01),[2028-01-01,)}"],
    "point": ["(1.5,-2)"],
    "box": ["(2,2),(1,1)"],
    "int4[]": ["{}", "{1,NULL,3}", "[2:3]={1,2}", "{{1,2},{3,4}}"],
    "bool[]": ["{t,f,NULL}"],
    "text[]": ['{"",NULL,"NULL","a,b","q\\"\\\\","{x}"}', "{a b,c}"],
    "numeric[]": ["{1.10,NaN}"],
    "date[]": ["{infinity,2027-01-01,0044-03-15 BC}"],
    "timestamptz[]": ['{"2027-01-01 00:00:00+00",infinity}'],
    "interval[]": ['{"1 mon","30 days"}'],
    "jsonb[]": ['{"[1, 2]","{\\"a\\": 1.10}","\\"123\\"",NULL}'],
    "float8[]": ["{NaN,0.1,-0}"],
    "bytea[]": ['{"\\\\x00",NULL}'],
    "box[]": ["{(2,2),(1,1);(4,4),(3,3)}"],
    "mood": ['a "b"', "ok"],
    "mood[]": ['{"a \\"b\\"",NULL}'],
    "short": ["abcd"],
    "shorter": ["ab"],
    "short[]": ["{abcd}"],
    "pair": ['(infinity,"a,b")', "(,)"],
    "pair[]": ['{"(2027-01-01,x)"}'],
}
NAMES = {f"c{n}": kind for n, kind in enumerate(VALUES)}
ROWS = max(map(len, VALUES.values()))
SELECT = f"select id, {', '.join(NAMES)} from public.every where id = any(%(keys)s::int[])"


def _table(database: Database, name: str) -> None:
    columns = ", ".join(f"{column} {kind}" for column, kind in NAMES.items())
    database.execute(f"create table public.{name} (id int primary key, {columns})")


def _fill(database: Database, name: str) -> None:
    """One row a value: by hand."""
    for n in range(ROWS):
        texts = [values[n % len(values)] for values in VALUES.values()]
        casts = ", ".join(["%s", *(f"%s::text::{kind}" for kind in NAMES.values())])
        with database.connect() as connection:
            connection.execute(f"insert into public.{name} values ({casts})".encode(), [n, *texts])


@pytest.fixture
def every(source: Database) -> Database:
    """A table of every type, read by a role with other formats."""
    source.execute(TYPES)
    _table(source, "every")
    _fill(source, "every")
    source.execute("grant select on public.every to outbox_bridge")
    for name, value in ODD.items():
        source.execute(f"alter role outbox_bridge in database {source.name} set {name} = '{value}'")
    return source


def _emit(source: Database, count: int) -> None:
    for n in range(count):
        source.execute(
            "insert into outbox.event (type, payload) values ('every', %s)", [json.dumps({"id": n})]
        )


def _configure(world: World, destinations: Mapping[str, Any], missing: str = "dead") -> None:
    def change(document: dict[str, Any]) -> None:
        look_up = {"as": "c", "key": "$event.id", "missing": missing, "sql": SELECT}
        document["pipelines"] = {
            "every": {
                "event": "every",
                "steps": [{"enrich.entity": look_up}],
                "destinations": {
                    name: {"connection": "warehouse", "mode": "upsert", "key": ["id"], **one}
                    for name, one in destinations.items()
                },
            }
        }
        document.pop("events", None)
        document.pop("tests", None)

    world.configure(change)


@pytest.mark.matrix
def test_every_value_arrives_as_by_hand(world: World, every: Database) -> None:
    world.target.execute(TYPES)
    for name in ("by_hand", "arrived", "arrived_too"):
        _table(world.target, name)
    world.target.execute(
        "grant select, insert, update on public.arrived, public.arrived_too to outbox_bridge"
    )
    _fill(world.target, "by_hand")
    mapping = {"id": "$event.id", **{name: f"$c.{name}" for name in NAMES}}
    _configure(
        world,
        {
            "mapped": {"table": "public.arrived", "columns": mapping},
            "default": {"table": "public.arrived_too"},
        },
    )
    _emit(every, ROWS)
    world.bridge().start().wait_ready()
    count = "select count(*) from public.arrived_too"
    until(lambda: world.target.value(count) == ROWS or world.dead_letters(), "the rows")
    assert world.dead_letters() == []
    differing = []
    for name, kind in NAMES.items():
        for table in ("arrived", "arrived_too"):
            rows = world.target.execute(
                f"select id, a.{name}::text, b.{name}::text from public.{table} a join public.by_hand b using (id)"
                f" where a.{name}::text is distinct from b.{name}::text"
            )
            differing += [(kind, *row) for row in rows]
    assert differing == []


def test_explain_and_messages_show_the_same_values(world: World, every: Database) -> None:
    """A sink's body has ISO 8601 where there is such a form, and what `explain` prints is what was written."""
    world.target.execute(TYPES)
    _table(world.target, "arrived")
    world.target.execute("grant select, insert, update on public.arrived to outbox_bridge")
    kinds = ("date", "timestamptz", "interval", "bytea", "int4[]", "jsonb", "numeric", "float8")
    names = [name for name, kind in NAMES.items() if kind in kinds]
    _configure(
        world,
        {
            "mapped": {
                "table": "public.arrived",
                "columns": {"id": "$event.id"} | {n: f"$c.{n}" for n in names},
            }
        },
    )
    _emit(every, 1)
    [(event,)] = every.execute("select id::text from outbox.event")
    told = world.json("explain", event, "--json")
    [pipeline] = told["streams"][0]["pipelines"]
    shown = pipeline["destinations"]["mapped"]["columns"]
    by_kind = {NAMES[name]: shown[name] for name in names}
    assert by_kind["date"] == by_kind["timestamptz"] == "infinity"
    assert by_kind["interval"] == "1 mon"
    assert by_kind["bytea"] == "\\x"
    assert by_kind["numeric"] == "NaN"
    assert '"n": 9007199254740993' in json.dumps(json.loads(by_kind["jsonb"]))


class Asked:
    """A lookup of its own, with counts."""

    def __init__(self, source: Database, query: str) -> None:
        self.counts = Counter[str]()
        self.spec = LookupSpec("customer", "$event.id", "source", query)
        self.enricher = Enricher({"source": source.bridge_dsn}, "test", self._count)

    def _count(self, _entity: str, result: str, n: int) -> None:
        self.counts[result] += n

    def __call__(self, *keys: str) -> dict[Any, Any]:
        with closing(self.enricher):
            return self.enricher.answer(Lookup(self.spec, [*keys]))


def test_a_row_for_which_the_query_fails_is_not_missing(source: Database) -> None:
    source.execute(
        "create table public.rates (id int, per int, since text); grant select on public.rates to outbox_bridge;"
        "insert into public.rates values (1, 2, '2027-01-01'), (2, 0, '2027-01-01'), (3, 2, 'soon')"
    )
    ask = Asked(
        source,
        "select id, 10 / per as rate, since::date as since from public.rates where id = any(%(keys)s::int[])",
    )
    found = ask("1", "2", "3", "4", "x")
    assert found["1"] == {"id": 1, "rate": 5, "since": "2027-01-01"}
    assert found["2"] == Unreadable("the query fails: division by zero")
    assert isinstance(found["3"], Unreadable)
    assert "soon" not in found["3"].why
    assert found.keys() == {"1", "2", "3"}
    assert ask.counts == {"found": 3, "missing": 2}


def test_a_json_that_no_one_can_send_on_names_its_column(world: World) -> None:
    world.source.execute(
        "create table public.notes (id int, note json); grant select on public.notes to outbox_bridge;"
        """insert into public.notes values (0, '{"a": "\\ud800"}'), (1, '{"a": 1}')"""
    )
    world.target.execute(
        "create table public.arrived (id int primary key, note json);"
        "grant select, insert, update on public.arrived to outbox_bridge"
    )

    def change(document: dict[str, Any]) -> None:
        query = "select id, note from public.notes where id = any(%(keys)s::int[])"
        document["pipelines"]["every"]["steps"][0]["enrich.entity"]["sql"] = query

    columns = {"id": "$event.id", "note": "$c.note"}
    _configure(world, {"mapped": {"table": "public.arrived", "columns": columns}}, missing="continue")
    world.configure(change)
    _emit(world.source, 2)
    world.bridge().start().wait_ready()
    until(lambda: world.target.value("select count(*) from public.arrived"), "the good row")
    [(_, code, cause)] = world.dead_letters()
    assert code == "unreadable_entity"
    assert cause == "enrich.entity c: column note cannot be read: holds a lone surrogate"
    assert world.target.execute("select id, note::text from public.arrived") == [(1, '{"a": 1}')]
    [(event,)] = world.source.execute("select id::text from outbox.event where payload = '{\"id\": 0}'")
    [pipeline] = world.json("explain", event, "--json")["streams"][0]["pipelines"]
    assert pipeline["steps"][0]["result"] == "column note cannot be read: holds a lone surrogate"


@pytest.mark.parametrize(
    ("kind", "stored", "asked"),
    [
        ("numeric", "7.00", "7"),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "{A0EEBC999C0B4EF8BB6D6BB9BD380A11}"),
        ("char(4)", "a", "a"),
        ("timestamptz", "2026-11-27 08:00:00+00", "2026-11-27T10:00:00+02:00"),
    ],
)
def test_a_row_is_found_by_what_its_type_takes_for_equal(
    source: Database, kind: str, stored: str, asked: str
) -> None:
    source.execute(
        f"create table public.keyed (id {kind}, name text); grant select on public.keyed to outbox_bridge;"
        f"insert into public.keyed values ('{stored}', 'ada')"
    )
    base = kind.partition("(")[0].replace("char", "bpchar")
    ask = Asked(source, f"select id, name from public.keyed where id = any(%(keys)s::{base}[])")
    nobody = {"numeric": "8", "uuid": "00000000-0000-0000-0000-000000000000"}.get(kind, "2020-01-01")
    found = ask(asked, nobody, "no such key")
    assert {key: row["name"] for key, row in found.items()} == {asked: "ada"}
    assert ask.counts == {"found": 1, "missing": 2}


def test_a_text_that_is_not_utf_8_costs_only_its_row(source: Database) -> None:
    """A database in SQL_ASCII stores any bytes, and refuses to send such."""
    name = f"{source.name}_ascii"
    source.execute(
        f"create database {name} template template0 encoding 'sql_ascii' lc_collate 'C' lc_ctype 'C'"
    )
    ascii_ = Database(source.server, name)
    try:
        ascii_.execute(
            "create table public.customers (id int, csm text, since date);"
            "grant select on public.customers to public;"
            "insert into public.customers values"
            " (1, convert_from('\\x61ff', 'sql_ascii'), null), (2, 'ada', 'infinity')"
        )
        ask = Asked(ascii_, "select id, csm, since from public.customers where id = any(%(keys)s::int[])")
        assert ask("1", "2", "3") == {
            "1": Unreadable("the query fails: character not in repertoire (SQLSTATE 22021)"),
            "2": {"id": 2, "csm": "ada", "since": "infinity"},
        }
    finally:
        drop_database(ascii_)
