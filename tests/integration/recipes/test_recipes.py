"""All recipes in one bridge: what each says of its samples is what becomes of them."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from bridge.cli import cli
from bridge.config.recipe import Recipe, recipes
from tests.support import truth
from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database
from tests.support.world import until

ALL = recipes()
HEAD = """\
version: 1
source: { dsn: "${SOURCE_DSN}" }
admin: { listen: "${BRIDGE_ADMIN}" }
"""


def merged(path: Path) -> Path:
    """A bridge.yaml to which `bridge recipe add` has added every recipe."""
    path.write_text(HEAD)
    runner = CliRunner(env={"BRIDGE_ADMIN": "127.0.0.1:8377"})
    for one in ALL:
        added = runner.invoke(cli, ["recipe", "add", one.name, "-c", str(path)])
        assert added.exit_code == 0, (one.name, added.output, added.exception)
    return path


def as_printed(database: Database, text: str) -> None:
    """The customer runs a recipe's SQL, and the grants that stand below it as comments."""
    database.execute(text)
    for grant in re.findall(r"^--   (grant .*;)$", text, re.MULTILINE):
        database.execute(grant)


def table_of(one: Recipe) -> str:
    found = re.search(r"create table if not exists (\S+) ", one.text("target.sql"))
    assert found
    return found[1]


def key_of(one: Recipe, payload: dict[str, Any]) -> str:
    return re.sub(r"{{ event\.(\w+) }}", lambda field: str(payload[field[1]]), one.about.idempotency_key)


def emit(source: Database) -> dict[str, list[UUID]]:
    """Each valid and filtered sample with its idempotency key, as the application; ids by recipe."""
    ids: dict[str, list[UUID]] = {}
    with source.connect(user="app") as connection:
        for one in ALL:
            ids[one.name] = []
            for payload in (*one.samples.valid, *one.samples.filtered):
                [(event,)] = connection.execute(
                    "select outbox.emit(%s, %s, idempotency_key => %s)",
                    [one.about.event, json.dumps(payload), key_of(one, payload)],
                ).fetchall()
                ids[one.name].append(event)
    return ids


def outcomes(bridge: BridgeProcess) -> Counter[tuple[str, str]]:
    """(pipeline, outcome) -> events, as /metrics has it."""
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(bridge.get("/metrics")[1]):
        for sample in family.samples:
            if sample.name == "outbox_bridge_events_total" and sample.value:
                found[sample.labels["pipeline"], sample.labels["outcome"]] += int(sample.value)
    return found


def effects(target: Database) -> Counter[str]:
    """Writes by table; a row that is written twice counts twice."""
    rows = target.execute("select table_name, count(*) from rig.effects group by table_name")
    return Counter(dict(rows))


def test_samples_land_once_or_nowhere_or_as_dead_letters_as_they_should(
    source: Database, target: Database, bridge_process: Callable[..., BridgeProcess], tmp_path: Path
) -> None:
    target.execute("drop schema events cascade")
    for one in ALL:
        as_printed(source, one.text("source.sql"))
        as_printed(target, one.text("target.sql"))
        with target.connect() as connection:
            truth.watch(connection, table_of(one))
    bridge = bridge_process(
        source=source.bridge_dsn, target=target.bridge_dsn, config=merged(tmp_path / "bridge.yaml")
    )
    bridge.start().wait_ready()

    first = emit(source)
    with source.connect(user="app") as connection:
        for one in ALL:
            for payload in one.samples.malformed:
                connection.execute("select outbox.emit(%s, %s)", [one.about.event, json.dumps(payload)])
    landed = Counter({table_of(one): len(one.samples.valid) for one in ALL})
    emitted = source.value("select count(*) from outbox.event")
    until(lambda: outcomes(bridge).total() >= emitted, f"{emitted} outcomes")

    counted = outcomes(bridge)
    for one in ALL:
        samples = one.samples
        assert counted[one.name, "applied"] == len(samples.valid), one.name
        assert counted[one.name, "filtered"] + counted[one.name, "unrouted"] == len(samples.filtered) > 0
        assert counted[one.name, "dead"] == len(samples.malformed) > 0, one.name
        rows = target.execute(f"select payload from {table_of(one)}")
        hidden = {"email", "ip"} if one.name == "failed-logins" else set()
        sent = [{name: p[name] for name in p if name not in hidden} for p in samples.valid]
        assert sorted(json.dumps(row, sort_keys=True) for (row,) in rows) == sorted(
            json.dumps(payload, sort_keys=True) for payload in sent
        ), one.name
    assert counted.total() == emitted
    assert effects(target) == landed
    letters = target.execute("select pipeline, code, count(*) from bridge.dead_letter group by 1, 2")
    assert sorted(letters) == sorted((one.name, "contract", len(one.samples.malformed)) for one in ALL)

    # the values that meet an exact type, a lookup, a rule
    def one_row(query: str) -> str:
        return " ".join(str(value) for value in target.execute(query)[0])

    [(csm,)] = source.execute("select csm from crm.customer where customer_id = 'cus_1'")
    assert one_row("select amount, csm from events.successful_payments where charge_id = 'ch_9'") == (
        f"9007199254740993 {csm}"
    )
    assert one_row(
        "select created_at at time zone 'UTC' from events.waitlist where position = 43"
    ).startswith("2027-03-01 09:31:07.25")
    assert one_row("select mrr::text from events.new_subscriptions where subscription_id = 'sub_1'") == "89.9"
    assert one_row("select subscription_id from events.canceled_subscriptions") == "sub_1"  # the same key
    assert one_row("select user_id, email, plan, source from events.signups where user_id = 'u_018f'") == (
        "u_018f ada@acme.com pro marketing-site"
    )
    assert one_row("select source from events.signups where user_id = 'usr_2'") == "partner"
    assert one_row("select score, grade from events.high_value_leads where lead_id = 'ld_1'") == "90 hot"

    # again, with the same keys
    assert emit(source) == first
    assert source.value("select count(*) from outbox.event") == emitted

    # a kill after the commit and before its confirmation: the table without a key has nothing but the checkpoint
    def sign_up(number: int) -> None:
        payload = {
            "user_id": f"usr_n{number}",
            "email": "n@acme.com",
            "plan": "pro",
            "new": {"field": number},
        }
        with source.connect(user="app") as connection:
            connection.execute("select outbox.emit('user.signed_up', %s)", [json.dumps(payload)])

    bridge.kill()
    bridge.start(BRIDGE_FAILPOINTS="settle.durable=kill@2").wait_log("streaming", since=len(bridge.lines))
    numbers = itertools.count()
    while bridge.running:
        sign_up(next(numbers))
    bridge.start().wait_ready()
    last = next(numbers)
    sign_up(last)
    landed["events.signups"] += last + 1
    newest = "select payload -> 'new' from events.signups where user_id = %s"
    row = until(lambda: target.execute(newest, [f"usr_n{last}"]), "the last sign-up")
    assert row == [({"field": last},)]  # a field that the contract does not know breaks nothing
    assert effects(target) == landed
    assert bridge.terminate() == 0


@pytest.mark.parametrize("one", ALL, ids=[one.name for one in ALL])
def test_its_idempotency_keys_are_different_for_different_samples(one: Recipe) -> None:
    payloads = (*one.samples.valid, *one.samples.filtered)
    assert len({key_of(one, payload) for payload in payloads}) == len(payloads)
