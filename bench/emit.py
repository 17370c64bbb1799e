"""What it costs a producer that repeats are counted: `outbox.emit` beside itself without the counting.

`python -m bench.emit [transactions [rounds]]`. One server with fsync and one session that calls both functions in short
turns, the order alternating. What is compared is the CPU time of the session's own backend (Linux,
/proc/PID/schedstat), because on a shared machine time by the clock tells of the neighbours; a ratio is the median of
the rounds' own ratios. The last line compares time by the clock: a repeat while eight open transactions
have repeated the same key, and one by itself.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import sys
import time
from pathlib import Path

import psycopg

from bridge.demo.servers import Cluster, Workspace
from bridge.postgres.schema import migrations, source_sql

_NEW = """select outbox.EMIT('t', '{"a": 1}', gen_random_uuid()::text)"""
_USED = "select outbox.EMIT('t', '{}', 'used')"
_WRITE = "update account set used = used + 1 where id = 1"
_CASES = {
    "a new key, alone": [_NEW],
    "a new key, beside a row of the application's": [_WRITE, _NEW],
    "a used key, beside a row of the application's": [_WRITE, _USED],
    "ten used keys, beside a row of the application's": [_WRITE, *[_USED] * 10],
    "a used key, alone": [_USED],
}


def cpu_seconds(pid: int) -> float:
    """The time that a process has been on a CPU, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def turn(connection: psycopg.Connection, statements: list[str], transactions: int) -> float:
    """CPU microseconds of the backend a transaction."""
    before = cpu_seconds(connection.info.backend_pid)
    for _ in range(transactions):
        with connection.transaction():
            for statement in statements:
                connection.execute(statement.encode(), prepare=True)
    return (cpu_seconds(connection.info.backend_pid) - before) / transactions * 1e6


def prepare(connection: psycopg.Connection) -> None:
    """The outbox, `emit` as it was before the counting under another name, a used key, an account."""
    connection.execute(source_sql().encode())
    before = migrations("source")[0].sql
    [body] = re.findall(r"create or replace function outbox\.emit\(.*?\n\$\$;\n", before, re.DOTALL)
    connection.execute(
        body.replace("outbox.emit(", "outbox.emit_uncounted(")
        .replace(" emit.", " emit_uncounted.")
        .replace("(emit.", "(emit_uncounted.")
        .encode()
    )
    connection.execute("create table account (id integer primary key, used bigint) with (fillfactor = 50)")
    connection.execute("insert into account values (1, 0)")
    connection.execute("select outbox.emit('t', '{}', 'used')")


def compare(connection: psycopg.Connection, statements: list[str], transactions: int, rounds: int) -> str:
    """One case: medians, the ratio, its range."""
    spent: dict[str, list[float]] = {"emit": [], "emit_uncounted": []}
    for number in range(rounds + 1):
        for emit in sorted(spent, reverse=number % 2 == 0):
            measured = turn(connection, [each.replace("EMIT", emit) for each in statements], transactions)
            if number:  # the first round warms
                spent[emit].append(measured)
    ratios = [a / b for a, b in zip(spent["emit"], spent["emit_uncounted"], strict=True)]
    before, counted = statistics.median(spent["emit_uncounted"]), statistics.median(spent["emit"])
    return (
        f"{before:.0f} -> {counted:.0f} us of CPU a transaction, ratio {statistics.median(ratios):.2f}"
        f" ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def waits(connection: psycopg.Connection, dsn: str, rounds: int) -> str:
    """Milliseconds of a repeat that eight open transactions have made too, and of one by itself."""
    found: dict[bool, list[float]] = {True: [], False: []}
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(psycopg.connect(dsn)) for _ in range(8)]
        for number in range(2 * rounds):
            crowded = number % 2 == 0
            for other in others if crowded else ():
                other.execute("select outbox.emit('t', '{}', 'used')")
            for _ in range(50):
                began = time.perf_counter()
                connection.execute("select outbox.emit('t', '{}', 'used')")
                found[crowded].append((time.perf_counter() - began) * 1e3)
            for other in others:
                other.rollback()
    return f"{statistics.median(found[True]):.2f} ms, and by itself {statistics.median(found[False]):.2f} ms"


def main() -> None:
    """Print microseconds for both and their ratio, case by case."""
    transactions = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    with Workspace() as workspace:
        cluster = Cluster(workspace, "bench-emit", fsync=True).init().start()
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            prepare(connection)
            for name, statements in _CASES.items():
                print(f"{name}: {compare(connection, statements, transactions, rounds)}", flush=True)
            rows, size = connection.execute(
                "select count(*), pg_relation_size('outbox.suppressed') from outbox.suppressed"
            ).fetchall()[0]
            print(f"{rows} repeats hold {size / rows:.0f} bytes each until they are added up")
            print(f"a repeat beside eight open ones: {waits(connection, cluster.dsn(), rounds)}")


if __name__ == "__main__":
    main()
