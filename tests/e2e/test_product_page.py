"""The product page as one run: its snippet, pasted into a new npm project, against a bridge with the recipe.

One row with MRR, CSM and renewal and one message to the account owner, however often a month the customer is over
the line.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli import cli
from bridge.postgres.schema import source_sql, target_sql
from tests.support.bridge_process import BridgeProcess
from tests.support.npm_project import ALIAS, SDK, NpmProject
from tests.support.receiver import Receiver
from tests.support.servers import Database, create_database, drop_database, free_port

MONTH = 5000
KEY = "shop-key"
TEXT = (
    "{{ customer.csm }}: {{ event.customer_id }} is at {{ event.used }}/{{ event.limit }} {{ event.metric }}"
)
_numbers = itertools.count(1)

ACCOUNT = """
declare const account: { id: string; plan: { apiLimit: number; name: string }; usage: { apiCalls: number } };
declare const period: string;
"""
# What the page leaves to the reader: an account that is over its limit, in a month.
SHOP = """
globalThis.account = { id: "cus_1", plan: { apiLimit: 100000, name: "pro" }, usage: { apiCalls: 100000 } };
globalThis.period = "2026-11";
"""
# The month: every request after that runs the same lines. A query makes node evaluate the module anew.
REST_OF_THE_MONTH = """
let sent = 0;
const requests = async () => {
  while (sent < Number(process.argv[2])) {
    sent += 1;
    account.usage.apiCalls += 1;
    await import(`./snippet.js?request=${sent}`);
  }
};
await Promise.all(Array.from({ length: 16 }, requests));
console.log(sent);
"""


@pytest.fixture
def app(source: Database) -> Iterator[Database]:
    """The application's database, with the outbox as printed."""
    database = create_database(source.server, f"shop_{next(_numbers)}")
    database.execute(source_sql("shop"))
    yield database
    drop_database(database)


@pytest.fixture
def warehouse(target: Database) -> Iterator[Database]:
    database = create_database(target.server, f"shop_warehouse_{next(_numbers)}")
    database.execute(target_sql())
    yield database
    drop_database(database)


@pytest.fixture
def slack() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def set_up(directory: Path, app: Database, warehouse: Database, slack: Receiver) -> tuple[Path, str]:
    """`bridge init --recipe usage-limits`, its SQL run by the customer, and the page's "routed elsewhere: Slack" added
    to the branch that is over the line. The configuration and the ingress' address."""
    made = CliRunner().invoke(cli, ["init", "--recipe", "usage-limits", str(directory)])
    assert made.exit_code == 0, made.output
    for database, file, schema in ((app, "source.sql", "crm"), (warehouse, "target.sql", "events")):
        database.execute((directory / file).read_text())
        database.execute(f"grant usage on schema {schema} to outbox_bridge")
        database.execute(f"grant select, insert, update on all tables in schema {schema} to outbox_bridge")
    warehouse.execute("grant usage on schema bridge to outbox_bridge")
    warehouse.execute("grant select, insert, update, delete on all tables in schema bridge to outbox_bridge")
    listen = f"127.0.0.1:{free_port()}"
    config = directory / "bridge.yaml"
    text = config.read_text()
    blocked = "when: $event.used >= $event.limit\n        to: [events"
    for old, new in (
        ("source:\n", "source:\n  slot: shop\n"),
        (
            "connections:\n",
            f"connections:\n  csm: {{ type: slack, webhook_url: {slack.url}/services/T/B/x }}\n",
        ),
        (blocked, f"{blocked}, nudge"),
        ("    destinations:\n", f"    destinations:\n      nudge: {{ connection: csm, text: '{TEXT}' }}\n"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    text += (
        f'\nadmin: {{ listen: "${{BRIDGE_ADMIN}}" }}\ningress: {{ listen: "{listen}", api_keys: [{KEY}] }}\n'
    )
    config.write_text(text)
    return config, f"http://{listen}"


@pytest.mark.slow
@pytest.mark.node
def test_the_snippet_sent_five_thousand_times_is_one_row_and_one_message(
    tmp_path: Path,
    app: Database,
    warehouse: Database,
    slack: Receiver,
    bridge_process: Callable[..., BridgeProcess],
) -> None:
    config, url = set_up(tmp_path / "bridge", app, warehouse, slack)
    bridge_process(source=app.bridge_dsn, target=warehouse.bridge_dsn, config=config).start().wait_ready()
    shop = NpmProject(tmp_path)
    environment = {
        "SOURCE_DSN": app.bridge_dsn,
        "WAREHOUSE_DSN": warehouse.bridge_dsn,
        "BRIDGE_ADMIN": "127.0.0.1:0",
    }
    types = CliRunner().invoke(
        cli, ["schema", "event", "-c", str(config), "--typescript", "--module", ALIAS], env=environment
    )
    shop.write("bridge-events.d.ts", types.stdout)
    shop.write("account.d.ts", ACCOUNT)
    shop.write("account.mjs", SHOP)
    shop.write("month.mjs", REST_OF_THE_MONTH)
    shop.write("snippet.ts", (SDK / "test" / "snippet.ts").read_text())
    shop.compile("snippet.ts", "account.d.ts", "bridge-events.d.ts")

    sender = {"BRIDGE_URL": url, "BRIDGE_API_KEY": KEY}
    shop.node("--import", "./account.mjs", "snippet.js", environment=sender)
    [message] = slack.wait(1)
    assert message.path == "/services/T/B/x"
    assert message.json["text"] == "ada: cus_1 is at 100000/100000 api-calls"
    sent = shop.node("--import", "./account.mjs", "month.mjs", str(MONTH - 1), environment=sender)
    assert 1 + int(sent) == MONTH

    # Another customer's event comes last: when it has arrived, so has everything before it.
    other = {"customer_id": "cus_2", "metric": "seats", "limit": 10, "used": 11, "plan": "team"}
    app.execute("select outbox.emit('usage.limit_reached', %s::jsonb)", [json.dumps(other)])
    slack.wait_for(lambda found: any("cus_2" in one.json["text"] for one in found))
    assert app.value("select count(*) from outbox.event") == 2
    assert app.value("select sum(count) from outbox.suppressed") == MONTH - 1
    assert warehouse.execute(
        "select customer_id, metric, used, plan, mrr, csm, renewal::text, payload ->> 'used' from events.usage_limits"
        " where customer_id = 'cus_1'"
    ) == [("cus_1", "api-calls", 100000, "pro", 1490, "ada", "2027-03-01", "100000")]
    assert warehouse.value("select count(*) from events.usage_limits") == 2
    assert len(slack.requests) == 2
    assert len({one.identity for one in slack.requests}) == 2
