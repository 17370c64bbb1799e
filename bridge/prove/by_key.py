"""Tables in which the last event of a key stays: what is expected is kept in a file on disk, by key.

With `version` the last one is known. Without it the last commit wins, which the outbox does not record: a row
that equals an earlier event of its key is undecided, one that equals none differs.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path

import psycopg
from psycopg import sql

from bridge.prove.digest import ask, stream, unnested, whole
from bridge.prove.expected import Wanted
from bridge.prove.findings import Comparison
from bridge.prove.side import Sides, refused_for_data

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
    """Fill `found`. Rows of the table whose keys no event of the outbox has are not judged."""
    with (
        tempfile.TemporaryDirectory(prefix="bridge-prove-") as directory,
        closing(sqlite3.connect(Path(directory) / "latest")) as keys,
    ):
        keys.execute("pragma journal_mode = off")
        keys.execute("pragma synchronous = off")
        keys.execute(_SCHEMA)
        insert = _LATEST.format(">" if sides.subject.latest else "<")
        for rows in _expected(sides, found):
            keys.executemany(insert, rows)
        (count,) = keys.execute("select count(*) from latest").fetchone()
        found.expected = count + found.lost.count
        differing: dict[str, tuple[str, int]] = {}
        for chunk in _chunks(_actual(sides)):
            _match(sides, keys, chunk, found, differing)
        for (name,) in keys.execute("select id from latest where not seen"):
            if sides.subject.certain:
                found.lost.add(f"{name} (the last event of its key)")
            else:
                found.undecided += 1
        _earlier(sides, differing, found)
    found.expected += found.dead_open + len(found.dead_discarded)


def _expected(sides: Sides, found: Comparison | None = None) -> Iterator[list[Expected]]:
    """found: told of events that cannot be rows, and that are no dead letters."""
    for events in sides.expectation.events(sides.source):
        wanted = sides.expectation.wanted(events)
        refused = sides.undead(wanted)
        yield _rows(sides, sides.alive(wanted), refused)
        if found is not None:
            for name in refused:
                found.lost.add(f"{name} (it cannot be a row, and is no dead letter)")


def _rows(sides: Sides, wanted: Wanted, refused: list[str]) -> list[Expected]:
    """Cast and hashed by the target; a null in a key is never in conflict, and left out."""
    if not wanted.ids:
        return []
    subject = sides.subject
    columns = [*subject.columns, *subject.key]
    if subject.version:
        columns.append(next(iter((subject.shapes or {}).values())).columns[subject.version])
    place = [sql.SQL("q.") + sql.Identifier(f"c{n}") for n in range(len(columns))]
    compared = place[: len(subject.columns)]
    key = place[len(subject.columns) : len(subject.columns) + len(subject.key)]
    query = sql.SQL("select row({})::text, {}, {}, num_nulls({}) from {} as q order by q.n").format(
        sql.SQL(", ").join(key),
        whole(compared) if compared else sql.SQL("0"),
        sql.SQL("{}::text").format(place[-1]) if subject.version else sql.SQL("null::text"),
        sql.SQL(", ").join(key),
        unnested(columns),
    )
    try:
        answer = ask(sides.cast, query, [wanted.ids, *wanted.columns])
    except psycopg.Error as error:
        if not refused_for_data(error):
            raise
        if len(wanted.ids) == 1:
            refused.append(wanted.ids[0].decode())
            return []
        middle = len(wanted.ids) // 2
        halves = (range(middle), range(middle, len(wanted.ids)))
        return [row for places in halves for row in _rows(sides, wanted.pick(places), refused)]
    return [
        (str(k), _rank(version), seq, name.decode(), int(h or 0))
        for (k, h, version, nulls), seq, name in zip(answer, wanted.seqs, wanted.ids, strict=True)
        if nulls == "0"
    ]


def _rank(version: str | None) -> str | int | float:
    """What SQLite orders as the column's type would: numbers, else the ISO text."""
    if version is None:
        return -(2**62)
    try:
        number = Decimal(version)
    except InvalidOperation:
        return version
    return int(number) if number == number.to_integral_value() and abs(number) < 2**62 else float(number)


def _actual(sides: Sides) -> Iterator[tuple[str, int]]:
    """(key, hash) of every row of the table."""
    subject = sides.subject
    names = [sql.SQL("t.") + sql.Identifier(column.name) for column in subject.columns]
    query = sql.SQL("select row({})::text, {} from {} as t").format(
        sql.SQL(", ").join(sql.SQL("t.") + sql.Identifier(column.name) for column in subject.key),
        whole(names) if names else sql.SQL("0"),
        sql.Identifier(subject.schema, subject.table),
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


def _earlier(sides: Sides, differing: dict[str, tuple[str, int]], found: Comparison) -> None:
    """Do rows that are not their key's last event equal an earlier one?"""
    if not differing:
        return
    earlier: set[str] = set()
    for rows in _expected(sides):
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
