"""Rows of a customer's own outbox that are not as an event should be: NULL, repeated seq and id, generated columns,
payloads that look like bytea. Each costs itself only, by the stream and by the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from bridge.config.load import load
from bridge.doctor.check import Check
from bridge.doctor.examine import examine
from bridge.postgres.schema import install_source
from tests.support.bridge_process import REPOSITORY, BridgeProcess, run_command
from tests.support.fixes import not_here
from tests.support.servers import Database
from tests.support.variants import first_fast
from tests.support.world import until

COLUMNS = {"id": "id", "type": "type", "key": "key", "payload": "payload", "seq": "seq", "xid": "xid"}
XID = "xid xid8 not null default pg_current_xact_id()"


class Own:
    """An outbox public.own of these columns, its publication, and a table events.got that shows every effect."""

    def __init__(self, source: Database, target: Database, directory: Path, ddl: str) -> None:
        self.source, self.target = source, target
        self.environment = {"SOURCE_DSN": source.bridge_dsn, "WAREHOUSE_DSN": target.bridge_dsn}
        self.config = directory / "own.yaml"
        source.execute(f"create table public.own ({ddl}); grant select on public.own to outbox_bridge")
        if XID in ddl:
            source.execute("create index on public.own (xid, seq)")
        target.execute(
            "create table events.got (n bigint generated always as identity, id text, type text, key text,"
            " payload jsonb); grant select, insert on events.got to outbox_bridge"
        )
        with psycopg.connect(source.dsn, autocommit=True) as customer:
            install_source(customer, "own", "public.own")
        self.configure({})
        self.directory = directory
        self.bridges: list[BridgeProcess] = []

    def configure(self, source: dict[str, Any], connections: dict[str, Any] | None = None) -> None:
        values = "{ id: $meta.id, type: $meta.type, key: $meta.key, payload: $event }"
        document = {
            "version": 1,
            "source": {
                "dsn": "${SOURCE_DSN}",
                "slot": "own",
                "table": "public.own",
                "columns": COLUMNS,
                **source,
            },
            "connections": {
                "warehouse": {"type": "postgres", "dsn": "${WAREHOUSE_DSN}"},
                **(connections or {}),
            },
            "pipelines": {
                "all": {
                    "event": "*",
                    "destinations": {
                        "got": {
                            "connection": "warehouse",
                            "table": "events.got",
                            "mode": "insert",
                            "columns": yaml.safe_load(values),
                        },
                    },
                }
            },
            "admin": {"listen": "${BRIDGE_ADMIN}"},
        }
        self.config.write_text(yaml.safe_dump(document, sort_keys=False))

    def bridge(self, failpoints: str = "") -> BridgeProcess:
        made = BridgeProcess(
            source=self.source.bridge_dsn,
            target=self.target.bridge_dsn,
            directory=self.directory,
            config=self.config,
            failpoints=failpoints,
            name=f"own-{len(self.bridges)}",
        )
        self.bridges.append(made)
        return made

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`bridge COMMAND`."""
        given = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        given |= {**self.environment, "BRIDGE_ADMIN": "127.0.0.1:1", "PYTHONPATH": str(REPOSITORY)}
        return run_command([sys.executable, "-m", "bridge", *arguments, "-c", str(self.config)], given, "")

    def insert(self, **values: Any) -> None:
        row = {"id": str(uuid.uuid4()), "type": "a.b", "key": "k", "payload": '{"i": 1}'} | values
        names = ", ".join(row)
        places = ", ".join(["%s"] * len(row))
        self.source.execute(f"insert into public.own ({names}) values ({places})", list(row.values()))

    def got(self, column: str = "key") -> list[Any]:
        return [row[0] for row in self.target.execute(f"select {column} from events.got order by n")]

    def dead(self) -> list[tuple[str, str]]:
        rows = self.target.execute("select code, cause from bridge.dead_letter order by created_at, cause")
        return [(row[0], row[1]) for row in rows]

    def findings(self) -> list[Check]:
        environment = {**self.environment, "BRIDGE_ADMIN": "127.0.0.1:1"}
        found = examine(load(self.config, environment))
        return [one for one in found if one.level != "ok" and "public.own" in one.message]

    def close(self) -> None:
        for bridge in self.bridges:
            bridge.close()


Make = Callable[[str], Own]


@pytest.fixture
def own(source: Database, target: Database, tmp_path: Path) -> Iterator[Make]:
    made: list[Own] = []

    def make(ddl: str) -> Own:
        made.append(Own(source, target, tmp_path, ddl))
        return made[-1]

    yield make
    for each in made:
        each.close()


NULLABLE = f"id text, type text, key text, payload jsonb, seq bigint default nextval('public.s'), {XID}"


def _with_nulls(own: Make, source: Database) -> Own:
    source.execute("create sequence public.s")
    return own(NULLABLE)


@pytest.mark.matrix
@pytest.mark.parametrize("way", ["stream", "catch-up", "poll"])
def test_a_null_costs_its_row_and_no_other(own: Make, source: Database, way: str) -> None:
    made = _with_nulls(own, source)
    if way == "poll":
        made.configure({"capture": "poll", "poll_interval": "200ms"})
    bridge = made.bridge()
    if way != "catch-up":
        bridge.start().wait_log("streaming" if way == "stream" else "polling")
    made.insert(key="first")
    for field in ("payload", "type", "id", "seq"):
        made.insert(**{field: None})
    made.insert(id=None, seq=None)
    made.insert(key="last")
    made.insert(id=None)  # no witness of anything
    if way == "catch-up":
        bridge.start()
    until(lambda: len(made.dead()) >= 6 and len(made.got()) >= 2, "the dead letters")
    bridge.kill()
    bridge.start().wait_ready()
    made.insert(key="after")
    until(lambda: made.got()[-1] == "after", "the events after a restart")
    assert made.got() == ["first", "last", "after"]
    assert sorted(made.dead()) == sorted(
        ("incomplete", f"the row's {field} is NULL")
        for field in ("payload", "type", "id", "id", "seq", "id, seq")
    )


def test_a_dead_letter_of_a_null_is_told_and_can_be_discarded(own: Make, source: Database) -> None:
    made = _with_nulls(own, source)
    made.bridge().start().wait_log("streaming")
    made.bridges[-1].wait_log("may be NULL: such a row becomes a dead letter")
    made.insert(payload=None)
    made.insert(id=None, type=None)
    until(lambda: len(made.dead()) == 2, "the dead letters")
    [(event, kind), (nameless, nothing)] = made.target.execute(
        "select event_id, event_type from bridge.dead_letter order by pipeline desc"
    )
    assert (event != "", kind, nameless, nothing) == (True, "a.b", "", "")
    ran = made.run("prove")
    assert "1 rows have no type; 0 of them are no dead letter" in ran.stdout, ran.stdout + ran.stderr
    made.target.execute("delete from bridge.dead_letter where event_type = ''")
    ran = made.run("prove")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "1 rows have no type; 1 of them are no dead letter" in ran.stdout


@pytest.mark.matrix
@pytest.mark.parametrize("numbers", first_fast("1 + g % 3", "-2 + g % 3", "g - 1500", "7"))
def test_rows_of_one_seq_are_applied_together_over_kills(own: Make, numbers: str) -> None:
    """A version per aggregate, or a number from elsewhere: the ledger knows by seq how far a catch-up is."""
    made = own(
        f"id uuid primary key, type text not null, key text, payload jsonb not null, seq bigint not null, {XID}"
    )
    made.configure({"batch": {"max_events": 100}})
    made.source.execute(
        "insert into public.own (id, type, key, payload, seq) select gen_random_uuid(), 'a.b', 'k' || g, '{}',"
        f" {numbers} from generate_series(1, 3000) g"
    )
    for failpoint in ("missing.read=kill@3", "missing.read=kill@8", "missing.read=kill@12"):
        made.bridge(failpoint).start()
        until(lambda: not made.bridges[-1].running, f"the kill at {failpoint}")
    made.bridge().start().wait_ready()
    until(lambda: len(made.got()) >= 3000, "every event")
    assert len(set(made.got())) == len(made.got()) == 3000
    numbers_of = dict(made.source.execute("select key, seq from public.own"))
    seqs = [numbers_of[key] for key in made.got()]
    assert seqs == sorted(seqs)


@pytest.mark.parametrize("way", ["stream", "catch-up"])
def test_rows_of_one_id_are_events_of_their_own(own: Make, way: str) -> None:
    made = own(f"id uuid, type text, key text, payload text, seq bigint generated always as identity, {XID}")
    bridge = made.bridge()
    if way == "stream":
        bridge.start().wait_log("streaming")
    one = str(uuid.uuid4())
    with made.source.connect() as customer:
        for together in (True, False):
            customer.autocommit = not together
            for payload in ('{"cut": 1', '{"cut": 2', '{"i": 3}', "no"):
                customer.execute(
                    "insert into public.own (id, type, key, payload) values (%s, 'a.b', 'k', %s)",
                    [one, payload],
                )
            if together:
                customer.commit()
    if way == "catch-up":
        bridge.start()
    until(lambda: len(made.got()) >= 2 and len(made.dead()) >= 6, "every event")
    assert (len(made.got()), len(made.dead())) == (2, 6)
    units = made.target.execute(
        "select count(distinct id), count(distinct event_seq) from bridge.dead_letter"
    )
    assert units == [(6, 6)]
    bridge.terminate()


@pytest.mark.parametrize("kind", ["text", "varchar", "bytea"])
def test_a_payload_that_looks_like_bytea_costs_itself_only(own: Make, kind: str) -> None:
    made = own(
        f"id uuid primary key, type text not null, key text, payload {kind} not null,"
        f" seq bigint generated always as identity, {XID}"
    )
    bridge = made.bridge().start()
    bridge.wait_log("streaming")
    encode: Callable[[str], Any] = str.encode if kind == "bytea" else str
    for text in ('{"i": 1}', "\\xzz", "\\x", "\\x7", "\\", '{"i": 2}'):
        made.insert(payload=encode(text))
    until(lambda: made.got("payload ->> 'i'")[-1:] == ["2"], "the event after them")
    assert (len(made.got()), [code for code, _ in made.dead()]) == (2, ["22P02"] * 4)


GENERATED = (
    "id uuid primary key, key text generated always as (payload ->> 'who') stored, type text not null,"
    f" payload jsonb not null, seq bigint generated always as identity, {XID}"
)


@pytest.mark.matrix
def test_a_generated_column_is_the_same_by_stream_and_by_table_or_halts(own: Make) -> None:
    made = own(GENERATED)
    new = made.source.value("show server_version_num") >= "180000"

    def put(name: str) -> None:
        made.source.execute(
            "insert into public.own (id, type, payload) values (gen_random_uuid(), 'a.b', %s)",
            [json.dumps({"who": name})],
        )

    put("early")
    if not new:
        not_here("alter publication x set (publish_generated_columns = 'stored')")
    if new:
        made.source.execute("alter publication own set (publish_generated_columns = 'none')")
    bridge = made.bridge().start()
    assert "generated" in bridge.wait_halted("outbox_columns")
    [finding] = made.findings()
    assert (finding.check, finding.level, finding.kind) == ("column_generated", "error", "sql")
    made.source.typed(finding.fix)
    bridge.wait_ready()
    put("late")
    until(lambda: len(made.got()) >= 2, "both")
    assert made.got() == (["early", "late"] if new else ["early", None])  # dropped, and nobody fills it
    assert made.findings() == []


def test_doctor_says_what_may_go_wrong_with_rows_of_an_own_outbox(own: Make, source: Database) -> None:
    made = _with_nulls(own, source)
    found = {(one.level, one.check, one.fix) for one in made.findings()}
    table = 'alter table "public"."own" alter column'
    assert found == {
        *(
            ("warn", "outbox_null", f'{table} "{name}" set not null;')
            for name in ("id", "type", "payload", "seq")
        ),
        ("warn", "id_not_unique", 'create unique index concurrently on "public"."own" ("id");'),
    }
    for _, _, fix in found:
        made.source.typed(fix)
    assert made.findings() == []


@pytest.mark.parametrize(
    ("columns", "checks"),
    [
        ("payload jsonb not null, seq text not null, xid xid8", "seq_type"),
        ("payload public.hstore not null, seq bigint, xid xid8", "payload_type"),
        ("payload jsonb not null, seq bigint, xid bigint", "xid_type"),
        ("payload jsonb, seq numeric, xid xid", "seq_type xid_type"),
    ],
)
def test_a_column_of_a_wrong_type_halts_with_its_name(
    own: Make, source: Database, columns: str, checks: str
) -> None:
    source.execute("create type public.hstore as (a int)")  # as foreign as that
    made = own(f"id uuid primary key, type text not null, key text, {columns}")
    errors = {one.check for one in made.findings() if one.level == "error"}
    assert set(checks.split()) <= errors
    body = made.bridge().start().wait_halted("outbox_columns")
    for check in checks.split():
        assert f"source.columns.{check.removesuffix('_type')}" in body
