"""Compile the queries of a comparison: counts and order-independent hashes by bucket, and rows of chosen buckets.

A bucket is a range of ids: for version 7 ids, which begin with their time, 2^20 ms (17 min); for others a 4096th by
hash. A row's hash is computed from the text that Postgres prints, so both sides are cast to the column's own type:
the planner's expected values are sent to the target as arrays and hashed there by the same expression.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import pq, sql
from psycopg.errors import error_from_result

from bridge.planning.plan import Column
from bridge.postgres.assignment import value_sql
from bridge.postgres.profiled import ProfiledConnection
from bridge.postgres.target import text_array
from bridge.prove.subject import Subject

Link = ProfiledConnection
Sums = dict[str, tuple[int, int]]
"""bucket -> (rows, sum of their hashes)."""

_FETCH = 5000


@dataclass(frozen=True, slots=True)
class Window:
    """The period [since, until) of events, by their ids. Ids that are not of version 7 contain no time and are
    always included."""

    since: datetime | None = None
    until: datetime | None = None

    def predicate(self, identity: sql.Composable) -> sql.Composed:
        """Over an id as text."""
        parts = [
            sql.SQL('left({}, 13) collate "C" {} {}').format(
                identity, sql.SQL(sign), sql.Literal(_prefix(moment))
            )
            for sign, moment in ((">=", self.since), ("<", self.until))
            if moment is not None
        ]
        if not parts:
            return sql.SQL("true") + sql.SQL("")
        return sql.SQL("(not {} or ({}))").format(_timed(identity), sql.SQL(" and ").join(parts))


def _prefix(moment: datetime) -> str:
    """The first 13 characters of a version 7 id of this time (RFC 9562, section 5.7)."""
    digits = f"{max(0, int(moment.timestamp() * 1000)):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def _timed(identity: sql.Composable) -> sql.Composed:
    return sql.SQL("(substr({0}, 15, 1) = '7' and length({0}) = 36)").format(identity)


def bucket(identity: sql.Composable) -> sql.Composed:
    return sql.SQL("case when {} then left({}, 7) else 'x' || left(md5({}), 3) end").format(
        _timed(identity), identity, identity
    )


def whole(values: Sequence[sql.Composable]) -> sql.Composed:
    """One hash of a row's values, each with its own seed: a third of the cost of row(..)::text."""
    hashes = [
        sql.SQL("coalesce(hashtextextended({}::text, {}), {})").format(
            value, sql.Literal(seed), sql.Literal(7919 * (seed + 1))
        )
        for seed, value in enumerate(values)
    ]
    return sql.SQL("({})").format(sql.SQL(" # ").join(hashes))


def each(values: Sequence[sql.Composable]) -> sql.Composed:
    """One hash a value, in an array."""
    hashes = [sql.SQL("hashtextextended({}::text, 0)").format(value) for value in values]
    return sql.SQL("array[{}]::bigint[]").format(sql.SQL(", ").join(hashes))


class Digest:
    """The queries of one subject. In every query `id` is the identity as text."""

    def __init__(self, subject: Subject, window: Window) -> None:
        self.subject = subject
        self.window = window
        self._id = sql.SQL("q.id")

    # --- the target ---------------------------------------------------------------------------

    def _actual(self) -> sql.Composed:
        """A row of the target: id, and the compared columns as c0, c1, ..."""
        subject = self.subject
        identity = sql.SQL("t.{}::text").format(sql.Identifier(subject.identity or ""))
        wanted = sql.SQL("t.{} is not null").format(sql.Identifier(subject.identity or ""))
        if subject.sink:
            names = sql.SQL(", ").join(
                sql.SQL("({}, {})").format(sql.Literal(pipeline), sql.Literal(destination))
                for pipeline, destination in (*subject.units, *subject.former)
            )
            wanted = sql.SQL(
                "(t.pipeline, t.destination) in ({}) and t.state in ('pending', 'sent')"  # else: read_dead()
            ).format(names)
        wanted = sql.SQL("{} and {}").format(wanted, subject.own())
        columns = [
            sql.SQL(", t.{} as {}").format(sql.Identifier(column.name), _place(n))
            for n, column in enumerate(subject.columns)
        ]
        distinct = sql.SQL("distinct " if subject.sink else "")  # a replay delivers once more, with other ids
        # offset 0: the id becomes text once, however often it is asked for
        return sql.SQL("(select {}{} as id{} from {} as t where {} offset 0)").format(
            distinct,
            identity,
            sql.SQL("").join(columns),
            sql.Identifier(subject.schema, subject.table),
            wanted,
        )

    def _values(self) -> list[sql.Composable]:
        return [sql.SQL("q.") + _place(n) for n in range(len(self.subject.columns))]

    def target_sums(self, target: Link) -> Sums:
        query = sql.SQL("select {}, count(*), sum({}) from {} as q where {} group by 1").format(
            bucket(self._id),
            whole([self._id, *self._values()]),
            self._actual(),
            self.window.predicate(self._id),
        )
        return {name: (count, int(total)) for name, count, total in target.execute(query)}

    def target_rows(self, target: Link, buckets: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        """(id, hash of each column) of these buckets, by id."""
        query = sql.SQL(
            'select id, {} from {} as q where {} = any({}) and {} order by id collate "C"'
        ).format(
            each(self._values()),
            self._actual(),
            bucket(self._id),
            sql.Literal(list(buckets)),
            self.window.predicate(self._id),
        )
        yield from stream(target, query)

    # --- what is expected, hashed by the target -----------------------------------------------------

    def expected_sums(self, target: Link, ids: list[bytes], columns: list[list[bytes | None]]) -> Sums:
        query = sql.SQL("select {}, count(*), sum({}) from {} as q group by 1").format(
            bucket(self._id), whole([self._id, *self._values()]), unnested(self.subject.columns)
        )
        answer = ask(target, query, [ids, *columns])
        return {str(name): (int(count or 0), int(total or 0)) for name, count, total in answer}

    def expected_rows(
        self, target: Link, ids: list[bytes], columns: list[list[bytes | None]]
    ) -> list[list[str]]:
        """The hash of each column, in the order of the ids."""
        query = sql.SQL("select {}::text from {} as q order by q.n").format(
            each(self._values()), unnested(self.subject.columns)
        )
        return [[*str(row[0])[1:-1].split(",")] for row in ask(target, query, [ids, *columns])]


def _place(n: int) -> sql.Identifier:
    return sql.Identifier(f"c{n}")


def unnested(columns: Sequence[Column]) -> sql.Composed:
    """Arrays $1 (ids), $2, ... as rows: id, c0::its type, ..., and n, their order."""
    arrays = sql.SQL(", ").join(sql.SQL(f"${n + 1}::text[]") for n in range(len(columns) + 1))
    names = sql.SQL(", ").join([sql.SQL("id"), *map(_place, range(len(columns))), sql.SQL("n")])
    casts = [
        sql.SQL(", ({1})::{2} as {0}").format(
            _place(n),
            sql.SQL(value_sql(column, f"u.c{n}")),
            sql.SQL(column.declared or column.type_sql),  # as format_type() prints it
        )
        for n, column in enumerate(columns)
    ]
    return sql.SQL("(select u.n, u.id{} from unnest({}) with ordinality as u({}))").format(
        sql.SQL("").join(casts), arrays, names
    )


def stream(connection: Link, query: sql.Composed) -> Iterator[tuple[Any, ...]]:
    """The rows through a cursor on the server."""
    with connection.cursor(name="prove") as cursor:
        cursor.itersize = _FETCH
        yield from cursor.execute(query)


def ask(
    connection: Link, query: sql.Composable, columns: Sequence[Sequence[bytes | None]]
) -> list[tuple[str | None, ...]]:
    """Send columns as binary text[] parameters; rows as text. Raises psycopg.Error."""
    text = query.as_string(connection).encode()
    arrays = [text_array(list(column)) for column in columns]
    result = connection.pgconn.exec_params(text, arrays, None, [1] * len(arrays), 0)
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise error_from_result(result)
    width = range(result.nfields)
    return [
        tuple(None if (v := result.get_value(row, n)) is None else v.decode() for n in width)
        for row in range(result.ntuples)
    ]
