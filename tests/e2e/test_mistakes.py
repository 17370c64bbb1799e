"""Mistakes that everybody makes in the first hour: each is answered before the bridge starts, with where and what to do.

One shell and one pair of databases for all of them: a mistake is made, asked about, and undone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.e2e.shell import Shell
from tests.support.servers import Database


@dataclass(frozen=True)
class Mistake:
    """old, new: in bridge.yaml. command: what is asked, and how it ends. says: parts of the answer, the last is what
    to do."""

    old: str
    new: str
    command: str
    code: int
    says: tuple[str, ...]


IN_THE_FILE = {
    "indentation": Mistake(
        "    branches: ", "   branches: ", "bridge run", 2, ("bridge.yaml:33:4", "indent it as")
    ),
    "misspelt key": Mistake(
        "    branches: ", "    branhces: ", "bridge run", 2,
        ("bridge.yaml:33:5", "branhces", "did you mean branches?"),
    ),
    "unknown field of the event": Mistake(
        "$event.metric\n", "$event.metrik\n", "bridge run", 2, ("bridge.yaml:51:19", "metrik", "did you mean metric?")
    ),
    "unknown field of the entity": Mistake(
        "$customer.csm\n", "$customer.cms\n", "bridge doctor", 1, ("cms", "csm")
    ),
    "missing table": Mistake(
        "table: events.usage_limits", "table: events.usage_limit", "bridge doctor", 1,
        ("events.usage_limit does not exist", "events.usage_limits"),
    ),
    "wrong type": Mistake(
        "used: $event.used\n", "used: $event.plan\n", "bridge doctor", 1, ("plan", "numeric"),
    ),
    "unset variable": Mistake(
        "${SOURCE_DSN", "${SOURCE_DSNN", "bridge run", 2, ("bridge.yaml:5:8", "SOURCE_DSNN is not set"),
    ),
}  # fmt: skip


@contextmanager
def made(shell: Shell, mistake: Mistake) -> Iterator[None]:
    shell.edit(mistake.old, mistake.new)
    try:
        yield
    finally:
        shell.edit(mistake.new, mistake.old)


def test_each_of_eight_mistakes_is_answered_with_what_to_do(
    prepared: Shell, app: Database, warehouse: Database
) -> None:
    for name, mistake in IN_THE_FILE.items():
        with made(prepared, mistake):
            said = prepared.run(mistake.command)
            print("=====", name, said.returncode)
            print(said.stdout, said.stderr)
    for variable, command in (("SOURCE_DSN", "bridge doctor"), ("SOURCE_DSN", "bridge install")):
        right = prepared.environment[variable]
        prepared.environment[variable] = re.sub(r"port=\d+", "port=1", right)
        said = prepared.run(command)
        print("===== port", said.returncode, said.stdout, said.stderr)
        prepared.environment[variable] = right
    prepared.environment |= {"SOURCE_DSN": app.bridge_dsn}
    said = prepared.run("bridge doctor")
    print("===== grant", said.returncode, said.stdout, said.stderr)
