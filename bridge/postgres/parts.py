"""The partitions of a target (scale.log) in SQL: the ledger and the registry have a row for each, which is called
<stream>.<i>of<n>; dead letters and messages have the name of all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from bridge.postgres.outbox import Outbox
from bridge.postgres.target import Statement

OF: LiteralString = (
    "(stream = %(stream)s or (starts_with(stream, %(stream)s || '.')"
    " and substr(stream, length(%(stream)s) + 2) ~ '^[0-9]+of[0-9]+$'))"
)
"""Is a row this stream's, or one of its partitions', of whatever number?"""


def group_of(stream: str) -> str:
    """The stream that a row belongs to: its name without the partition."""
    name, dot, partition = stream.rpartition(".")
    number, of, count = partition.partition("of")
    return name if dot and of and number.isdigit() and count.isdigit() else stream


NO_GOAL = "3:3:"
"""A snapshot that shows nothing: the table is not being read."""


@dataclass(frozen=True, slots=True)
class Position:
    """What one row of the ledger says is applied, as Postgres text: the floor's snapshot; while the table is read, the
    goal's, and the seq up to which its rows are applied; the xids listed beyond the floor (`xid8[]`) and the seqs of
    their rows (`int8multirange`). partition: of its rows, of so many; None: of all."""

    floor: str = NO_GOAL
    goal: str = NO_GOAL
    goal_seq: int = 0
    xids: str = "{}"
    seqs: str = "{}"
    partition: tuple[int, int] | None = None

    def covers(self, outbox: Outbox) -> sql.Composed:
        """Over a row of the outbox: is it applied, as docs/guarantees.md has it (I6)? False also for a row of another
        partition; NULL is none of it."""
        xid, seq = outbox.placed(), sql.SQL("coalesce({}, 0)").format(outbox.column("seq"))
        return sql.SQL(
            "({mine} and (pg_visible_in_snapshot({xid}, {floor}::pg_snapshot) "
            " or ({xid} = any({xids}::xid8[]) and {seq}::bigint <@ {seqs}::int8multirange)"
            " or (pg_visible_in_snapshot({xid}, {goal}::pg_snapshot) and {seq} <= {goal_seq})))"
        ).format(
            mine=outbox.belongs_to(self.partition),
            xid=xid,
            seq=seq,
            floor=sql.Literal(self.floor),
            xids=sql.Literal(self.xids),
            seqs=sql.Literal(self.seqs),
            goal=sql.Literal(self.goal),
            goal_seq=sql.Literal(self.goal_seq),
        )


def covered(positions: Sequence[Position], outbox: Outbox) -> sql.Composed:
    """Over a row of the outbox: is it applied, as one of these rows says?"""
    every = [one.covers(outbox) for one in positions] or [sql.SQL("false") + sql.SQL("")]
    return sql.SQL("({})").format(sql.SQL(" or ").join(every))


def partition_in(row: str) -> tuple[int, int] | None:
    """Which partition, of so many, a row of the ledger is of; None: of all."""
    if group_of(row) == row:
        return None
    number, _, count = row.rpartition(".")[2].partition("of")
    return int(number), int(count)


# Whoever holds these lets nothing be applied meanwhile.
_SHARE = b"select from bridge.checkpoint where stream = any($1::text[]) order by stream for share"
_HOLD = b"select from bridge.checkpoint where stream = any($1::text[]) order by stream for update"

# In one statement, because a row that leaves the list is in the floor from then on.
_POSITIONS = (
    b"select stream, floor::text, coalesce(next::text, '3:3:'), next_seq::text,"
    b" coalesce((select array_agg(x)::text from bridge.applied as a, unnest(a.xids) as x"
    b" where a.stream = c.stream), '{}'), coalesce((select range_agg(r)::text from bridge.applied as a,"
    b" unnest(a.seqs) as r where a.stream = c.stream), '{}')"
    b" from bridge.checkpoint as c where stream = any($1::text[]) order by stream"
)


def hold(rows: Sequence[str], *, shared: bool = False) -> Statement:
    """Lock these rows of the ledger until the transaction ends. shared: others that hold them so may too."""
    return Statement(_SHARE if shared else _HOLD, [_array(rows)])


def positions(rows: Sequence[str]) -> Statement:
    """What they say is applied, for read_positions()."""
    return Statement(_POSITIONS, [_array(rows)])


def read_positions(found: Sequence[Sequence[bytes | None]]) -> list[Position]:
    """The rows of positions()."""
    said = [[(value or b"").decode() for value in row] for row in found]
    return [
        Position(floor, goal, int(seq), xids, seqs, partition_in(stream))
        for stream, floor, goal, seq, xids, seqs in said
    ]


def _array(rows: Sequence[str]) -> bytes:
    return ("{" + ",".join(rows) + "}").encode()  # names of streams have no comma and no quote
