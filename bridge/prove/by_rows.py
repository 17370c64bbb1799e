"""Tables without identity: the multiset of the mapped columns, by a 4096th of their hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from bridge.prove.digest import ask, unnested, whole
from bridge.prove.expected import Wanted
from bridge.prove.findings import Comparison
from bridge.prove.side import Sides, refused_for_data

_AT_ONCE = 500_000  # rows whose hashes are held in memory


def compare_by_rows(sides: Sides, found: Comparison) -> None:
    """Fill `found`. Where the table may hold rows of events that are not compared (pruned ones, or another
    time), only what is missing can be told."""
    actual = {
        bucket: (count, int(total)) for bucket, count, total in sides.target.execute(_sums(_actual(sides)))
    }
    expected: dict[int, tuple[int, int]] = {}
    for events in sides.expectation.events(sides.source):
        wanted = sides.expectation.wanted(events)
        refused = sides.undead(wanted)
        for _, h in _hashed(sides, sides.alive(wanted), refused):
            count, total = expected.get(h & 4095, (0, 0))
            expected[h & 4095] = (count + 1, total + h)
        for name in refused:
            found.lost.add(f"{name} (it cannot be a row, and is no dead letter)")
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


def _actual(sides: Sides) -> sql.Composed:
    names = [sql.SQL("t.") + sql.Identifier(column.name) for column in sides.subject.columns]
    table = sql.Identifier(sides.subject.schema, sides.subject.table)
    return sql.SQL("(select {} as h from {} as t)").format(whole(names), table)


def _sums(rows: sql.Composable) -> sql.Composed:
    return sql.SQL("select (h & 4095)::int, count(*), sum(h) from {} as q group by 1").format(rows)


def _hashed(sides: Sides, wanted: Wanted, refused: list[str]) -> Iterator[tuple[str, int]]:
    """(event id, hash); `refused` gets the ids whose values the table's types do not take."""
    if not wanted.ids:
        return
    columns = sides.subject.columns
    places = [sql.SQL("q.") + sql.Identifier(f"c{n}") for n in range(len(columns))]
    query = sql.SQL("select {} from {} as q order by q.n").format(whole(places), unnested(columns))
    try:
        answer = ask(sides.cast, query, [wanted.ids, *wanted.columns])
    except psycopg.Error as error:
        if not refused_for_data(error):
            raise
        if len(wanted.ids) > 1:
            middle = len(wanted.ids) // 2
            for half in (range(middle), range(middle, len(wanted.ids))):
                yield from _hashed(sides, wanted.pick(half), refused)
        else:
            refused += [name.decode() for name in wanted.ids]
        return
    for name, (h,) in zip(wanted.ids, answer, strict=True):
        yield name.decode(), int(h or 0)


def _descend(sides: Sides, buckets: Sequence[int], found: Comparison) -> None:
    chosen = set(buckets)
    query = sql.SQL("select h, count(*) from {} as q where (h & 4095)::int = any({}) group by 1").format(
        _actual(sides), sql.Literal(list(buckets))
    )
    left: Counter[int] = Counter(dict(sides.target.execute(query).fetchall()))
    asked: dict[int, str] = {}
    for events in sides.expectation.events(sides.source):
        for name, h in _hashed(sides, sides.alive(sides.expectation.wanted(events)), []):
            if h & 4095 not in chosen:
                continue
            asked[h] = name
            if left[h] > 0:
                left[h] -= 1
            elif sides.subject.certain:
                found.lost.add(f"{name} (no row equals it)")
            else:
                found.undecided += 1
    for h, count in left.items():
        if not count:
            continue
        if _partial(sides):
            found.pruned += count
        elif h in asked:
            found.doubled.add(f"{asked[h]} ({count} more equal rows than events)")
        else:
            for _ in range(count):
                found.unexpected.add("a row that equals no event")
