"""The configuration beside its file, and prove and replay, in a real browser."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

from tests.integration.console.conftest import address, sign_in
from tests.integration.ops.conftest import emit, usage
from tests.integration.sinks.conftest import SECRET
from tests.support.bridge_process import BridgeProcess
from tests.support.chromium import Chromium
from tests.support.world import World, until

Start = Callable[[], BridgeProcess]


def test_what_a_reload_refused_stands_beside_what_runs(
    console: Start, browser: Chromium, world: World
) -> None:
    bridge = console()
    sign_in(browser, bridge, path="/configuration")
    browser.sees("is what runs")
    world.text = world.text.replace("mode: upsert", "mode: upset")
    bridge.signal(signal.SIGHUP)
    bridge.wait_log("reload refused")
    browser.open(address(bridge, "/configuration"))
    browser.sees("was refused")
    browser.sees("differs from what runs")
    assert "upset" in str(browser.run("document.querySelector('#diff').innerText"))
    assert "upset" in str(browser.run("document.querySelector('main ul').innerText"))  # lint
    html = str(browser.run("document.documentElement.outerHTML"))
    for secret in (SECRET, "anna-operates", "vera-views"):
        assert secret not in html
    assert "${SOURCE_DSN}" in html
    world.text = world.text.replace("mode: upset", "mode: upsert") + "a: [\n"
    browser.open(address(bridge, "/configuration"))
    browser.sees("the file is no YAML")
    assert SECRET not in bridge.get("/api/configuration")[1]
    assert browser.complaints == []


def test_prove_and_replay_are_started_watched_and_told(
    console: Start, browser: Chromium, world: World
) -> None:
    bridge = console()
    emit(world.source, *[usage() for _ in range(4)])
    until(lambda: world.applied() == 4, "rows")
    sign_in(browser, bridge, path="/jobs")
    browser.submit("#prove-it")
    browser.sees("no difference")
    world.target.execute(
        "delete from events.usage_limits where ctid in (select ctid from events.usage_limits limit 1)"
    )
    browser.submit("#prove-it")
    browser.sees("with differences")
    browser.fill("#rsince", "1h")
    browser.fill("#rreason", "a row was deleted")
    browser.submit("#replay-it")
    browser.sees("4 events read, 4 written to usage-limit-hits/events")
    assert world.applied() == 4
    browser.submit("#prove-it")
    browser.until("document.querySelectorAll('#jobs .word.good').length === 3", "proved again")
    acted = world.target.execute("select action, reason, result from bridge.audit order by id")
    assert acted[2:4] == [
        ("replay", "a row was deleted", "begun"),
        ("replay", "a row was deleted", "4 read, 4 written, 0 failed"),
    ]
    assert browser.complaints == []
    told = json.loads(bridge.get("/api/jobs")[1])["jobs"]
    assert [(one["kind"], one["state"]) for one in told] == [
        ("prove", "done"),
        ("replay", "done"),
        ("prove", "differs"),
        ("prove", "done"),
    ]


def test_a_viewer_may_look_and_not_act(console: Start, browser: Chromium, world: World) -> None:
    bridge = console()
    emit(world.source, usage())
    until(lambda: world.applied() == 1, "a row")
    sign_in(browser, bridge, "vera", "/jobs")
    for path in ("/jobs", "/dead", "/deliveries"):
        browser.open(address(bridge, path))
        assert browser.run("document.querySelectorAll('main form[method=post] button').length") == 0
    browser.sees("To act, sign in with an operator's token")
