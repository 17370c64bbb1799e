"""docs/ingress.md says what there is: every problem, limit, scheme and route."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from bridge.config.model import Scheme
from bridge.ingress import body, problem, signature, writer
from bridge.ingress.store import DELIVERY_MEMORY, IngressDown
from bridge.observe import server

TEXT = (Path(__file__).parents[3] / "docs" / "ingress.md").read_text()


def test_every_kind_of_problem_stands_in_the_table_of_refusals() -> None:
    table = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", TEXT, re.M)
    named = {kind for _, kinds in table for kind in re.findall(r"`([a-z-]+)`", kinds)}
    assert named == set(problem._TITLES)


def test_every_scheme_has_its_row() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| .*\|.*\|.*\|.*\|.*\|$", TEXT, re.M)) == set(get_args(Scheme))


def test_the_limits_are_those_of_the_code() -> None:
    for stated in (
        f"{server.HEADER_BYTES // 1024} KiB, and {server.HEADER_SECONDS:.0f} s",
        f"`max_payload` (1 MiB), {body.READ_SECONDS:.0f} s",
        f"| idle between requests | {server.KEEP_ALIVE_SECONDS} s |",
        f"(200); {server.CONNECTIONS_OVER} more are answered 503",
        f"{writer.WAIT_SECONDS:.0f} s; {writer.QUEUE_ITEMS:,} events or {writer.QUEUE_BYTES >> 20} MiB",
        f"{writer.BATCH_ITEMS} events or {writer.BATCH_BYTES >> 20} MiB",
        f"at most {body.MOST_LINES:,} lines",
        f"{signature.TOLERANCE_SECONDS} s away",
        f"remembered {DELIVERY_MEMORY}",
        IngressDown.reason,
    ):
        assert stated in TEXT, stated
