"""What `bridge lint` calls an error stops the start and refuses a reload, and doctor says it too."""

from __future__ import annotations

import re
import signal

from bridge.config.lint import lint
from bridge.config.snapshot import ALTERED_SINCE
from bridge.problem import format_path
from tests.support.fixes import line_in
from tests.support.world import World, until

WRONG = {
    "$custmer.csm": ("unknown-name", "there is no $custmer here; did you mean customer?"),
    "$event.metrik": ("unknown-field", "the event's contract has no field metrik; did you mean metric?"),
}


def test_what_lint_refuses_neither_starts_nor_is_reloaded(world: World) -> None:
    good = world.text
    broken = good.replace("$customer.csm\n", "$custmer.csm\n").replace("$event.metric\n", "$event.metrik\n")
    world.text = broken
    found, run = world.run("lint"), world.run("run")
    doctor = world.json("doctor", code=1)
    assert (found.returncode, run.returncode) == (1, 2)
    for name, message in WRONG.values():
        [line] = [line for line in found.stdout.splitlines() if line.endswith(f"[{name}]")]
        place, _, said = line.partition(": error: ")
        assert re.fullmatch(r".*bridge\.yaml:\d+:\d+", place)
        assert message in said
        assert f"{place}: {said}" in run.stderr
        [check] = [one for one in doctor["checks"] if one["check"] == name]
        assert (check["level"], check["fix_kind"]) == ("error", "config")
        assert check["message"].startswith(f"{place}: ")
    allowed = world.run("run", "--allow-lint", "unknown-name")
    assert allowed.returncode == 2
    assert "[unknown-name]" not in allowed.stderr
    assert "[unknown-field]" in allowed.stderr

    world.text = good.replace("version: 1\n", "version: 1  # lint: allow nothing-there, tried\n")
    bridge = world.bridge().start().wait_ready()
    [told] = [line for line in bridge.logs if line["event"] == "lint"]
    assert (told["name"], told["level"]) == ("unused-allow", "warning")
    world.text = broken
    lines = len(bridge.lines)
    bridge.signal(signal.SIGHUP)
    refused = bridge.wait_log("reload refused", since=lines)
    assert "did you mean customer?" in refused
    assert "[unknown-field]" in refused
    until(lambda: "config_last_reload_successful 0.0" in bridge.get("/metrics")[1], "the metric says so")
    with world.producer() as producer:
        producer.transaction(3)
        world.caught_up()
        assert world.target.value("select count(*) from events.usage_limits where metric is null") == 0
        reason = "  # lint: allow unknown-field it comes with the next release\n"
        world.text = good.replace("$event.metric\n", f"$event.metrik{reason}")
        bridge.signal(signal.SIGHUP)
        bridge.wait_log("reloaded", since=lines)
        assert world.run("lint").stdout == ""
        producer.transaction(1)
        world.caught_up()
    assert world.target.value("select count(*) from events.usage_limits where metric is null") >= 1


MIXED = """\
version: 1
source: {{ dsn: "${{SOURCE_DSN}}" }}
connections:
  warehouse: {{ type: postgres, dsn: "${{WAREHOUSE_DSN}}" }}
  team: {{ type: slack, webhook_url: "https://hooks.slack.com/services/T0/B0/x" }}
admin: {{ listen: "${{BRIDGE_ADMIN}}" }}
events:
  usage.limit_reached:
    {{ customer_id: string, metric: {{ enum: [seats, api-calls] }}, at: timestamp, used: number, said: string }}
pipelines:
  hits:
    event: usage.limit_reached
    steps:
      - enrich.entity:
          as: customer
          key: $event.customer_id
          sql: select customer_id, mrr, csm, renewal from crm.customer where customer_id = any(%(keys)s)
      - set: {{ who: "{set}" }}
      - filter: "{filter}"
    destinations:
      rows:
        connection: warehouse
        table: public.hits
        columns: {{ n: "{n}", label: "{label}", since: "{since}", who: "$who" }}
      told: {{ connection: team, text: "{{{{ customer.csm }}}}{body}", digest: {{ by: "{by}", every: 1m }} }}
"""
SOUND = {
    "set": "$customer.csm",
    "filter": "$event.used > 1",
    "n": "$event.used",
    "label": "$event.metric",
    "since": "$event.at",
    "body": "",
    "by": "$customer.csm",
}
LEAVES = {  # what is changed -> level, name, and some words of the finding
    ("set", "$customer.cms"): ("error", "lookup-column", "did you mean csm?"),
    ("filter", "$customer.cms == 'ada'"): ("error", "lookup-column", "did you mean csm?"),
    ("body", "{{ customer.cms }}"): ("error", "lookup-column", "did you mean csm?"),
    ("by", "$customer.cms"): ("error", "lookup-column", "did you mean csm?"),
    ("n", "$customer.cms"): ("error", "lookup-column", "did you mean csm?"),
    ("filter", "$customer.csm == 5"): ("error", "unlike-values", "is a text"),
    ("filter", "$customer.renewal > 5"): ("error", "unlike-values", "is a date or time"),
    ("n", "$event.metric"): ("error", "column-words", "column n is bigint, and $event.metric is 'seats'"),
    ("n", "$event.at"): ("error", "column-type", "column n is bigint, and $event.at is moment"),
    ("n", "many"): ("error", "column-words", "the value is 'many'"),
    ("n", "$customer.renewal"): ("error", "column-type", "no value fits"),
    ("n", "$customer.csm"): ("warning", "column-type", "what does not fit is a dead letter"),
    ("n", "$event.said"): ("warning", "column-type", "let the contract say `said: number`"),
    ("since", "$event.said"): ("warning", "column-type", "let the contract say `said: timestamp`"),
    ("body", "{{ 'x' if event.metric == 'seat' else 'y' }}"): ("error", "never-equal", "did you mean seats?"),
    ("body", "{{ 'x' if customer.csm > 5 else 'y' }}"): ("error", "unlike-values", "is a text"),
    ("label", "$customer.csm"): ("fits", "", ""),
    ("label", "seat"): ("error", "column-words", "did you mean seats?"),
    ("since", "$customer.mrr"): ("warning", "column-type", "what does not fit is a dead letter"),
    ("since", "$event.used > 5"): ("error", "column-type", "is boolean"),
    ("filter", "$customer.renewal == '2027-01-01' and $customer.mrr == 5"): ("fits", "", ""),
}


def test_what_the_servers_say_is_joined_by_doctor_and_offline_by_a_snapshot(world: World) -> None:
    with world.target.connect() as owner:
        owner.execute(
            "create type public.metric as enum ('seats', 'api-calls');"
            "create table public.hits (n bigint, label public.metric, since timestamptz, who varchar(40));"
            "grant select, insert on public.hits to outbox_bridge"
        )
    written = world.directory / "bridge.snapshot.json"

    def put(**changed: str) -> None:
        world.text = MIXED.format(**{**SOUND, **changed})

    def by_lint() -> list[tuple[str, str, str]]:
        return [
            (one.level, one.name, f"{format_path(one.path)}: {one.message}; {_beside_its_age(one.fix)}")
            for one in lint(world.config, {"BRIDGE_ADMIN": "127.0.0.1:1"})
            if one.name != "unset-variable"
        ]

    def by_doctor(code: int) -> list[tuple[str, str, str]]:
        words = {"warn": "warning", "error": "error"}
        return [
            (words[one["level"]], one["check"], f"{one['message'].split(': ', 1)[1]}; {one['fix']}")
            for one in world.json("doctor", code=code)["checks"]
            if one["where"] == "bridge" and one["level"] != "ok" and "bridge.yaml:" in one["message"]
        ]

    put()
    assert by_lint() == []
    world.command("doctor", "--snapshot")
    first = written.read_text()
    assert not re.search(r"ada|dsn|password|postgresql", first)
    for (key, value), (level, name, words) in LEAVES.items():
        put(**{key: value})
        found = by_lint()
        assert (level, name) in [one[:2] for one in found] or (found == [] and level == "fits"), (
            key,
            value,
            found,
        )
        assert any(words in one[2] for one in found) or level == "fits", (key, value, found)
    aside = written.rename(written.with_suffix(".aside"))
    put(n="$event.metric", body="{{ customer.cms }}")
    assert by_lint() == []
    joined = by_doctor(1)
    aside.rename(written)
    assert joined == by_lint()
    assert [one[1] for one in joined] == ["column-words", "lookup-column"]
    assert world.run("run").returncode == 2
    put()
    world.text = world.text.replace("mrr, csm", "csm, mrr")  # another query, and another form of the table
    assert [one[:2] for one in by_lint()] == [("warning", "old-snapshot")]
    world.target.execute("alter table public.hits add column more int")
    [told] = [one for one in world.json("doctor")["checks"] if one["check"] == "snapshot"]
    assert (told["level"], told["fix"]) == ("warn", "bridge doctor --snapshot")
    assert "warehouse: public.hits: more is new" in told["message"]
    world.typed(told["fix"])
    assert by_lint() == []
    assert written.read_text() != first
    # -- an enum that has other words since: the snapshot refuses what the server takes
    world.target.execute("alter type public.metric rename value 'api-calls' to 'calls'")
    put(label="calls")
    refused = world.run("run")
    assert refused.returncode == 2
    assert "column label is public.metric (seats, api-calls), and the value is 'calls'" in refused.stderr
    again = line_in(refused.stderr.partition("altered since the snapshot: `")[2], "bridge doctor --snapshot")
    [told] = [one for one in world.json("doctor")["checks"] if one["check"] == "snapshot"]
    assert "label was public.metric (seats, api-calls) and is public.metric (seats, calls)" in told["message"]
    world.typed(again)
    assert by_lint() == []


def _beside_its_age(fix: str) -> str:
    return fix.removesuffix(ALTERED_SINCE).removesuffix("; ")
