"""The console's frame and overview in a real browser: signing in, what flows where, what is wrong, after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.integration.console.conftest import address, sign_in
from tests.integration.ops.conftest import emit, usage
from tests.support.bridge_process import BridgeProcess
from tests.support.chromium import Chromium
from tests.support.receiver import Receiver
from tests.support.world import World, until

Start = Callable[[], BridgeProcess]


def test_overview_draws_what_flows_and_survives_a_restart(
    console: Start, browser: Chromium, world: World, receiver: Receiver
) -> None:
    bridge = console()
    emit(world.source, *[usage() for _ in range(7)])
    until(lambda: world.applied() == 7 and len(receiver.requests) == 7, "rows and messages")
    sign_in(browser, bridge)
    browser.until(
        "document.querySelectorAll('svg.flow .node').length === 4", "a source, a pipeline, two ends"
    )
    counts = "[...document.querySelectorAll('svg.flow .count')].map((one) => one.textContent).join()"
    browser.until(f"{counts} === '7,7,7'", "what has passed on each edge")
    browser.until("document.querySelectorAll('.charts canvas').length === 4", "four charts")
    assert bridge.terminate() == 0
    assert world.target.value("select sum(events) from bridge.sample") == 7

    again = console()
    sign_in(browser, again)
    browser.until(f"{counts} === '7,7,7'", "the last day's, not the process's")
    assert browser.complaints == []


def test_what_is_wrong_stands_first_with_its_fix_and_a_way_there(
    console: Start, browser: Chromium, world: World
) -> None:
    bridge = console()
    emit(world.source, {"customer_id": 1})
    until(world.dead_letters, "a dead letter")
    sign_in(browser, bridge)
    browser.sees("2 dead letters")
    assert browser.run("document.querySelector('#overview section h2').innerText") == "What is wrong"
    browser.submit("#overview .card.bad a")
    assert browser.run("location.pathname + location.search") == "/dead?pipeline=usage-limit-hits"


def test_a_wrong_token_opens_nothing_and_a_way_back_is_only_here(
    console: Start, browser: Chromium, world: World
) -> None:
    bridge = console()
    browser.open(address(bridge, "/audit?who=anna"))
    browser.fill("#token", "guessed")
    browser.submit("button")
    browser.sees("No such token.")
    browser.fill("#token", "vera-views")
    browser.submit("button")
    assert browser.run("location.pathname + location.search") == "/audit?who=anna"
    browser.sees("No action yet.")
    browser.submit(".who button")
    browser.sees("Sign in")
    assert browser.run("document.cookie") == ""  # HttpOnly, and gone
    browser.run("document.querySelector('[name=next]').value = '//evil.example'")
    browser.fill("#token", "vera-views")
    browser.submit("button")
    assert str(browser.run("location.href")) == address(bridge, "/")


@pytest.mark.slow
def test_ten_viewers_are_answered_and_the_history_has_every_minute(console: Start) -> None:
    bridge = console()
    pages = [bridge.get("/part/overview") for _ in range(10)]
    assert {status for status, _ in pages} == {200}
    assert len(json.loads(bridge.get("/api/history")[1])["at"]) == 6 * 60
