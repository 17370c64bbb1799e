"""A receiver, and a bridge whose configuration has sinks that end there."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.receiver import Receiver
from tests.support.servers import Database

HEAD = """
version: 1
source: {{ dsn: "${{SOURCE_DSN}}" }}
admin: {{ listen: "${{BRIDGE_ADMIN}}" }}
connections:
  warehouse: {{ type: postgres, dsn: "${{WAREHOUSE_DSN}}" }}
  csm: {{ type: slack, webhook_url: "{url}/slack" }}
  hook: {{ type: webhook, url: "{url}/hook", secret: "{secret}", allow: [127.0.0.0/8] }}
pipelines:
  usage:
    event: usage.limit_reached
    steps:
      - enrich.entity:
          as: customer
          key: $event.customer_id
          sql: select customer_id, mrr, csm, renewal from crm.customer where customer_id = any(%(keys)s)
    destinations:
"""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
TABLE = """
events:
  connection: warehouse
  table: events.usage_limits
  mode: upsert
  key: [event_id]
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


Start = Callable[..., BridgeProcess]


@pytest.fixture
def bridge_with(
    source: Database,
    target: Database,
    receiver: Receiver,
    tmp_path: Path,
    bridge_process: Callable[..., BridgeProcess],
) -> Start:
    """Makes a bridge with these destinations (YAML) for usage.limit_reached; not started."""

    def make(destinations: str, *, head: str = HEAD, **arguments: object) -> BridgeProcess:
        path = tmp_path / "bridge.yaml"
        text = head.format(url=receiver.url, secret=SECRET)
        path.write_text(text + textwrap.indent(textwrap.dedent(destinations), " " * 6))
        return bridge_process(source=source.bridge_dsn, target=target.bridge_dsn, config=path, **arguments)

    return make
