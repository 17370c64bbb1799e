"""The server keeps few prepared statements, however many sets of fields a batch has."""

from __future__ import annotations

import pytest

from bridge.postgres.target import BEGIN, COMMIT, ROLLBACK, Refused, Statement, TargetLink
from tests.support.servers import Database

WIDE = "select {} + length('" + "x" * 4000 + "')"
KEPT = Statement(b"select count(*)::text, sum(length(statement))::text from pg_prepared_statements")


def wide(number: int) -> Statement:
    return Statement(WIDE.format(number).encode())


def kept(link: TargetLink) -> tuple[int, int]:
    """How many, and how many bytes of SQL."""
    ((count, size),) = link.run_alone(KEPT)[0]
    return int(count or 0), int(size or 0)


def test_one_flight_of_many_statements_leaves_few_behind(target: Database) -> None:
    link = TargetLink(target.dsn, "prepared")
    try:
        rows = link.run_alone(BEGIN, *map(wide, range(300)), wide(0), COMMIT)
        assert [row[0][0] for row in rows[1:-1]] == [b"%d" % (n + 4000) for n in [*range(300), 0]]
        assert kept(link)[1] < 150_000
        assert link.run_alone(wide(299), wide(0)) == [[(b"4299",)], [(b"4000",)]]
    finally:
        link.close()


def test_a_flight_that_fails_keeps_nothing_for_good(target: Database) -> None:
    link = TargetLink(target.dsn, "prepared")
    try:
        for turn in range(5):
            many = [wide(1000 * turn + n) for n in range(60)]
            with pytest.raises(Refused):
                link.run_alone(BEGIN, *many[:30], Statement(b"select 1 / 0"), *many[30:], COMMIT)
            link.run_alone(ROLLBACK)
        assert link.run_alone(wide(0)) == [[(b"4000",)]]
        assert kept(link)[1] < 150_000
    finally:
        link.close()
