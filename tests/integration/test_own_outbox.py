"""An outbox of the customer's own: Debezium's shape, with and without an xid column."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from pathlib import Path

import psycopg
import pytest

from bridge.postgres.schema import install_source
from tests.support.bridge_process import BridgeProcess
from tests.support.fixes import line_in, note
from tests.support.servers import Database

CONFIG = """
version: 1
source:
  dsn: ${SOURCE_DSN}
  slot: own
  table: public.outboxevent
  columns: { id: id, type: type, key: aggregateid, payload: payload%s }
connections:
  warehouse: { type: postgres, dsn: "${WAREHOUSE_DSN}" }
pipelines:
  orders:
    event: "Order*"
    destinations:
      orders:
        connection: warehouse
        table: events.orders
        columns: { id: $meta.id, key: $meta.key, total: $event.total, payload: $event }
admin: { listen: "${BRIDGE_ADMIN}" }
"""

XID = """
alter table public.outboxevent add column seq bigint generated always as identity (cache 1);
alter table public.outboxevent add column xid xid8 default pg_current_xact_id();
create index on public.outboxevent (xid, seq);
"""


def insert(connection: psycopg.Connection, count: int, *, binary: bool) -> None:
    for n in range(count):
        payload = json.dumps({"total": n})
        connection.execute(
            "insert into public.outboxevent (id, aggregatetype, aggregateid, type, payload)"
            " values (%s, 'order', %s, 'OrderCreated', %s)",
            [uuid.uuid4(), f"o{n % 5}", payload.encode() if binary else payload],
        )


def wait_for_rows(target: Database, count: int) -> list[tuple[str, int]]:
    end = time.monotonic() + 30
    while True:
        with target.connect() as connection:
            rows = connection.execute("select id, count(*) from events.orders group by id").fetchall()
        if len(rows) >= count or time.monotonic() > end:
            return rows
        time.sleep(0.05)


def recover(bridge: BridgeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return bridge.command("recover", *arguments)


@pytest.mark.parametrize("with_xid", [False, True], ids=["without xid", "with xid"])
def test_an_outbox_of_debezium_shape_is_delivered_once_over_a_kill(
    source: Database, target: Database, tmp_path: Path, with_xid: bool
) -> None:
    with source.connect() as customer, target.connect() as owner:
        customer.execute(
            "create table public.outboxevent (id uuid primary key, aggregatetype text not null,"
            f" aggregateid text not null, type text not null, payload {'bytea' if with_xid else 'json'})"
        )
        if with_xid:
            customer.execute(XID)
        customer.execute("grant select on public.outboxevent to outbox_bridge")
        owner.execute("create table events.orders (id uuid, key text, total numeric, payload jsonb)")
        owner.execute("grant select, insert on events.orders to outbox_bridge")
        customer.commit()
        owner.commit()
    with psycopg.connect(source.dsn, autocommit=True) as customer:
        install_source(customer, "own", "public.outboxevent")
        config = tmp_path / "own.yaml"
        config.write_text(CONFIG % (", seq: seq, xid: xid" if with_xid else ""))
        bridge = BridgeProcess(
            source=source.bridge_dsn, target=target.bridge_dsn, directory=tmp_path, config=config
        )
        try:
            bridge.start().wait_ready()
            bridge.wait_log("streaming")
            insert(customer, 200, binary=with_xid)
            wait_for_rows(target, 100)
            bridge.kill()
            insert(customer, 200, binary=with_xid)
            bridge.start().wait_ready()
            rows = wait_for_rows(target, 400)
            assert len(rows) == 400
            assert {count for _, count in rows} == {1}
            if not with_xid:
                bridge.kill()
                customer.execute(
                    "select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null"
                    " and slot_name like 'own%'"
                )
                customer.execute(
                    "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'own%'"
                )
                assert "bridge recover --accept-source" in bridge.start().wait_halted("no_catch_up")
                bridge.terminate()
                refused = recover(bridge, "--accept-source", "--since", "earliest")
                assert refused.returncode == 2
                now = line_in(refused.stderr, "bridge recover --accept-source --since now")
                note(now)
                assert recover(bridge, *now.split()[2:]).returncode == 0
                seen = len(bridge.lines)
                bridge.start().wait_log("streaming", since=seen)
                insert(customer, 10, binary=with_xid)
                assert len(wait_for_rows(target, 410)) == 410
        finally:
            bridge.close()


DEEP = '{"total": 1, "deep": ' + '{"a":' * 20_000 + "1" + "}" * 20_000 + "}"
BAD = {  # what jsonb would have refused at the producer's INSERT; json takes those that it does not look into
    "NUL": r'{"total": 1, "note": "\u0000"}',
    "lone surrogate": r'{"total": 1, "note": "\ud800"}',
    "lone surrogate in a name": r'{"total": 1, "\udc00": 1}',
    "NaN": '{"total": NaN}',
    "Infinity": '{"total": 1, "rate": -Infinity}',
    "too deep": DEEP,
    "cut off": '{"total": 1',
    "no object": "[1]",
    "nothing": "",
}
REFUSED_BY_JSON = {"NaN", "Infinity", "too deep", "cut off", "nothing"}


@pytest.mark.fault(57, 58, 59)
@pytest.mark.parametrize("kind", ["json", "text", "bytea"])
def test_what_jsonb_would_refuse_is_a_dead_letter_where_the_outbox_takes_it(
    source: Database, target: Database, tmp_path: Path, kind: str
) -> None:
    with source.connect() as customer, target.connect() as owner:
        customer.execute(
            "create table public.outboxevent (id uuid primary key, aggregatetype text not null,"
            f" aggregateid text not null, type text not null, payload {kind})"
        )
        customer.execute(XID)
        customer.execute("grant select on public.outboxevent to outbox_bridge")
        owner.execute("create table events.orders (id uuid, key text, total numeric, payload jsonb)")
        owner.execute("grant select, insert on events.orders to outbox_bridge")
    config = tmp_path / "own.yaml"
    config.write_text(CONFIG % ", seq: seq, xid: xid")
    bridge = BridgeProcess(
        source=source.bridge_dsn, target=target.bridge_dsn, directory=tmp_path, config=config
    )
    bad = {name: text.encode() for name, text in BAD.items()}
    if kind == "json":
        bad = {name: text for name, text in bad.items() if name not in REFUSED_BY_JSON}
    if kind == "bytea":
        bad["not UTF-8"] = b'{"total": 1, "note": "\xff\xfe"}'
    statement = (
        "insert into public.outboxevent (id, aggregatetype, aggregateid, type, payload)"
        " values (%s, 'order', 'o1', 'OrderCreated', %s)"
    )
    try:
        with source.connect() as customer:
            install_source(customer, "own", "public.outboxevent")
            bridge.start().wait_log("streaming")
            dead = {str(uuid.uuid4()): name for name in bad}
            for event, name in dead.items():  # between neighbours, in one transaction with them
                with customer.transaction():
                    insert(customer, 6, binary=kind == "bytea")
                    payload = bad[name] if kind == "bytea" else bad[name].decode()
                    customer.execute(statement, [event, payload])
                    insert(customer, 6, binary=kind == "bytea")
            if kind == "json":
                for name in REFUSED_BY_JSON:
                    with pytest.raises((psycopg.DataError, psycopg.errors.StatementTooComplex)):
                        customer.execute(statement, [uuid.uuid4(), BAD[name]])
        rows = wait_for_rows(target, 12 * len(dead))
        assert len(rows) == 12 * len(dead)
        assert {count for _, count in rows} == {1}
        letters = target.execute("select event_id, code, cause from bridge.dead_letter")
        assert {event for event, _, _ in letters} == set(dead)
        assert len(letters) == len(dead)
        codes = {dead[event]: code for event, code, _ in letters}
        assert codes == {name: "22P05" if name == "NUL" else "payload" for name in bad}
    finally:
        bridge.close()
