"""An event of one's own, from `bridge init` to the first row; and a table that is missing, by what doctor prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli import cli
from bridge.planning.suggested_table import quoted
from tests.integration.ops.conftest import emit, rows, usage
from tests.support.servers import Database
from tests.support.world import World, until

LONG = "x" * 70
_OPTIONS = (
    *("--event", "order.placed", "--field", "order_id:string", "--field", "amount:number"),
    *(
        "--field",
        "order:string?",
        "--field",
        "items:array",
        "--field",
        "at:timestamp",
        "--table",
        "public.limits",
        # of another alphabet; that every table has already; longer than Postgres's names; words that it reserves
        "--field",
        "größe:integer",
        "--field",
        "ctid:string",
        "--field",
        f"{LONG}:string?",
        "--field",
        "is:boolean?",
        "--field",
        "event_id:string?",
        "--field",
        "outbox_event_id:string?",
    ),
)


@pytest.mark.parametrize("by", ["target.sql", "doctor"])
def test_an_own_event_passes_every_check_and_delivers(
    world: World, target: Database, tmp_path: Path, by: str
) -> None:
    made = tmp_path / "made"
    ran = CliRunner().invoke(cli, ["init", *_OPTIONS, str(made)])
    assert ran.exit_code == 0, ran.output
    world.text = (made / "bridge.yaml").read_text() + '\nadmin: { listen: "${BRIDGE_ADMIN}" }\n'
    world.command("lint")
    assert "ok    an event lands in the table" in world.command("test")
    [finding] = [one for one in _doctor(world) if one["check"] == "table_missing"]
    if by == "doctor":
        sql = finding["fix"]
    else:
        sql = (made / "target.sql").read_text()
        role = target.bridge_dsn.partition("user=")[2].partition(" ")[0].strip("'")
        grants = [line.removeprefix("--   ") for line in sql.splitlines() if line.startswith("--   grant")]
        assert len(grants) == 2
        sql += "\n".join(grants).replace("outbox_bridge", role)
    target.execute(sql)
    assert [one for one in _doctor(world) if one["level"] == "error"] == []
    bridge = world.bridge().start().wait_ready()
    event = {"order_id": "o1", "amount": 19.99, "items": [1, "2"], "at": "2027-01-01T00:00:00Z"}
    event |= {"größe": 7, "ctid": "c", LONG: "l", "is": True}
    world.command("emit", "order.placed", json.dumps(event))
    until(lambda: target.value("select count(*) from public.limits") == 1, "the row")
    row = target.execute('select order_id, amount::text, "order", items, payload from public.limits')
    assert row == [("o1", "19.99", None, [1, "2"], event)]
    odd = target.execute(f'select "größe", ctid_, {LONG[:63]}, "is", event_id from public.limits')
    assert odd == [(7, "c", "l", True, None)]
    reserved = target.execute("select word from pg_get_keywords() where catcode in ('R', 'T')")
    assert {word for (word,) in reserved if quoted(word) == word} == set()
    assert world.dead_letters() == []
    assert bridge.terminate() == 0


def _doctor(world: World) -> list[dict[str, str]]:
    ran = world.run("doctor", "--json")
    told = json.loads(ran.stdout)
    found: list[dict[str, str]] = told["checks"] if isinstance(told, dict) else told
    return found


def test_the_printed_table_has_the_types_of_what_is_looked_up(
    world: World, source: Database, target: Database
) -> None:
    target.execute("alter table events.usage_limits rename to gone")
    [finding] = [one for one in _doctor(world) if one["check"] == "table_missing"]
    assert "mrr numeric" in finding["fix"]
    assert "renewal date" in finding["fix"]
    assert "/*" not in finding["fix"]
    target.typed(finding["fix"])
    assert [one for one in _doctor(world) if one["level"] == "error"] == []
    bridge = world.bridge().start().wait_ready()
    emit(source, usage())
    until(lambda: rows(target) == 1, "the row")
    assert target.value("select mrr::text from events.usage_limits") == "10.50"
    assert bridge.terminate() == 0
    printed = world.command("schema", "table", "usage-limit-hits/events")
    target.execute("drop table events.usage_limits")
    target.execute(printed.replace("outbox_bridge", "public"))
    ran = world.run("schema", "table", "usage-limit-hit")
    assert ran.returncode == 2
    assert "did you mean usage-limit-hits" in ran.stderr
