"""Mistakes that everybody makes in the first hour: each is answered before the start, with where and what to do.

One shell and one pair of databases for all of them: a mistake is made, asked about, and undone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.e2e.shell import Shell
from tests.support.servers import Database


@dataclass(frozen=True)
class Mistake:
    """old, new: in bridge.yaml. command: what is asked, and how it ends. says: parts of the answer; {line}: of the
    mistake."""

    old: str
    new: str
    command: str
    code: int
    says: tuple[str, ...]


IN_THE_FILE = {
    "indentation": Mistake(
        "    branches: ", "   branches: ", "bridge run", 2, ("bridge.yaml:{line}:4", "indent it as")
    ),
    "misspelt key": Mistake(
        "    branches: ", "    branhces: ", "bridge run", 2,
        ("bridge.yaml:{line}:5", "branhces", "did you mean branches?"),
    ),
    "unknown field of the event": Mistake(
        "$event.metric\n", "$event.metrik\n", "bridge run", 2,
        ("bridge.yaml:{line}:19", "metrik", "did you mean metric?")
    ),
    "unknown field of the entity": Mistake(
        "$customer.csm\n", "$customer.cms\n", "bridge doctor", 1, ("cms", "csm")
    ),
    "missing table": Mistake(
        "table: events.usage_limits", "table: events.usage_limit", "bridge doctor", 1,
        ("did you mean usage_limits?", "create table if not exists events.usage_limit ("),
    ),
    "wrong type": Mistake(
        "used: $event.used\n", "used: $event.metric\n", "bridge doctor", 1,
        ("bridge.yaml:{line}:17", "api-calls", "numeric"),
    ),
    "unset variable": Mistake(
        "${SOURCE_DSN", "${SOURCE_DSNN", "bridge run", 2, ("bridge.yaml:{line}:8", "SOURCE_DSNN is not set"),
    ),
}  # fmt: skip


@contextmanager
def made(shell: Shell, mistake: Mistake) -> Iterator[int]:
    """The line that it is in."""
    shell.edit(mistake.old, mistake.new)
    text = (shell.directory / "bridge.yaml").read_text()
    try:
        yield text[: text.index(mistake.new)].count("\n") + 1
    finally:
        shell.edit(mistake.new, mistake.old)


def test_each_of_eight_mistakes_is_answered_with_what_to_do(
    prepared: Shell, app: Database, warehouse: Database
) -> None:
    for name, mistake in IN_THE_FILE.items():
        with made(prepared, mistake) as line:
            said = prepared(mistake.command, code=mistake.code)
        for part in mistake.says:
            assert part.replace("{line}", str(line)) in said, f"{name}: {said}"

    right = prepared.environment["SOURCE_DSN"]
    prepared.environment["SOURCE_DSN"] = re.sub(r"port=\d+", "port=1", right)
    said = prepared("bridge doctor", code=3)
    assert "correct `host` and `port` in the dsn (127.0.0.1:1)" in said

    prepared.environment["SOURCE_DSN"] = right
    prepared.environment["WAREHOUSE_DSN"] = warehouse.bridge_dsn
    said = prepared("bridge doctor", code=1)
    assert "grant usage on schema bridge to outbox_bridge;" in said
