"""One lane without a stream: how many are in flight, how long a claim lasts, and what is of one message in a digest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from bridge.sinks.webhook import WebhookConnection
from tests.mutants.test_on_sinks import dispatch, put, webhook
from tests.support.receiver import Received, Receiver, Reply
from tests.support.servers import Database

Connection = psycopg.Connection[Any]
ALL_SENT = "select count(*) = 0 from bridge.delivery where state <> 'sent'"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Slow:
    """Answers after so many seconds, and knows how many waited for it at once."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: list[float] = []

    def __call__(self, _request: Received) -> Reply | None:
        self._began.append(time.monotonic())
        return Reply(after=self._seconds)

    @property
    def most(self) -> int:
        return max(sum(at - self._seconds < one <= at for one in self._began) for at in self._began)


def of_group(*data: object, **more: Any) -> list[Mapping[str, Any]]:
    return [{"data": one, "$digest": "g", **more} for one in data]


def test_digests_keep_to_the_lanes_capacity(
    target: Database, target_connection: Connection, receiver: Receiver
) -> None:
    receiver.decide = slow = Slow(0.3)
    put(target_connection, *of_group(*range(400)))
    dispatch(target, webhook(url=f"{receiver.url}/x"), ALL_SENT, digest=(0.0, 2))
    assert slow.most <= 64
    sent = [one for request in receiver.requests for one in request.json["data"]]
    assert sorted(sent) == list(range(400))


def test_what_waits_for_a_place_is_not_sent_after_its_claim(
    target: Database, target_connection: Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebhookConnection, "at_once", lambda _self: 2)
    receiver.decide = Slow(1.1)
    put(target_connection, *({"url": f"{receiver.url}/x", "data": n} for n in range(12)))
    dispatch(target, webhook(), ALL_SENT, by_recipient=True, timeout=1.2)
    assert max(Counter(one.identity for one in receiver.requests).values()) == 1


def test_a_lost_connection_is_no_defect_when_messages_wait_for_a_place(
    target: Database, target_connection: Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebhookConnection, "at_once", lambda _self: 4)
    receiver.decide = Slow(0.8)
    put(target_connection, *({"url": f"{receiver.url}/x", "data": n} for n in range(6)))
    claimed = "select count(*) > 3 from bridge.delivery where lease_epoch is not null"

    def cut() -> None:
        target_connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )

    dispatch(target, webhook(), ALL_SENT, when=(claimed, cut), by_recipient=True, timeout=1.0)


def test_a_digest_expires_message_by_message(
    target: Database, target_connection: Connection, receiver: Receiver
) -> None:
    receiver.always = Reply(500)
    put(target_connection, *of_group(1, 2))
    target_connection.execute(
        "update bridge.delivery set created_at = now() - interval '58 seconds' where event_seq = 0"
    )
    dead = "select count(*) > 0 from bridge.dead_letter"
    dispatch(target, webhook(url=f"{receiver.url}/x"), dead, digest=(0.0, 9), max_age=60.0)
    states = target_connection.execute("select state from bridge.delivery order by event_seq").fetchall()
    assert states == [("dead",), ("pending",)]


def test_a_digest_is_of_one_fallback(
    target: Database, target_connection: Connection, receiver: Receiver
) -> None:
    bodies = [of_group(n, fallback=f"{receiver.url}/{n}")[0] for n in range(3)]
    put(target_connection, *bodies)
    dispatch(target, webhook(), ALL_SENT, digest=(0.0, 9))
    assert {(one.path, one.json["data"]) for one in receiver.requests} == {(f"/{n}", n) for n in range(3)}


def test_a_throttle_counts_what_was_sent(
    target: Database, target_connection: Connection, receiver: Receiver
) -> None:
    receiver.replies = [Reply(500), Reply(500)]
    put(target_connection, {"data": 1})
    dispatch(target, webhook(url=f"{receiver.url}/x"), ALL_SENT, throttle=(1, 3600))
    assert len(receiver.requests) == 3
