"""Tables and sinks in which every event has a row of its own: buckets first, then only those that differ.

Where a mapping is plain, the expected sums come straight from the source's SQL: no planner, no rows over the wire.
That is only a first look: whatever differs is looked at again through the planner, so a cast in which SQL and the
planner disagree costs time, never a wrong finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import psycopg
from psycopg import sql

from bridge.expressions.expression import Expression
from bridge.planning.plan import Column
from bridge.planning.rows import classify
from bridge.planning.spec import TableSpec
from bridge.prove.digest import Digest, Link, Sums, bucket, whole
from bridge.prove.expected import Wanted
from bridge.prove.side import Comparison, Sides, accepted
from bridge.prove.subject import EMPTIED

_MANY_DEAD = 1000


def plain_sums(sides: Sides) -> Sums | None:
    """Sums by bucket, like Digest.target_sums; None if the mapping or the servers do not allow it."""
    values = _values(sides)
    if values is None or not _hash_alike(sides):
        return None
    outbox, subject = sides.outbox, sides.subject
    patterns = subject.pipelines[0].events
    identity = sql.SQL("{}::text").format(outbox.column("id"))
    dead = sorted({event for event, _ in sides.dead.states})
    inner = sql.SQL(
        "select {id} as id, {hash} as h from {table} where {applied} and {window} and {type} = any({types})"
        " and coalesce({headers}::text <> {emptied}, true) and {id} <> all({dead}::text[]) offset 0"
    ).format(
        id=identity,
        hash=whole([identity, *values]),
        table=outbox.name,
        applied=sides.applied.predicate(outbox),
        window=sides.window.predicate(identity),
        type=outbox.column("type"),
        types=sql.Literal(list(patterns)),
        headers=outbox.column("headers"),
        emptied=sql.Literal(EMPTIED.decode()),
        dead=sql.Literal(dead),
    )
    query = sql.SQL("select {}, count(*), sum(q.h) from ({}) as q group by 1").format(
        bucket(sql.SQL("q.id")), inner
    )
    sides.source.execute("savepoint plain")
    try:
        found = {name: (count, int(total)) for name, count, total in sides.source.execute(query)}
    except (psycopg.errors.DataError, psycopg.errors.ProgrammingError):
        sides.source.execute("rollback to savepoint plain")
        return None
    sides.source.execute("release savepoint plain")
    return found


def _values(sides: Sides) -> list[sql.Composable] | None:
    """The compared columns as expressions over a row of the outbox."""
    subject = sides.subject
    if subject.sink or len(subject.units) != 1 or len(sides.dead.states) > _MANY_DEAD:
        return None
    (pipeline,) = subject.pipelines
    spec = pipeline.destinations[subject.units[0][1]]
    if not isinstance(spec, TableSpec) or spec.columns is None or not subject.certain:
        return None
    if pipeline.branches is not None or any(c in p for p in pipeline.events for c in "*?["):
        return None
    if any(step.effect != "adds" for step in pipeline.steps):
        return None
    values: list[sql.Composable] = []
    for column in subject.columns:
        value = _value(sides, spec.columns.get(column.name, spec.version), column)
        if value is None:
            return None
        values.append(value)
    return values


def _value(sides: Sides, written: object, column: Column) -> sql.Composed | None:
    source = classify(written)
    if not isinstance(source, Expression) or source.plain_path is None or column.kind in ("array", "bytea"):
        return None
    root, *rest = source.plain_path
    payload = sql.SQL("{}::jsonb").format(sides.outbox.column("payload"))
    declared = sql.SQL(column.declared or column.type_sql)
    names = [str(name) for name in rest]
    own = root == "meta" and len(names) == 1 and names[0] in sides.outbox.columns  # `source` is no column
    if own and column.kind != "json":
        return sql.SQL("{}::text::{}").format(sides.outbox.column(names[0]), declared)
    if root != "event":
        return None
    if not names:
        return sql.SQL("{}::text::{}").format(sides.outbox.column("payload"), declared)
    if column.kind == "json":
        return sql.SQL("nullif({} #> {}, 'null'::jsonb)::{}").format(payload, sql.Literal(names), declared)
    return sql.SQL("({} #>> {})::{}").format(payload, sql.Literal(names), declared)


def _hash_alike(sides: Sides) -> bool:
    return _probe(sides.source) == _probe(sides.target)


def _probe(connection: Link) -> object:
    return connection.execute(
        "select hashtextextended('(probe,\u00e9)', 0), current_setting('server_encoding')"
    ).fetchone()


_ASK = 1000

Hashes = list[str] | None
"""The hash of each compared column; None: nothing to compare with."""


def compare_by_event(sides: Sides, found: Comparison) -> None:
    """Fill `found`."""
    digest = Digest(sides.subject, sides.window)
    with ThreadPoolExecutor(1) as beside:  # both servers at once
        asked = beside.submit(digest.target_sums, sides.target)
        expected, suspicious = _expected_sums(sides, digest)
        actual = asked.result()
    found.buckets = len(actual.keys() | expected.keys())
    alive = sum(count for count, _ in expected.values())
    found.present = sum(count for count, _ in actual.values())
    differing = {name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name)}
    differing |= suspicious
    found.buckets_differing = len(differing)
    found.expected = alive + found.dead_open + len(found.dead_discarded)
    if differing:
        found.expected -= sum(expected.get(name, (0, 0))[0] for name in differing)
        _descend(sides, digest, sorted(differing), found)


def _expected_sums(sides: Sides, digest: Digest) -> tuple[Sums, set[str]]:
    """Sums by bucket, and buckets with events that cannot be summed: refused by the planner or by a cast, and not a
    dead letter."""
    if (plain := plain_sums(sides)) is not None:
        return plain, set()
    total: Sums = {}
    odd: list[bytes] = []
    for events in sides.expectation.events(sides.source):
        wanted = _one_row_an_event(sides, sides.alive(sides.expectation.wanted(events)))
        odd += [name for name, unit in wanted.dead if not sides.dead.has(name, unit)]
        sums, refused = accepted(
            wanted, lambda some: digest.expected_sums(sides.cast, some.ids, some.columns)
        )
        odd += refused
        for _, part in sums:
            for name, (count, hashes) in part.items():
                before = total.get(name, (0, 0))
                total[name] = (before[0] + count, before[1] + hashes)
    return total, _buckets_of(sides, digest, odd)


def _one_row_an_event(sides: Sides, wanted: Wanted) -> Wanted:
    """If the id is unique, two units that write one event here make one row: the last unit's."""
    if not sides.subject.unique or len(sides.subject.units) == 1:
        return wanted
    last = {name: n for n, name in enumerate(wanted.ids)}
    return wanted if len(last) == len(wanted.ids) else wanted.pick(sorted(last.values()))


def _buckets_of(sides: Sides, digest: Digest, odd: list[bytes]) -> set[str]:
    if not odd:
        return set()
    bare: list[list[bytes | None]] = [[None] * len(odd) for _ in sides.subject.columns]
    return set(digest.expected_sums(sides.cast, odd, bare))


# --- the buckets that differ ----------------------------------------------------------------------------


def _descend(sides: Sides, digest: Digest, buckets: list[str], found: Comparison) -> None:
    """Both sides by id, side by side."""
    strangers: list[str] = []
    wanted_rows = _grouped(_wanted_rows(sides, digest, buckets))
    actual_rows = _grouped(
        (name, [*map(str, hashes)]) for name, hashes in digest.target_rows(sides.target, buckets)
    )
    wanted, actual = next(wanted_rows, None), next(actual_rows, None)
    while wanted is not None or actual is not None:
        if actual is None or (wanted is not None and wanted[0] < actual[0]):
            assert wanted is not None  # noqa: S101  one of the two is there
            _judge(sides, wanted[0], wanted[1], [], found)
            wanted = next(wanted_rows, None)
        elif wanted is None or actual[0] < wanted[0]:
            strangers.append(actual[0])
            found.present -= len(actual[1]) - 1
            actual = next(actual_rows, None)
            if len(strangers) >= _ASK:
                _strangers(sides, strangers, found)
                strangers = []
        else:
            _judge(sides, wanted[0], wanted[1], actual[1], found)
            wanted, actual = next(wanted_rows, None), next(actual_rows, None)
    _strangers(sides, strangers, found)


def _grouped(rows: Iterator[tuple[str, Hashes]]) -> Iterator[tuple[str, list[Hashes]]]:
    for name, group in groupby(rows, key=lambda row: row[0]):
        yield name, [hashes for _, hashes in group]


def _wanted_rows(sides: Sides, digest: Digest, buckets: list[str]) -> Iterator[tuple[str, Hashes]]:
    """(event id, hashes) by id; hashes None if the event cannot make a row."""
    for events in sides.expectation.events(sides.source, buckets):
        wanted = _one_row_an_event(sides, sides.expectation.wanted(events))
        rows = dict[str, list[Hashes]]()
        for refused, _ in wanted.dead:
            rows.setdefault(refused.decode(), []).append(None)
        for name, hashes in _hashed(sides, digest, wanted):
            rows.setdefault(name, []).append(hashes)
        for name in sorted(rows):
            for hashes in rows[name]:
                yield name, hashes


def _hashed(sides: Sides, digest: Digest, wanted: Wanted) -> Iterator[tuple[str, Hashes]]:
    answers, refused = accepted(wanted, lambda some: digest.expected_rows(sides.cast, some.ids, some.columns))
    for part, rows in answers:
        for name, hashes in zip(part.ids, rows, strict=True):
            yield name.decode(), hashes
    for name in refused:
        yield name.decode(), None


def _judge(sides: Sides, name: str, wanted: list[Hashes], actual: list[Hashes], found: Comparison) -> None:
    dead = sides.dead.opened[name]
    given_up = sides.dead.discarded[name]
    found.expected += max(0, len(wanted) - dead - given_up)
    if len(actual) + dead + given_up < len(wanted):
        if sides.subject.certain:
            found.lost.add(name)
        else:
            found.expected -= len(wanted) - dead - given_up - len(actual)
            found.undecided += 1
    elif len(actual) > len(wanted):
        found.doubled.add(f"{name} ({len(actual)} rows)")
    elif dead and len(actual) + dead > len(wanted):
        found.both.add(name)
    if len(actual) != len(wanted) or any(hashes is None for hashes in wanted):
        return
    if Counter(map(tuple, _some(actual))) != Counter(map(tuple, _some(wanted))):
        found.differing.add(f"{name}{_columns(sides, wanted, actual)}")


def _some(rows: list[Hashes]) -> list[list[str]]:
    return [_normal(row) for row in rows if row is not None]


def _normal(row: list[str]) -> list[str]:
    return ["NULL" if value == "None" else value for value in row if value]


def _columns(sides: Sides, wanted: list[Hashes], actual: list[Hashes]) -> str:
    if len(wanted) != 1 or wanted[0] is None or actual[0] is None:
        return ""
    names = [
        column.name
        for column, one, other in zip(
            sides.subject.columns, _normal(wanted[0]), _normal(actual[0]), strict=True
        )
        if one != other
    ]
    return f" (column {', '.join(names)})"


def _strangers(sides: Sides, names: list[str], found: Comparison) -> None:
    """Explain rows that belong to no applied event of the configuration, using the outbox."""
    if not names:
        return
    known = sides.known(names)
    for name in names:
        found.present -= 1
        if name not in known:
            if sides.subject.mixed:
                found.elsewhere += 1
            elif sides.may_be_pruned:
                found.pruned += 1
            else:
                found.unexpected.add(f"{name} (no such event in the outbox)")
        elif not known[name][0]:
            found.unexpected.add(f"{name} (not applied, according to the ledger)")
        elif sides.dead.opened[name]:
            found.both.add(name)
        elif sides.subject.certain and not sides.subject.sink and not known[name][1]:
            found.unexpected.add(f"{name} (the configuration does not send it here)")
        else:
            found.present += 1
