"""Recipients and answers: a dispatcher's lane on a real ledger and a real receiver, without a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
import pytest

from bridge.dispatch.dispatcher import Dispatcher
from bridge.dispatch.schedule import DispatchSpec, LaneSpec, Pacer
from bridge.errors import BridgeError
from bridge.postgres.whose import Owned
from bridge.sinks.http import HttpClient
from bridge.sinks.model import SINKS
from tests.support.receiver import Received, Receiver, Reply
from tests.support.servers import Database

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="


class Watcher:
    """Receives a dispatcher's reports."""

    def __init__(self) -> None:
        self.destination_left_alone = False

    def delivered(self, lane: LaneSpec, outcome: str, seconds: float) -> None: ...

    def left_alone(self, lane: LaneSpec, found: Any) -> None:
        self.destination_left_alone |= any(not who for who, _, _ in found)

    def works(self, stream: str) -> None: ...

    def troubled(self, stream: str, error: BridgeError) -> None: ...

    def log(self, level: str, event: str, **fields: object) -> None:
        self.destination_left_alone |= event == "destination left alone"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def put(target: psycopg.Connection[Any], *bodies: Mapping[str, Any], after: int = 0) -> None:
    """One message each, of a key of its own. after: the number of messages that are there."""
    with target.cursor() as cursor:
        cursor.executemany(
            "insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type,"
            " event_key, body) values (gen_random_uuid(), 's', 'p', 'd', %s, %s, 't', %s, %s)",
            [(f"e{n}", n, f"k{n}", json.dumps(body)) for n, body in enumerate(bodies, after)],
        )


def dispatch(
    target: Database,
    connection: Mapping[str, Any],
    wanted: str,
    *,
    when: tuple[str, Callable[[], None]] | None = None,
    **lane: Any,
) -> bool:
    """Run a dispatcher of one lane until this query answers true, or the destination is left alone, which it returns.
    when: a query, and what to do in between, as soon as it answers true."""
    watcher = Watcher()
    sink = SINKS[connection["type"]].model_validate(connection)
    plan = DispatchSpec("s", target.bridge_dsn, target.bridge_dsn, [LaneSpec("p", "d", "c", sink, **lane)])

    target.execute(
        "insert into bridge.checkpoint (stream, session, mode, floor) values ('s', gen_random_uuid(), 'new', '3:3:')"
        " on conflict do nothing"
    )

    async def run() -> None:
        client = HttpClient()
        dispatcher = Dispatcher(plan, client, Pacer(), watcher, Owned())
        running = asyncio.create_task(dispatcher.run())
        try:
            async with asyncio.timeout(20):
                for query, act in ((when,) if when else ()) + ((wanted, lambda: None),):
                    while not await asyncio.to_thread(answers, target, query):
                        if watcher.destination_left_alone:
                            return
                        await asyncio.sleep(0.05)
                    act()
        finally:
            dispatcher.stop()
            await running
            await client.close()

    try:
        asyncio.run(run())
    except TimeoutError:
        raise AssertionError(f"not within 20 s: {wanted}") from None
    return watcher.destination_left_alone


def answers(target: Database, query: str) -> bool:
    with target.connect() as connection:
        row = connection.execute(query).fetchone()
    return row is not None and bool(row[0])


def webhook(**more: Any) -> dict[str, Any]:
    return {"type": "webhook", "secret": SECRET, "allow": ["127.0.0.0/8"], **more}


# --- R6: a failing recipient costs only what goes to that recipient ----------------------------------------


@pytest.mark.parametrize(
    "bad",
    [Reply(500), Reply(503, headers={"Retry-After": "1800"}), Reply(429, headers={"Retry-After": "1800"})],
    ids=["down", "busy", "too fast"],
)
def test_a_recipient_that_fails_stops_no_other(
    target: Database, target_connection: psycopg.Connection[Any], receiver: Receiver, bad: Reply
) -> None:
    receiver.decide = lambda request: bad if request.path == "/bad" else None
    put(target_connection, *({"url": f"{receiver.url}/bad", "data": 1} for _ in range(20)))
    more = [{"url": f"{receiver.url}/good", "data": 1} for _ in range(20)]
    tried = "select count(*) >= 5 from bridge.delivery where attempts > 0"
    sent = "select count(*) = 20 from bridge.delivery where state = 'sent'"
    when = (tried, lambda: put(target_connection, *more, after=20))
    assert not dispatch(target, webhook(), sent, when=when, by_recipient=True, timeout=2.0)


def test_a_recipient_that_hangs_has_a_part_of_the_places(
    target: Database, target_connection: psycopg.Connection[Any], receiver: Receiver
) -> None:
    receiver.decide = lambda request: Reply(hang=True) if request.path == "/bad" else None
    urls = [f"{receiver.url}/{name}" for name in ["bad"] * 200 + ["good"] * 20]
    put(target_connection, *({"url": url, "data": 1} for url in urls))
    sent = "select count(*) = 20 from bridge.delivery where state = 'sent'"
    dispatch(target, webhook(), sent, by_recipient=True, timeout=15.0)
    assert sum(one.path == "/bad" for one in receiver.requests) <= 16


def test_an_address_that_may_not_be_reached_is_the_messages_own_fault(
    target: Database, target_connection: psycopg.Connection[Any], receiver: Receiver
) -> None:
    put(target_connection, *({"url": f"http://10.1.2.{n}/x", "data": n} for n in range(200)))
    dead = "select count(*) = 200 from bridge.dead_letter where code = 'address_refused'"
    assert not dispatch(target, webhook(), dead, by_recipient=True)


# --- R7: sent means that the vendor took it ------------------------------------------------------------------

PAGE = Reply(200, b"<!doctype html><title>Sign in</title>", headers={"content-type": "text/html"})


def said(**words: Any) -> Reply:
    return Reply(200, json.dumps(words).encode(), headers={"content-type": "application/json"})


def state_after(
    target: Database, connection: psycopg.Connection[Any], sink: Mapping[str, Any], body: Mapping[str, Any]
) -> str:
    """What a message's row says after its first attempt."""
    put(connection, body)
    dispatch(target, sink, "select attempts > 0 from bridge.delivery")
    row = connection.execute("select state from bridge.delivery").fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(
    "answer", [PAGE, said(ok=False, error="channel_not_found")], ids=["a page", "ok: false"]
)
def test_two_hundred_is_not_sent_when_slack_did_not_take_it(
    target: Database, target_connection: psycopg.Connection[Any], receiver: Receiver, answer: Reply
) -> None:
    receiver.always = answer
    hook = {"type": "slack", "webhook_url": f"{receiver.url}/hook"}
    assert state_after(target, target_connection, hook, {"text": "x"}) != "sent"


def test_every_answer_is_settled_as_the_recipient_gave_it(
    target: Database, target_connection: psycopg.Connection[Any], receiver: Receiver
) -> None:
    """Settled in sets: none of a set gets another's answer."""

    def decide(request: Received) -> Reply:
        return Reply([200, 400, 500][request.json["data"] % 3])

    receiver.decide = decide
    put(target_connection, *({"data": n} for n in range(60)))
    query = "select count(*) = 60 from bridge.delivery where attempts > 0"
    dispatch(target, webhook(url=f"{receiver.url}/x"), query)
    rows = target_connection.execute(
        "select (body ->> 'data')::int % 3, array_agg(distinct state) from bridge.delivery group by 1 order by 1"
    ).fetchall()
    assert rows[0] == (0, ["sent"])
    assert rows[1] == (1, ["dead"])
    assert rows[2] == (2, ["pending"])
