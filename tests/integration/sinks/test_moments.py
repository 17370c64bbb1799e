"""A moment looks the same wherever a person meets it: `bridge test`, `bridge explain`, and what `bridge run` sends."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.integration.sinks.conftest import Start
from tests.support.bridge_process import BridgeProcess
from tests.support.receiver import Receiver
from tests.support.servers import Database

SAID = "2027-03-01T03:30:00.500000+00:00"
STORED = "2027-03-01 09:00:00.5+05:30"
TEXT = "{{ meta.occurred_at }} {{ meta.occurred_at | date('%H:%M', 'Asia/Kolkata') }}"
NUDGE = f"""
nudge:
  connection: csm
  text: "{TEXT}"
  blocks:
    - type: section
      text: {{ type: mrkdwn, text: $meta.occurred_at }}
hook: {{ connection: hook, data: {{ at: $meta.occurred_at, renewal: $customer.renewal }} }}
"""
TESTS = f"""
tests:
  - name: a moment
    pipeline: usage
    event: {{ customer_id: cus_1 }}
    meta: {{ occurred_at: "{STORED}" }}
    entities: {{ customer: {{ mrr: 1, csm: ada, renewal: 2027-03-01 }} }}
    expect: {{ nudge: {{ text: "{SAID} 09:00" }}, hook: {{ data: {{ at: "{SAID}", renewal: "2027-03-01" }} }} }}
"""


def command(bridge: BridgeProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return bridge.command(*words)


def test_a_moment_is_the_same_in_a_test_in_explain_and_in_what_is_sent(
    source: Database, receiver: Receiver, bridge_with: Start
) -> None:
    """The source's own time zone is not UTC, and neither is the producer's."""
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("alter database {} set timezone = 'Asia/Kolkata'").format(name))
    bridge = bridge_with(NUDGE)
    config = Path(bridge.config)
    config.write_text(config.read_text() + TESTS)
    tested = command(bridge, "test")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    bridge.start().wait_ready()
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        connection.execute(
            "insert into outbox.event (type, payload, occurred_at) values ('usage.limit_reached', "
            """'{"customer_id": "cus_1"}', %s)""",
            [STORED],
        )
        row = connection.execute("select id::text from outbox.event").fetchone()
    requests = {one.path: one.json for one in receiver.wait(2)}
    assert requests["/slack"]["text"] == f"{SAID} 09:00"
    assert requests["/slack"]["blocks"][0]["text"]["text"] == SAID
    assert requests["/hook"]["data"]["at"] == requests["/hook"]["timestamp"] == SAID
    assert row
    told: dict[str, Any] = json.loads(command(bridge, "explain", "--json", row[0]).stdout)
    assert told["event"]["occurred_at"] == SAID
    pipelines = [one for stream in told["streams"] for one in stream["pipelines"]]
    assert SAID in json.dumps(pipelines)
