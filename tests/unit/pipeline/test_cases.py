"""`bridge test`: the configuration's own tests, and what it says when one fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli import cli

CONFIG = """
version: 1
source: { dsn: "service=app" }
connections:
  warehouse: { type: postgres, dsn: "service=warehouse" }
  csm: { type: slack, webhook_url: "https://hooks.slack.com/services/x" }
events:
  usage.limit_reached: { customer_id: string, used: number, limit: number }
pipelines:
  usage:
    event: usage.limit_reached
    steps:
      - filter: $event.used > 0
      - enrich.entity: { as: customer, key: $event.customer_id, sql: "select 1 where 1 = any(%(keys)s)" }
      - set: { ratio: $event.used / $event.limit }
    branches:
      - { name: high, when: $ratio >= 0.9, to: [events, nudge] }
      - { name: rest, to: [events] }
    destinations:
      events:
        connection: warehouse
        table: events.usage
        columns: { customer_id: $event.customer_id, mrr: $customer.mrr, ratio: $ratio, all: $event }
      nudge: { connection: csm, text: "{{ event.customer_id }} is at {{ event.used }}" }
tests:
"""


def outcome(tmp_path: Path, case: str) -> tuple[int, str]:
    config = tmp_path / "bridge.yaml"
    config.write_text(CONFIG + case)
    result = CliRunner().invoke(cli, ["test", "-c", str(config)])
    return result.exit_code, result.stdout


CASE = """
  - name: one
    pipeline: usage
    event: {{ customer_id: cus_1, used: {used}, limit: 100 }}
    entities: {{ customer: {{ mrr: 19.90 }} }}
    expect: {expect}
"""


@pytest.mark.parametrize(
    ("used", "expect"),
    [
        ("95", "{ branch: high, events: { customer_id: cus_1, mrr: 19.9, ratio: 0.95 } }"),
        ("95", '{ nudge: { text: "cus_1 is at 95" } }'),
        ("95", "{ events: { all: { customer_id: cus_1, used: 95, limit: 100 } } }"),
        ("5", "{ branch: rest, nudge: null }"),
        ("0", "{ filtered: true, events: null }"),
        ("many", "{ dead: contract }"),
    ],
)
def test_an_expectation_that_holds_passes(tmp_path: Path, used: str, expect: str) -> None:
    assert outcome(tmp_path, CASE.format(used=used, expect=expect)) == (0, "ok    one\n")


@pytest.mark.parametrize(
    ("used", "expect", "line"),
    [
        ("95", "{ branch: rest }", "branch: expected rest, got high"),
        ("95", "{ events: { mrr: 20 } }", "events.mrr: expected 20, got '19.9'"),
        ("95", "{ events: { nothing: 1 } }", "events.nothing: expected 1, but the mapping does not fill it"),
        ("95", "{ nudge: null }", "nudge: expected nothing, but the event goes there"),
        ("5", "{ nudge: { text: x } }", "nudge: expected the event, got nothing"),
        ("95", "{ filtered: true }", "filtered: expected the event to be filtered out, it was let through"),
        ("0", "{}", "filtered: expected the event to be let through, it was filtered out"),
        ("95", "{ dead: contract }", "dead: expected contract, got no dead letter"),
        (
            "many",
            "{ branch: high }",
            'dead: expected no dead letter, got contract: field "used": expected number, got string',
        ),
    ],
)
def test_an_expectation_that_fails_is_told_and_exits_1(
    tmp_path: Path, used: str, expect: str, line: str
) -> None:
    code, output = outcome(tmp_path, CASE.format(used=used, expect=expect))
    assert code == 1
    assert output.splitlines()[0] == "FAIL  one"
    assert f"        {line}" in output.splitlines()


def test_no_tests_at_all_is_a_failure(tmp_path: Path) -> None:
    assert outcome(tmp_path, "  []\n")[0] == 1
