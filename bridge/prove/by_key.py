"""Tables in which the last event of a key stays, and tables without identity.

By key: equal keys are told by the target (equal_keys.py); what is expected is in a file on disk. With `version` the
last one is known. Without it the last commit wins, which the outbox does not record: a row that equals an earlier event
of its key is undecided, one that equals none differs. Without identity: the multiset of the mapped columns, by a 4096th
of their hashes.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path

from psycopg import sql

from bridge.planning.plan import Column
from bridge.prove.digest import ask, stream, unnested, whole
from bridge.prove.equal_keys import KeyForm
from bridge.prove.expected import Wanted
from bridge.prove.side import Comparison, Sides, accepted

_AT_ONCE = 500_000  # rows whose hashes are held in memory


def compare_by_rows(sides: Sides, found: Comparison) -> None:
    """Fill `found`. If the table may contain rows of events that are not compared (pruned, or outside the period),
    only missing rows can be found."""
    actual = {
        bucket: (count, int(total))
        for bucket, count, total in sides.target.execute(_sums(_actual_rows(sides)))
    }
    expected: dict[int, tuple[int, int]] = {}
    for events in sides.expectation.events(sides.source):
        wanted = sides.expectation.wanted(events)
        hashed, refused = _hashed(sides, sides.alive(wanted))
        for _, h in hashed:
            count, total = expected.get(h & 4095, (0, 0))
            expected[h & 4095] = (count + 1, total + h)
        for name in [*sides.undead(wanted), *refused]:
            found.lost.add(f"{name} (it cannot be a row, and is not a dead letter)")
    found.expected = sum(count for count, _ in expected.values())
    found.expected += found.lost.count + found.dead_open + len(found.dead_discarded)
    found.present = sum(count for count, _ in actual.values())
    found.buckets = len(actual.keys() | expected.keys())
    differing = sorted(b for b in actual.keys() | expected.keys() if actual.get(b) != expected.get(b))
    found.buckets_differing = len(differing)
    part: list[int] = []
    rows = 0
    for bucket in differing:
        part.append(bucket)
        rows += actual.get(bucket, (0, 0))[0] + expected.get(bucket, (0, 0))[0]
        if rows >= _AT_ONCE or bucket == differing[-1]:
            _descend(sides, part, found)
            part, rows = [], 0


def _partial(sides: Sides) -> bool:
    window = sides.window
    return sides.may_be_pruned or window.since is not None or window.until is not None


def _actual_rows(sides: Sides) -> sql.Composed:
    names = [sql.SQL("t.") + sql.Identifier(column.name) for column in sides.subject.columns]
    table = sql.Identifier(sides.subject.schema, sides.subject.table)
    return sql.SQL("(select {} as h from {} as t where {})").format(whole(names), table, sides.subject.own())


def _sums(rows: sql.Composable) -> sql.Composed:
    return sql.SQL("select (h & 4095)::int, count(*), sum(h) from {} as q group by 1").format(rows)


def _hashed(sides: Sides, wanted: Wanted) -> tuple[list[tuple[str, int]], list[str]]:
    """(event id, hash), and the ids whose values the table's types do not accept."""
    columns = sides.subject.columns
    places = [sql.SQL("q.") + sql.Identifier(f"c{n}") for n in range(len(columns))]
    query = sql.SQL("select {} from {} as q order by q.n").format(whole(places), unnested(columns))
    answers, refused = accepted(wanted, lambda some: ask(sides.cast, query, [some.ids, *some.columns]))
    hashed = [
        (name.decode(), int(h or 0))
        for part, rows in answers
        for name, (h,) in zip(part.ids, rows, strict=True)
    ]
    return hashed, [name.decode() for name in refused]


def _descend(sides: Sides, buckets: Sequence[int], found: Comparison) -> None:
    chosen = set(buckets)
    query = sql.SQL("select h, count(*) from {} as q where (h & 4095)::int = any({}) group by 1").format(
        _actual_rows(sides), sql.Literal(list(buckets))
    )
    left: Counter[int] = Counter(dict(sides.target.execute(query).fetchall()))
    asked: dict[int, str] = {}
    for events in sides.expectation.events(sides.source):
        hashed, _ = _hashed(sides, sides.alive(sides.expectation.wanted(events)))
        for name, h in hashed:
            if h & 4095 not in chosen:
                continue
            asked[h] = name
            if left[h] > 0:
                left[h] -= 1
            elif sides.subject.certain:
                found.lost.add(f"{name} (no row equals it)")
            else:
                found.undecided += 1
    _left_over(sides, left, asked, found)


def _left_over(sides: Sides, left: Counter[int], asked: Mapping[int, str], found: Comparison) -> None:
    """Rows that equal no event. asked: the events' own hashes."""
    for h, count in left.items():
        if not count:
            continue
        if _partial(sides):
            found.pruned += count
        elif h in asked:
            found.doubled.add(f"{asked[h]} ({count} more equal rows than events)")
        elif sides.subject.mixed:
            found.elsewhere += count
        else:
            for _ in range(count):
                found.unexpected.add("a row that equals no event")


_CHUNK = 2000
_REPLAYED = 5000  # keys whose earlier events are looked at again

Expected = tuple[str, str | int | float, int, str, int]
"""(key, version, seq, event id, hash of the compared columns)."""

_SCHEMA = "create table latest (k text primary key, version, seq int, id text, h int, seen int default 0) without rowid"
_LATEST = (
    "insert into latest (k, version, seq, id, h) values (?, ?, ?, ?, ?) on conflict (k) do update set"
    " version = excluded.version, seq = excluded.seq, id = excluded.id, h = excluded.h"
    " where (excluded.version, excluded.seq) {} (latest.version, latest.seq)"
)


def compare_by_key(sides: Sides, found: Comparison) -> None:
    """Fill `found`. Rows whose key no event of the outbox has are not compared."""
    with (
        tempfile.TemporaryDirectory(prefix="bridge-prove-") as directory,
        closing(sqlite3.connect(Path(directory) / "latest")) as keys,
    ):
        keys.execute("pragma journal_mode = off")
        keys.execute("pragma synchronous = off")
        keys.execute(_SCHEMA)
        insert = _LATEST.format(">" if sides.subject.latest else "<")
        form = KeyForm(sides)
        for rows in _expected(sides, form, found):
            keys.executemany(insert, rows)
        (count,) = keys.execute("select count(*) from latest").fetchone()
        found.expected = count + found.lost.count
        differing: dict[str, tuple[str, int]] = {}
        for chunk in _chunks(_actual(sides, form)):
            _match(sides, keys, chunk, found, differing)
        for (name,) in keys.execute("select id from latest where not seen"):
            if sides.subject.certain:
                found.lost.add(f"{name} (the last event of its key)")
            else:
                found.undecided += 1
        _earlier(sides, form, differing, found)
    found.expected += found.dead_open + len(found.dead_discarded)


def _expected(sides: Sides, form: KeyForm, found: Comparison | None = None) -> Iterator[list[Expected]]:
    """found: gets events that cannot be rows and are not dead letters."""
    for events in sides.expectation.events(sides.source):
        wanted = sides.expectation.wanted(events)
        rows, refused = _rows(sides, form, sides.alive(wanted))
        yield rows
        if found is not None:
            for name in [*sides.undead(wanted), *refused]:
                found.lost.add(f"{name} (it cannot be a row, and is not a dead letter)")


def _rows(sides: Sides, form: KeyForm, wanted: Wanted) -> tuple[list[Expected], list[str]]:
    """Cast and hashed by the target. A null in a key never conflicts, so such rows are left out. And the ids whose
    values the table's types do not accept."""
    subject = sides.subject
    columns = [*subject.columns, *subject.key]
    if subject.version:
        columns.append(next(iter((subject.shapes or {}).values())).columns[subject.version])
    place = [sql.SQL("q.") + sql.Identifier(f"c{n}") for n in range(len(columns))]
    compared = place[: len(subject.columns)]
    key = place[len(subject.columns) : len(subject.columns) + len(subject.key)]
    query = sql.SQL("select {}, {}, {}, num_nulls({}) from {} as q order by q.n").format(
        form.text(key),
        whole(compared) if compared else sql.SQL("0"),
        _ordered(columns[-1]).format(place[-1]) if subject.version else sql.SQL("null::text"),
        sql.SQL(", ").join(key),
        unnested(columns),
    )
    answers, refused = accepted(wanted, lambda some: ask(sides.cast, query, [some.ids, *some.columns]))
    rows = [
        (str(k), _rank(version), seq, name.decode(), int(h or 0))
        for part, answer in answers
        for (k, h, version, nulls), seq, name in zip(answer, part.seqs, part.ids, strict=True)
        if nulls == "0"
    ]
    return rows, [name.decode() for name in refused]


_DATED = frozenset({"date", "timestamp without time zone", "timestamp with time zone"})


def _ordered(column: Column) -> sql.SQL:
    """A version's text that _rank() can order. Texts of dates have no order: infinity, before Christ, after 9999."""
    if column.type_sql in _DATED:
        return sql.SQL("(extract(epoch from {}) * 1000000)::text")
    return sql.SQL("{}::text")


def _rank(version: str | None) -> str | int | float:
    """A value that SQLite orders like the column's type: numbers, otherwise the ISO text."""
    if version is None:
        return -(2**62)
    try:
        number = Decimal(version)
    except InvalidOperation:
        return version
    return int(number) if number == number.to_integral_value() and abs(number) < 2**62 else float(number)


def _actual(sides: Sides, form: KeyForm) -> Iterator[tuple[str, int]]:
    """(key, hash) of every row of the table."""
    subject = sides.subject
    names = [sql.SQL("t.") + sql.Identifier(column.name) for column in subject.columns]
    query = sql.SQL("select {}, {} from {} as t where {}").format(
        form.text([sql.SQL("t.") + sql.Identifier(column.name) for column in subject.key]),
        whole(names) if names else sql.SQL("0"),
        sql.Identifier(subject.schema, subject.table),
        subject.own(),
    )
    yield from stream(sides.target, query)


def _chunks(rows: Iterator[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def _match(
    sides: Sides,
    keys: sqlite3.Connection,
    chunk: list[tuple[str, int]],
    found: Comparison,
    differing: dict[str, tuple[str, int]],
) -> None:
    marks = ",".join("?" * len(chunk))
    query = f"select k, id, h from latest where k in ({marks})"
    latest = {k: (name, h) for k, name, h in keys.execute(query, [k for k, _ in chunk])}
    keys.executemany("update latest set seen = 1 where k = ?", [(k,) for k in latest])
    for k, h in chunk:
        if k not in latest:
            continue
        found.present += 1
        name, wanted = latest[k]
        if h == wanted:
            continue
        if sides.subject.version is None and len(differing) < _REPLAYED:
            differing[k] = (name, h)
        else:
            found.differing.add(f"{name} (the last event of its key)")


def _earlier(sides: Sides, form: KeyForm, differing: dict[str, tuple[str, int]], found: Comparison) -> None:
    """Do rows that are not their key's last event equal an earlier one?"""
    if not differing:
        return
    earlier: set[str] = set()
    for rows in _expected(sides, form):
        earlier.update(row[0] for row in rows if row[0] in differing and differing[row[0]][1] == row[4])
    for k, (name, _) in differing.items():
        if k in earlier:
            found.undecided += 1
        else:
            found.differing.add(f"{name} (the last event of its key)")
    if earlier:
        found.notes.append(
            f"{len(earlier)} rows hold an earlier event of their key than the last by seq: right where the two "
            "transactions ran side by side; `version: $meta.seq` makes it certain"
        )
