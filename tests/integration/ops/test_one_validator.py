"""What `bridge lint` calls an error stops the start and refuses a reload, and doctor says it too."""

from __future__ import annotations

import re
import signal

from tests.support.world import World, until

WRONG = {
    "$custmer.csm": ("unknown-name", "there is no $custmer here; did you mean customer?"),
    "$event.metrik": ("unknown-field", "the event's contract has no field metrik; did you mean metric?"),
}


def test_what_lint_refuses_neither_starts_nor_is_reloaded(world: World) -> None:
    good = world.text
    broken = good.replace("$customer.csm\n", "$custmer.csm\n").replace("$event.metric\n", "$event.metrik\n")
    world.text = broken
    lint, run = world.run("lint"), world.run("run")
    doctor = world.json("doctor", code=1)
    assert (lint.returncode, run.returncode) == (1, 2)
    for name, message in WRONG.values():
        [line] = [line for line in lint.stdout.splitlines() if line.endswith(f"[{name}]")]
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
