"""Messages in, batches out: any cut of the stream, any layout of the outbox, gives the same events."""

from __future__ import annotations

from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import Halt
from bridge.protocol.events import Batch, Event
from bridge.stream.decode import Decoder
from bridge.stream.relation import Layout

OID = 16400
UUID, INT8, XID8, TIMESTAMPTZ, TEXT, JSONB = 2950, 20, 5069, 1184, 25, 3802
TYPES = dict(zip(Event._fields, (UUID, INT8, XID8, TEXT, TEXT, JSONB, TEXT, JSONB, TIMESTAMPTZ), strict=True))
NAMES = {name: name for name in Event._fields}


def relation(columns: list[str], oid: int = OID, table: bytes = b"event") -> bytes:
    head = b"R" + pack("!I", oid) + b"outbox\0" + table + b"\0d" + pack("!H", len(columns))
    return message(
        head
        + b"".join(b"\1" + name.encode() + b"\0" + pack("!Ii", TYPES.get(name, TEXT), -1) for name in columns)
    )


def message(body: bytes) -> bytes:
    return b"w" + bytes(24) + body


def begin(xid: int) -> bytes:
    return message(b"B" + pack("!QQI", 0, 0, xid))


def commit(end: int, clock: int = 0) -> bytes:
    return message(b"C" + pack("!BQQQ", 0, end - 8, end, clock))


def insert(values: list[bytes | None], oid: int = OID) -> bytes:
    body = b"".join(b"n" if v is None else b"t" + pack("!I", len(v)) + v for v in values)
    return message(b"I" + pack("!I", oid) + b"N" + pack("!H", len(values)) + body)


def event(n: int, payload: bytes = b"{}", xid: int | None = None) -> Event:
    own = b"%d" % (700 + n if xid is None else xid)
    return Event(b"%036d" % n, b"%d" % n, own, b"t", None, payload, None, None, b"2026-11-23")


def drained(decoder: Decoder) -> list[Batch]:
    batches = []
    while (batch := decoder.take()) is not None:
        batches.append(batch)
    return batches


texts = st.none() | st.binary(max_size=300)
rows = st.builds(
    Event,
    st.binary(min_size=36, max_size=36),
    st.integers(0, 2**63 - 1).map(lambda n: b"%d" % n),
    st.integers(3, 2**63 - 1).map(lambda n: b"%d" % n),
    st.binary(min_size=1, max_size=300),
    texts,
    st.binary(max_size=70_000),
    texts,
    texts,
    st.none() | st.binary(max_size=40),
)


@given(st.lists(rows, min_size=1, max_size=5), st.permutations(list(Event._fields)))
def test_a_row_is_read_as_it_was_sent_in_any_order_of_columns(sent: list[Event], order: list[str]) -> None:
    decoder = Decoder("outbox", "event", NAMES)
    columns = [*order[:4], "added_by_the_customer", *order[4:]]
    decoder.feed([relation(columns)])
    for row in sent:
        values = [row._asdict().get(name, b"x" * 1000) for name in columns]
        decoder.feed([begin(int(row.xid) & 0xFFFFFFFF), insert(values), commit(100)])
    assert [e for batch in drained(decoder) for e in batch.events] == sent


@given(st.lists(st.integers(0, 7), min_size=1, max_size=30), st.integers(1, 9))
def test_batches_hold_whole_transactions_or_chunks_of_one_and_lose_nothing(
    sizes: list[int], limit: int
) -> None:
    decoder = Decoder("outbox", "event", NAMES, max_events=limit)
    decoder.feed([relation(list(Event._fields))])
    sent, expected = 0, []
    for number, size in enumerate(sizes):
        some = [event(sent + n, xid=number) for n in range(size)]
        sent += size
        expected += some
        decoder.feed([begin(number), *(insert(list(e)) for e in some), commit(100 + number)])
    batches = drained(decoder)
    assert [e for batch in batches for e in batch.events] == expected
    ends = [lsn for batch in batches for lsn in batch.end_lsns]
    assert ends == [100 + number for number, size in enumerate(sizes) if size]
    assert all(batch.chunk or (batch.whole and batch.end_lsn) for batch in batches)


KEEPALIVE = b"k" + pack("!QQB", 5, 0, 1)


EPOCH = 1 << 32


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("transactions", [1, 8])
def test_a_row_with_another_xid_than_its_transaction_is_told_apart(rows: int, transactions: int) -> None:
    """One by one and by columns; Begin knows the lower half of a xid8."""
    decoder = Decoder("outbox", "event", NAMES)
    messages, good, bad = [relation(list(Event._fields))], [], []
    for number in range(transactions):
        some = [event(number * 10 + n, xid=3 * EPOCH + 700 + number) for n in range(rows)]
        if number == transactions - 1:
            wrong = event(900, xid=3 * EPOCH + 701 + number)
            for stray in (wrong, wrong._replace(xid=b"0")):
                some.insert(0, stray)
                bad.append(stray)
            some = some if rows > 1 else some[:1]
            bad = bad if rows > 1 else bad[-1:]
        good += [one for one in some if one not in bad]
        messages += [begin(700 + number), *(insert(list(one)) for one in some), commit(100 + number)]
    decoder.feed(messages)
    batches = drained(decoder)
    assert [one for batch in batches for one in batch.events] == good
    assert sorted(batches[-1].strays, key=str) == sorted(bad, key=str)
    assert not any(batch.strays for batch in batches[:-1])
    assert batches[-1].end_lsn == 99 + transactions
    assert not batches[-1].replicated


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("partitioned", [False, True])
def test_a_row_without_an_xid_has_that_of_its_transaction(rows: int, partitioned: bool) -> None:
    """Where rows can move, it may have come before."""
    decoder = Decoder("outbox", "event", NAMES)
    decoder.expect(Layout(tuple(Event._fields), partitioned=partitioned, next_xid=3 * EPOCH + 5))
    bare = event(1)._replace(xid=None)  # type: ignore[arg-type]
    some = [bare, *(event(n, xid=3 * EPOCH + 700) for n in range(2, rows + 1))]
    messages = [begin(700), *(insert(list(one)) for one in some), commit(50)]
    decoder.feed([relation(list(Event._fields)), *messages])
    own = event(1, xid=3 * EPOCH + 700)
    [batch] = drained(decoder)
    assert batch.events == (some[1:] if partitioned else [own, *some[1:]])
    assert batch.strays == ([bare] if partitioned else [])
    assert batch.xids == ([] if partitioned and rows == 1 else [3 * EPOCH + 700])


def test_rows_of_one_seq_or_without_are_never_taken_for_moved_ones() -> None:
    """seq may be a version per aggregate, or NULL."""
    for counted, most in ((False, 2), (False, 100), (True, 100)):
        decoder = Decoder("outbox", "event", NAMES, max_events=most)
        decoder.expect(Layout(tuple(Event._fields), partitioned=True, counted=counted))
        same = [event(n, xid=5)._replace(seq=b"1") for n in range(6)]
        bare = [event(7, xid=5)._replace(seq=None)] * 2  # type: ignore[arg-type]
        rows = [*same, *bare]
        moved = [insert(list(one)) for one in same]
        decoder.feed(
            [
                relation(list(Event._fields)),
                begin(5),
                *(insert(list(one)) for one in rows),
                *moved,
                commit(50),
            ]
        )
        expected = [*same, *(one._replace(seq=b"-0") for one in bare)]
        assert [one for batch in drained(decoder) for one in batch.events] == expected


def test_what_native_replication_wrote_says_so_of_every_transaction_alone() -> None:
    decoder = Decoder("outbox", "event", NAMES)
    origin = message(b"O" + pack("!Q", 7) + b"pg_16389\0")
    theirs = [begin(1), origin, insert(list(event(1))), commit(50)]
    ours = [begin(2), insert(list(event(2))), commit(60)]
    decoder.feed([relation(list(Event._fields)), *theirs, *ours])
    assert [(len(batch.strays), batch.replicated) for batch in drained(decoder)] == [(1, True), (1, False)]


def test_rows_that_their_own_transaction_moved_come_once_as_inserted() -> None:
    decoder = Decoder("outbox", "event", NAMES)
    decoder.expect(Layout(tuple(Event._fields), partitioned=True))
    first, moved = event(1), event(1, payload=b'{"moved": 1}')
    rows = [insert(list(one)) for one in (first, event(2, xid=701), moved)]
    decoder.feed([relation(list(Event._fields)), begin(701), *rows, commit(50)])
    assert [batch.events for batch in drained(decoder)] == [[first, event(2, xid=701)]]


def test_rows_that_their_own_huge_transaction_moved_come_in_one_chunk() -> None:
    decoder = Decoder("outbox", "event", NAMES, max_events=2)
    decoder.expect(Layout(tuple(Event._fields), partitioned=True))
    rows = [event(n, xid=5) for n in range(10)]
    twice = [insert(list(one)) for one in (*rows, *rows)]
    other = [begin(6), insert(list(event(3, xid=6))), commit(60)]  # another one may have its seqs
    decoder.feed([relation(list(Event._fields)), begin(5), *twice, commit(50), *other])
    assert [one for batch in drained(decoder) for one in batch.events] == [*rows, event(3, xid=6)]


OLDER = [name for name in Event._fields if name not in ("xid", "seq")]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("epoch", [0, 3])
def test_rows_from_before_the_column_have_the_xid_of_their_transaction(rows: int, epoch: int) -> None:
    decoder = Decoder("outbox", "event", NAMES)
    decoder.expect(Layout((*OLDER, "seq", "xid"), next_xid=epoch * EPOCH + 5))
    messages = [relation(OLDER)]
    for xid in (700, 701, 702, 703, 704, 0xFFFFFFFF if epoch else 705):
        one = event(1)._asdict()
        some = [insert([one[name] for name in OLDER])] * rows
        messages += [begin(xid), *some, commit(xid & 0xFFFF)]
    newer = event(9, xid=epoch * EPOCH + 9)
    messages += [relation([*OLDER, "seq", "xid"])]
    messages += [begin(9), insert([newer._asdict()[name] for name in (*OLDER, "seq", "xid")]), commit(70000)]
    decoder.feed(messages)
    xids = [int(one.xid) - epoch * EPOCH for batch in drained(decoder) for one in batch.events]
    last = -1 if epoch else 705
    assert xids == [xid for xid in (700, 701, 702, 703, 704, last) for _ in range(rows)] + [9]


@pytest.mark.parametrize("older", [["id", "type", "renamed", "payload"], ["id", "type", "payload", "later"]])
def test_a_column_that_was_renamed_is_not_taken_for_one_that_was_added(older: list[str]) -> None:
    decoder = Decoder("outbox", "event", {"id": "id", "type": "type", "payload": "payload", "xid": "xid"})
    decoder.expect(Layout(("id", "type", "payload", "xid", "later")))
    with pytest.raises(Halt, match="no longer has the column 'xid'"):
        decoder.feed([relation(older)])


def test_strays_of_a_transaction_larger_than_memory_come_with_its_chunks() -> None:
    decoder = Decoder("outbox", "event", NAMES, max_events=2)
    rows = [event(n, xid=5 if n % 2 else 900) for n in range(10)]
    decoder.feed([relation(list(Event._fields)), begin(5), *(insert(list(one)) for one in rows), commit(50)])
    batches = drained(decoder)
    assert len(batches) > 2
    assert [one for batch in batches for one in batch.events] == rows[1::2]
    assert [one for batch in batches for one in batch.strays] == rows[0::2]
    assert [batch.xids for batch in batches] == [[] for _ in batches[1:]] + [[5]]


@given(
    st.lists(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 0, 2, 5]), min_size=1, max_size=60),
    st.lists(st.integers(0, 200), max_size=5),
    st.integers(1, 25),
    st.integers(100, 5000),
    st.dictionaries(
        st.integers(0, 59), st.sampled_from(["keepalive", "relation", "other", "stray"]), max_size=5
    ),
)
def test_messages_fed_together_make_the_batches_of_those_fed_one_by_one(
    sizes: list[int],
    cuts: list[int],
    limit: int,
    size: int,
    between: dict[int, str],
) -> None:
    """Transactions of one row are read by columns where many of them come in a row."""
    messages, n = [relation(list(Event._fields)), relation(["a"], 17, b"other")], 0
    for number, rows in enumerate(sizes):
        some = [
            insert(list(event(n + row, xid=number + (between.get(number) == "stray")))) for row in range(rows)
        ]
        n += rows
        if between.get(number) == "other":
            some = [insert([b"1"], 17)]
        transaction = [begin(number), *some, commit(100 + number, number)]
        if between.get(number) in ("keepalive", "relation"):
            extra = {"keepalive": KEEPALIVE, "relation": relation(list(Event._fields))}[between[number]]
            transaction.insert(1, extra)
        messages += transaction
    together, apart = (Decoder("outbox", "event", NAMES, max_events=limit, max_bytes=size) for _ in range(2))
    places = sorted({0, *cuts, len(messages)})
    for start, stop in pairwise(places):
        together.feed(messages[start:stop])
    for one in messages:
        apart.feed([one])
    assert (together.wal_end, together.reply_wanted) == (apart.wal_end, apart.reply_wanted)
    assert drained(together) == drained(apart)
    assert together.drained


def test_rows_of_other_tables_and_empty_transactions_are_passed_over() -> None:
    decoder = Decoder("outbox", "event", NAMES)
    decoder.feed([relation(list(Event._fields)), relation(["a"], 17, b"other")])
    decoder.feed([begin(1), insert([b"1"], 17), commit(50), begin(2), commit(60)])
    assert drained(decoder) == []
    assert decoder.drained


def test_a_table_altered_in_between_is_read_by_its_new_layout() -> None:
    decoder = Decoder("outbox", "event", NAMES)
    first, second = event(1), event(2)
    decoder.feed([relation(list(Event._fields)), begin(701), insert(list(first)), commit(50)])
    decoder.feed([relation(["more", *Event._fields]), begin(702), insert([b"more", *second]), commit(60)])
    assert drained(decoder)[0].events == [first, second]


def test_an_outbox_without_seq_and_xid_counts_them_as_zero() -> None:
    decoder = Decoder("outbox", "event", {"id": "id", "type": "kind", "payload": "payload"})
    decoder.feed([relation(["id", "kind", "payload"]), begin(1), insert([b"a", b"b", b"{}"]), commit(50)])
    assert drained(decoder)[0].events == [Event(b"a", b"0", b"0", b"b", None, b"{}", None, None, None)]


def test_a_value_that_was_not_sent_halts_with_the_reason() -> None:
    decoder = Decoder("outbox", "event", NAMES)
    unchanged = message(b"I" + pack("!I", OID) + b"N" + pack("!H", 9) + b"u")
    decoder.feed([relation(list(Event._fields)), begin(1)])
    with pytest.raises(Halt) as halt:
        decoder.feed([unchanged])
    assert halt.value.reason == "stream_format"


@pytest.mark.parametrize("column", Event._fields)
def test_a_column_that_was_renamed_halts_with_its_name(column: str) -> None:
    decoder = Decoder("outbox", "event", NAMES)
    with pytest.raises(Halt, match=f"no longer has the column '{column}'"):
        decoder.feed([relation([name for name in Event._fields if name != column])])
