"""A reader of a log holds no more than it may, whatever lies in the log, and reads it to its end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from bridge.bus.connection import Bus
from bridge.bus.journal import Journal, JournalSpec, Reading
from bridge.bus.settings import BusSettings
from tests.support.nats import NatsNode
from tests.support.world import until

SIZES = (100_000, 250_000, 30, 900_000, 2_500_000, 50_000)
"""Of frames, in turn; one is larger than all that the reader may hold."""
_MOST = 1 << 20


def filled(bus: Bus, rounds: int) -> list[int]:
    journal = Journal(bus, "relay", lambda: None)
    journal.prepare(JournalSpec("relay", "a source", 1 << 30, 1))
    sizes = [*SIZES] * rounds
    for number, size in enumerate(sizes):
        journal.send(1, number.to_bytes(4, "big") + bytes(size - 4), f"frame {number}").result(10)
    return sizes


def test_a_reader_holds_what_it_may_and_reads_to_the_end(tmp_path: Path) -> None:
    with NatsNode(tmp_path) as node:
        bus = Bus(BusSettings("log", (node.url,)), "a test")
        bus.connect()
        sizes = filled(bus, 6)
        arrived = threading.Event()
        reading = Reading(bus, "relay", 1, behind=lambda _: False, arrived=arrived.set, max_bytes=_MOST)
        until(arrived.is_set, "the first frame has come")
        time.sleep(1.0)  # nobody takes: what has come now is all that it holds
        held = sum(len(one.data) for one in list(reading._queue))
        assert 0 < held <= _MOST
        seen: list[int] = []

        def took() -> bool:
            while (found := reading.take()) is not None:
                assert found.data[:4] == len(seen).to_bytes(4, "big")
                seen.append(len(found.data))
                assert sum(len(one.data) for one in list(reading._queue)) <= max(_MOST, *SIZES)
            return len(seen) == len(sizes)

        until(took, "everything was read", 60)
        assert seen == sizes
        reading.close()
        bus.close()


def test_a_reader_begins_again_where_the_log_was_made_anew(tmp_path: Path) -> None:
    with NatsNode(tmp_path) as node:
        bus = Bus(BusSettings("log", (node.url,)), "a test")
        bus.connect()
        filled(bus, 3)
        reading = Reading(bus, "relay", 1, behind=lambda _: False, arrived=lambda: None, max_bytes=8 << 20)
        until(lambda: reading.take() is not None, "it reads")
        bus.call(lambda js: js.delete_stream("relay"), doing="delete it")
        while reading.take() is not None:
            pass
        filled(bus, 1)
        seen: list[int] = []

        def took() -> bool:
            while (found := reading.take()) is not None:
                seen.append(len(found.data))
            return seen[-len(SIZES) :] == [*SIZES]

        until(took, "it reads what has smaller numbers", 30)
        reading.close()
        bus.close()


def test_a_reader_keeps_its_consumer_from_pull_to_pull(tmp_path: Path) -> None:
    """The server tells the end of each pull; a reader that took it for a loss came back half a second later."""
    with NatsNode(tmp_path) as node:
        bus = Bus(BusSettings("log", (node.url,)), "a test")
        bus.connect()
        journal = Journal(bus, "relay", lambda: None)
        journal.prepare(JournalSpec("relay", "a source", 1 << 26, 1))
        reading = Reading(bus, "relay", 1, behind=lambda _: False, arrived=lambda: None, max_bytes=_MOST)

        def consumers() -> list[str]:
            found = bus.call(lambda js: js.consumers_info("relay"), doing="list consumers")
            return [one.name for one in found]

        until(consumers, "it reads")
        names = {*consumers()}
        for number in range(300):
            journal.send(1, b"%d" % number, f"frame {number}").result(10)
            until(lambda: reading.take() is not None, "the frame has come")
            if number % 20 == 0:
                names |= {*consumers()}
        assert len(names | {*consumers()}) == 1
        reading.close()
        bus.close()
