"""An outbox of the customer's own: Debezium's shape, with and without an xid column."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import psycopg
import pytest

from bridge.postgres.schema import install_source
from tests.support.bridge_process import BridgeProcess
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
                bridge.start().wait_halted("no_catch_up")
        finally:
            bridge.close()
