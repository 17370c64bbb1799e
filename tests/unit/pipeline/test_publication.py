"""An event as a message for others: subject, headers, payload, and which messages may be in flight together."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import UnitFailure
from bridge.planning.plan import Owner
from bridge.planning.publication import (
    Publication,
    Subject,
    SubjectFailure,
    header_value,
    literal_part,
    subject_problem,
)
from bridge.planning.rows import Rows, survivors
from bridge.planning.spec import SubjectSpec
from bridge.protocol.events import Event
from bridge.stream.waves import Item, own_headers, waves


def event(n: int = 1, key: str | None = "k", **fields: Any) -> Event:
    given = {
        "id": b"00000000-0000-7000-8000-%012d" % n,
        "seq": b"%d" % n,
        "xid": b"1",
        "type": b"order.placed",
        "key": None if key is None else key.encode(),
        "payload": b'{"region": "eu", "n": 1.50}',
        "idempotency_key": None,
        "headers": None,
        "occurred_at": b"2027-03-01 10:00:00+00",
    }
    return Event(**{**given, **fields})


def rows(*documents: dict[str, Any]) -> Rows:
    events = [event(n) for n in range(len(documents))]
    return Rows(list(range(len(documents))), events, list(documents))


def published(spec: SubjectSpec, *documents: dict[str, Any]) -> list[Publication]:
    return Subject("p", spec).publications(rows(*documents))


def spec(subject: str = "orders.placed", **more: Any) -> SubjectSpec:
    return SubjectSpec("d", "bus", subject, **more)


def test_the_payload_is_the_events_bytes_unless_it_says_otherwise() -> None:
    (plain,) = published(spec(), {"region": "eu"})
    assert plain.payload == b'{"region": "eu", "n": 1.50}'
    (text,) = published(spec(payload="{{ event.region }}!"), {"region": "eu"})
    assert text.payload == b"eu!"
    (mapped,) = published(spec(payload={"where": "$event.region", "id": "$meta.id"}), {"region": "eu"})
    assert mapped.shown()["payload"] == {"where": "eu", "id": "00000000-0000-7000-8000-000000000000"}


def test_headers_that_are_null_are_left_out_and_the_others_are_text() -> None:
    (one,) = published(
        spec(headers={"a": "$event.region", "b": "$event.none", "c": 5, "d": "é\r\nx: y"}), {"region": "eu"}
    )
    assert one.shown()["headers"] == {"a": "eu", "c": "5", "d": "%C3%A9%0D%0Ax: y"}
    assert one.headers.count(b"\r\n") == 3, "no value ends a line"


@pytest.mark.parametrize(
    "subject",
    ["", "a b", "a..b", ".a", "a.", "a.*", "a.>", "$JS.API.x", "_INBOX.x", "a\r\nPUB b", "x" * 1025, "a\tb"],
)
def test_a_subject_that_cannot_be_is_its_own_events_dead_letter(subject: str) -> None:
    work = Subject("p", spec("$event.s")).publications
    _, good, failures = survivors(work, rows({"s": "orders.eu"}, {"s": subject}, {"s": "orders.us"}))
    assert [one.subject for one in good] == ["orders.eu", "orders.us"]
    ((place, _, failure),) = failures
    assert (place, failure.code) == (1, "subject")
    assert not subject or subject not in failure.cause.split()


@pytest.mark.parametrize("subject", ["orders", "orders.eu-1.x_y", "bestellungen.größe", "a.b.c"])
def test_subjects_that_can_be(subject: str) -> None:
    assert subject_problem(subject) is None


def test_headers_that_are_too_long_are_a_failure() -> None:
    with pytest.raises(SubjectFailure, match="longer than"):
        published(spec(headers={"a": "$event.long"}), {"long": "x" * 40_000})


@given(st.binary(max_size=40))
def test_a_headers_value_is_one_printable_line_and_says_what_it_was(value: bytes) -> None:
    written = header_value(value)
    assert re.fullmatch(rb"[\x20-\x7e]*", written)
    assert written == written.strip(b" ")
    assert unquote_to_bytes(written) == value


@given(
    st.text(max_size=20), st.text(max_size=20), st.sampled_from(["", "eu"]), st.sampled_from(["", "again"])
)
def test_an_id_of_a_unit_is_the_uuid_that_it_always_was(
    name: str, destination: str, ids: str, again: str
) -> None:
    namespace = UUID("6f0b5e0a-9d0b-5c59-8c0e-6f7574626f78")
    named = f"{name}/p/{destination}" + (f"/{again}" if again else "")
    expected = uuid5(namespace, f"{ids}:{named}" if ids else named)
    assert Owner("s", ids).unit_id(name, "p", destination, again) == expected


@pytest.mark.parametrize(
    ("subject", "wildcard"),
    [
        ("orders.placed", "orders.placed"),
        ("orders.{{ event.region }}", "orders.>"),
        ("orders.x-{{ event.region }}.y", "orders.>"),
        ("{{ event.region }}.orders", ">"),
        ("$event.subject", ">"),
    ],
)
def test_what_a_stream_must_take_for_a_subject(subject: str, wildcard: str) -> None:
    assert literal_part(subject) == wildcard


def items(*keys: str | None) -> list[Item]:
    made = [Publication("p", "d", event(n, key), "s", b"", b"{}") for n, key in enumerate(keys)]
    return [Item.of(Owner("s"), one, spec()) for one in made]


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=30))
def test_no_key_is_twice_in_flight_and_each_keeps_its_order(keys: list[str | None]) -> None:
    sent = items(*keys)
    found = waves(sent)
    assert sorted(id(item) for wave in found for item in wave) == sorted(map(id, sent))
    for wave in found:
        known = [item.order for item in wave if item.order is not None]
        assert len(known) == len(set(known))
    order = [item.publication.event.seq for wave in found for item in wave if item.order == ("p", "d", b"a")]
    assert order == sorted(order, key=int)
    assert all(item in found[0] for item in sent if item.order is None)


def test_own_headers_name_the_unit_and_the_event() -> None:
    (item,) = items("k \u00e9")
    lines = own_headers(item.ident, item.publication, "eu").split(b"\r\n")
    assert lines == [
        f"Nats-Msg-Id: {UUID(bytes=item.ident)}".encode(),
        b"Bridge-Event-Id: 00000000-0000-7000-8000-000000000000",
        b"Bridge-Event-Type: order.placed",
        b"Bridge-Event-Seq: 0",
        b"Bridge-Event-Key: k %C3%A9",
        b"Bridge-Occurred-At: 2027-03-01 10:00:00+00",
        b"Bridge-Source: eu",
        b"",
    ]
    odd = item.publication
    crafted = Publication("p", "d", odd.event._replace(type=b"x\r\nNats-Rollup: all"), "s", b"", b"{}")
    assert b"Nats-Rollup" not in [
        line.partition(b":")[0] for line in own_headers(item.ident, crafted, "").split(b"\r\n")
    ]


def test_a_failure_of_a_subject_is_one_of_a_unit() -> None:
    assert issubclass(SubjectFailure, UnitFailure)
