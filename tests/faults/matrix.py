"""The fault matrix in docs/guarantees.md, made from the `fault` markers of the tests: `python -m tests.faults.matrix`.

Each row of the matrix is proved by the tests that carry its number; a row without a test is an error. The matrix is the
end of that page; a test compares the two.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "guarantees.md"

SECTIONS: dict[str, dict[str, str]] = {
    "The bridge": {
        "1": "SIGKILL at every named failpoint",
        "2": "SIGKILL between the target's COMMIT and the confirmation",
        "3": "SIGTERM in the middle of a batch: settled or rolled back within the grace period, exit 0",
        "4": "frozen past wal_sender_timeout while a successor starts: it cannot commit when it wakes",
        "5": "two bridges on one stream: one works, one stands by and takes over",
        "6": "little memory and a huge transaction",
        "7": "reload of a broken configuration: the old one stays, with a metric",
        "8": "crash while a dead letter is retried",
        "9": "crash in catch-up",
        "10": "the clock jumps a day, either way",
    },
    "The target": {
        "11": "immediate stop; a backend killed",
        "12": "its session ended in the middle of a batch",
        "13": "COMMIT's answer is lost",
        "14": "disk full",
        "15": "table missing: halt, never DDL",
        "16": "column dropped or retyped: a halt that names it; continues once it is fixed",
        "17": "NOT NULL, CHECK, foreign key, unique index: that event is a dead letter, the others arrive",
        "18": "deferred constraint: the culprit is found",
        "19": "lock_timeout, statement_timeout: back off, never a dead letter",
        "20": "deadlock, serialization failure: retried",
        "21": "read-only after a failover",
        "22": "restored from an older copy",
        "23": "synchronous_commit = off on the role is overridden",
        "24": "row-level security hides rows: halt",
        "25": "privilege revoked: halt",
        "26": "the customer's trigger raises an error: judged by its SQLSTATE",
        "27": "too many connections, admin shutdown: back off",
        "28": "ledger row missing or edited: never created again",
    },
    "The source and the slot": {
        "29": "immediate stop after a confirmation",
        "30": "fast shutdown does not wait for the bridge",
        "31": "slot dropped",
        "32": "slot dropped and recreated by another session",
        "33": "slot lost (max_slot_wal_keep_size)",
        "34": "slot invalidated (idle_replication_slot_timeout, 18)",
        "35": "slot advanced by another session",
        "36": "restored to before the checkpoint",
        "36b": "restored from a disk copy, WAL already past the checkpoint: detected by the witness",
        "37": "promotion, and the slot does not exist",
        "38": "promotion with a failover slot (17 and later)",
        "39": "another cluster",
        "40": "publication dropped",
        "41": "publication altered",
        "41b": "publication changed and changed back between two checks",
        "42": "outbox column added, dropped, renamed, retyped mid-stream",
        "43": "UPDATE, DELETE, TRUNCATE of the outbox are not events",
        "44": "partitioned outbox",
        "45": "PREPARE TRANSACTION, COMMIT PREPARED",
        "46": "savepoints and rollbacks",
        "47": "1,000,000 rows in one transaction: bounded memory",
        "48": "applying slower than wal_sender_timeout",
        "49": "quiet outbox in a busy database: the slot advances",
        "50": "messages of a transaction that was rolled back",
        "51": "a lower id commits later (polling)",
        "52": "polling under concurrent commits",
        "53": "a full NOTIFY queue does not break producers",
        "54": "NOTIFY lost; a transaction open for hours elsewhere (polling does not stall)",
        "54b": "a slot is created while a transaction stays open",
        "55": "ids near their maximum",
    },
    "The data": {
        "56": "the same key twice in a batch",
        "57": "\\u0000",
        "58": "lone surrogate, NaN",
        "59": "JSON 20,000 levels deep",
        "60": "numeric overflow",
        "61": "integers above 2^53 and long decimals survive exactly",
        "62": "SQL_ASCII or LATIN1 source",
        "63": "a payload of 100 MB; one over the limit",
        "64": "same idempotency key, different payload",
        "65": "many events at one LSN",
        "66": "contract violations",
        "66b": "enrichment finds a customer row that the event's own transaction inserted",
    },
    "Network, enrichment, ingress, sinks": {
        "67": "cut, reset, latency, low rate, half-open on each link",
        "68": "PgBouncer in transaction mode",
        "69": "enrichment source down, slow, stale, missing entity",
        "70": "sink answers 429, 500, 4xx, times out, drips, redirects",
        "71": "sink answered 2xx, then crash",
        "72": "SMTP 4xx, 5xx, cut after DATA",
        "73": "malformed signatures and bodies: 401, never 500",
        "74": "replayed, stale, future, wrong-key webhook",
        "75": "webhook committed but its 2xx was lost",
        "76": "oversize body, gzip bomb, slowloris, 1,000 idle connections",
        "77": "ingress database down: 503, never a 2xx before the commit",
        "78": "metrics: loopback by default, bounded label set",
    },
    "Histories and neighbours": {
        "79": "source restored from a dump",
        "80": "source that was a subscriber of native replication",
        "81": "outbox columns added, renamed, NULL",
        "82": "rows moved between partitions",
        "83": "rows deleted by the application, at once or nightly",
        "84": "the sequence of seq restarted, or left behind by a move",
        "86": "publication by schema; the outbox or its schema renamed or moved, and back",
        "87": "another database's slot, another program's reader, a renamed connection or slot",
        "88": "managed Postgres: rights, settings and libraries that the catalog does not show",
        "99": "a 200 that is not the vendor's",
        "100": "text that mail or chat takes for syntax",
    },
    "NATS as a destination": {
        "101": "away, frozen, full, without JetStream, a login that is refused: nothing passes it, nothing is lost",
        "102": "SIGKILL at each step of publishing: the same ids again, each once within the server's window",
        "103": "nodes of a cluster and bridges killed: each key's order",
        "104": "a message that can never be published, of one event or of all",
    },
    "Over a log": {
        "105": "nodes of the log killed in turn; the whole log down for longer than a session waits",
        "106": "the log purged, deleted, rewound to an older copy, its only disk lost; single frames lost",
        "107": "frames twice and in any order",
        "108": "relay and worker killed at each step of a frame's way",
        "109": "two relays, two workers at one partition; one that is frozen and wakes",
        "110": "workers join and leave; a relay begins again while a backlog is in the log",
        "111": "the source restarted, promoted, restored from an older copy, paused",
        "112": "the slot or the publication dropped",
        "113": "one target away for long: the others go on, the WAL brake gives it up, it comes back",
        "114": "a transaction of 100,000 rows in parts, relay and worker killed amid it",
    },
}

HEAD = """## The fault matrix

What can go wrong, and the tests that cause it on real PostgreSQL servers. Each test ends with the conservation law
of `tests/support/truth.py`: every committed event has its effect exactly once or is in the dead letters, with equal
values, in the promised order; and the slot is never ahead of the ledger. `python -m tests.torture` injects the same
faults at random.

`python -m tests.faults.matrix` writes this section from the tests' `fault` markers; a test compares the two.
"""


def marked() -> dict[str, list[str]]:
    """Row -> the tests that carry its number, as file::test."""
    found: dict[str, list[str]] = {}
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                for row in _rows(node):
                    found.setdefault(row, []).append(f"{path.relative_to(REPOSITORY)}::{node.name}")
    return found


def _rows(node: ast.FunctionDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
            for argument in decorator.args:
                assert isinstance(argument, ast.Constant), f"{node.name}: a row is a literal"
                yield str(argument.value)


def render() -> str:
    """The section."""
    tests = marked()
    known = {row for rows in SECTIONS.values() for row in rows}
    unknown = sorted(tests.keys() - known)
    assert not unknown, f"no such rows in the matrix: {unknown}"
    parts = [HEAD]
    for section, rows in SECTIONS.items():
        parts.append(f"\n### {section}\n\n| row | fault | tests |\n| --- | --- | --- |\n")
        for row, fault in rows.items():
            proofs = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in tests.get(row, ()))
            assert proofs, f"no test carries row {row}"
            parts.append(f"| {row} | {fault} | {proofs} |\n")
    return "".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(DOCUMENT.read_text().partition(HEAD.splitlines()[0])[0] + render())
    print(DOCUMENT)
