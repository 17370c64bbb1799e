"""The rows of the outbox as adoption places them: by what their columns say, and by who wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from bridge.postgres.outbox import BORN, Outbox
from bridge.protocol.events import NULL, NULL_SEQ

_FETCH = 5000


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the outbox. xid: as it says; born: the transaction that wrote this version of it; placed: see Outbox. id
    and seq have the protocol's marks for NULL."""

    id: str
    seq: int
    xid: int | None
    born: int

    @property
    def name(self) -> tuple[str, int]:
        """Neither is unique alone in an outbox of the customer's own."""
        return self.id, self.seq

    @property
    def placed(self) -> int:
        return self.born if self.xid is None else min(self.xid, self.born)

    @property
    def is_stranger(self) -> bool:
        return self.xid is None or self.xid > self.born


def outbox_rows(
    source: psycopg.Connection[Any], outbox: Outbox, partition: tuple[int, int] | None = None
) -> Iterator[Row]:
    """Every row, in the order of seq; of one partition, if it is given."""
    query = sql.SQL(
        "select {}::text, {}::bigint, {}::text, {}::text from {} as e where {} order by e.{}"
    ).format(
        outbox.column("id"),
        outbox.column("seq"),
        outbox.column("xid"),
        sql.SQL(BORN),
        outbox.name,
        outbox.belongs_to(partition),
        outbox.column("seq"),
    )
    with source.transaction(), source.cursor("rows") as cursor:
        cursor.itersize = _FETCH
        for name, seq, xid, born in cursor.execute(query):
            marked = NULL.decode() if name is None else name
            yield Row(
                marked, int(NULL_SEQ) if seq is None else seq, None if xid is None else int(xid), int(born)
            )


def indexed_by(source: psycopg.Connection[Any], outbox: Outbox) -> int:
    """A restore makes the indexes after the rows: a row of this cluster has an xid from there on."""
    row = source.execute(
        sql.SQL(
            "select coalesce(min({}), '0')::text from pg_catalog.pg_index where indrelid = to_regclass(%s)"
        ).format(sql.SQL(BORN)),
        [outbox.name.as_string()],
    ).fetchone()
    return int(row[0]) if row else 0


def restored_seq(source: psycopg.Connection[Any], outbox: Outbox, since: int) -> int:
    """The greatest seq of the rows that surely came with the restore."""
    row = source.execute(
        sql.SQL("select coalesce(max({}), -1) from {} where {} or {} < %s::xid8").format(
            outbox.column("seq"), outbox.name, outbox.is_stranger(), sql.SQL(BORN)
        ),
        [str(since)],
    ).fetchone()
    return int(row[0]) if row else -1


def is_local(row: Row, since: int, restored: int) -> bool:
    """Was this row inserted here? Its xid is the one that wrote it; or, where a savepoint or an update has written it,
    one before that, and its seq is above the restored ones."""
    if row.xid is None or row.xid < since:
        return False
    return row.xid == row.born or (row.xid < row.born and row.seq > restored)
