"""The columns xid and seq are added to an outbox of the customer's own: before a stream starts, and under one that has
events waiting in its slot."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import pytest

from bridge.postgres.schema import install_source
from tests.integration.test_own_outbox import CONFIG, recover, wait_for_rows
from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database
from tests.support.variants import first_fast
from tests.support.world import drop_slot, until

SHAPES: dict[str, LiteralString] = {
    "nullable": """
        alter table public.outboxevent add column xid xid8;
        alter table public.outboxevent alter column xid set default pg_current_xact_id();
        alter table public.outboxevent add column seq bigint generated always as identity""",
    "as doctor prints": """
        alter table public.outboxevent add column seq bigint generated always as identity;
        alter table public.outboxevent add column xid xid8 not null default pg_current_xact_id();
        create index on public.outboxevent (xid, seq)""",
}
XID = ", seq: seq, xid: xid"


class Own:
    """An outbox of the customer's own without xid, and its bridge."""

    def __init__(self, source: Database, target: Database, directory: Path) -> None:
        self.source, self.target, self.directory = source, target, directory
        self.sent = 0
        self.bridge: BridgeProcess | None = None
        with target.connect() as owner:
            owner.execute("create table events.orders (id uuid, key text, total numeric, payload jsonb)")
            owner.execute("grant select, insert on events.orders to outbox_bridge")
        with source.connect() as customer:
            customer.execute(
                "create table public.outboxevent (id uuid primary key, aggregatetype text not null,"
                " aggregateid text not null, type text not null, payload jsonb)"
            )
            customer.execute("grant select on public.outboxevent to outbox_bridge")
            install_source(customer, "own", "public.outboxevent")

    def start(self, columns: str = "") -> BridgeProcess:
        config = self.directory / "own.yaml"
        config.write_text(CONFIG % columns)
        self.bridge = BridgeProcess(
            source=self.source.bridge_dsn,
            target=self.target.bridge_dsn,
            directory=self.directory,
            config=config,
            name=f"bridge-{uuid.uuid4().hex[:6]}",
        )
        return self.bridge.start()

    def stop(self) -> None:
        assert self.bridge is not None
        self.bridge.terminate()

    def send(self, count: int) -> None:
        with self.source.connect() as customer:
            for _ in range(count):
                customer.execute(
                    "insert into public.outboxevent (id, aggregatetype, aggregateid, type, payload)"
                    " values (%s, 'order', 'k', 'OrderCreated', %s)",
                    [uuid.uuid4(), json.dumps({"total": self.sent})],
                )
                self.sent += 1

    def alter(self, shape: str) -> None:
        with self.source.connect() as customer:
            customer.execute(SHAPES[shape])

    def came_once(self) -> None:
        rows = wait_for_rows(self.target, self.sent)
        assert sorted(count for _, count in rows) == [1] * self.sent, self.bridge and self.bridge.log_tail()

    def floor(self) -> str:
        return str(self.target.value("select floor::text from bridge.checkpoint"))

    def lose_slot(self) -> None:
        with self.source.connect() as customer:
            [(slot,)] = customer.execute("select slot from outbox.stream").fetchall()
            drop_slot(customer, slot)


@pytest.fixture
def own(source: Database, target: Database, tmp_path: Path) -> Iterator[Own]:
    made = Own(source, target, tmp_path)
    yield made
    if made.bridge is not None:
        made.bridge.close()


@pytest.mark.fault(81)
@pytest.mark.parametrize("shape", first_fast(*SHAPES))
def test_before_a_stream_starts_every_row_comes_once(own: Own, shape: str) -> None:
    own.send(5)
    own.alter(shape)
    own.send(2)
    own.start(XID).wait_ready()
    own.send(2)
    own.came_once()
    own.lose_slot()
    own.send(2)
    own.came_once()


@pytest.mark.fault(81)
@pytest.mark.parametrize("applied", [0, 3])
@pytest.mark.parametrize("shape", first_fast(*SHAPES))
def test_under_a_stream_the_slot_brings_what_waits_in_it(own: Own, shape: str, applied: int) -> None:
    own.start().wait_log("streaming")
    own.send(applied)
    own.came_once()
    own.stop()
    assert own.floor() == "3:3:"
    own.send(5)
    own.alter(shape)
    own.send(3)
    bridge = own.start(XID)
    own.came_once()
    bridge.wait_ready()
    until(lambda: own.floor() != "3:3:", "a floor is raised")
    own.lose_slot()  # from now on the table can take its place
    own.send(3)
    own.came_once()


@pytest.mark.fault(81)
def test_a_slot_that_is_lost_before_the_stream_has_passed_the_change_halts(own: Own) -> None:
    own.start().wait_log("streaming")
    own.send(3)
    own.came_once()
    own.stop()
    own.send(2)
    own.alter("as doctor prints")
    own.lose_slot()
    bridge = own.start(XID)
    assert "--accept-source" in bridge.wait_halted("no_catch_up")
    bridge.terminate()
    refused = recover(bridge, "--adopt-outbox")
    assert refused.returncode == 1
    assert "its slot is lost" in refused.stderr
    assert len(wait_for_rows(own.target, 3)) == 3


@pytest.mark.fault(81)
@pytest.mark.parametrize("shape", first_fast(*SHAPES))
def test_while_the_slot_is_there_the_outbox_can_be_adopted_too(own: Own, shape: str) -> None:
    own.start().wait_log("streaming")
    own.send(3)
    own.came_once()
    own.stop()
    own.send(4)
    own.alter(shape)
    own.send(2)
    assert own.bridge is not None
    own.bridge.config.write_text(CONFIG % XID)
    said = recover(own.bridge, "--adopt-outbox")
    assert "will be applied       6" in said.stdout, said.stdout + said.stderr
    own.start(XID).wait_ready()
    own.send(2)
    own.came_once()
