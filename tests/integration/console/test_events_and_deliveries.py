"""Events and messages in a real browser: found, explained, sent now, discarded and brought back; sinks paused."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.integration.console.conftest import address, sign_in
from tests.integration.ops.conftest import emit, letters, usage
from tests.support.bridge_process import BridgeProcess
from tests.support.chromium import Chromium
from tests.support.receiver import Receiver, Reply
from tests.support.world import World, until

Start = Callable[[], BridgeProcess]


def test_an_event_is_found_by_outcome_and_its_history_has_its_values(
    console: Start, browser: Chromium, world: World, receiver: Receiver
) -> None:
    bridge = console()
    [good] = emit(world.source, usage(customer_id="cus_good"), key="k1")
    [bad] = emit(world.source, {"customer_id": 1}, key="k2")
    stray = world.source.value("select outbox.emit('nobody.takes', '{}'::jsonb)::text")
    until(lambda: world.applied() == 1 and letters(world.target) == 2 and receiver.requests, "all have come")
    sign_in(browser, bridge, path="/events")
    for event, outcome in ((good, "applied"), (bad, "dead"), (stray, "unmatched")):
        browser.sees(event)
        browser.run(f"document.querySelector('#outcome').value = '{outcome}'")
        browser.submit("form.search button")
        assert (
            browser.run("[...document.querySelectorAll('tbody a')].map((one) => one.innerText).join()")
            == event
        )
        browser.open(address(bridge, "/events"))
    for name, value in (("id", good), ("type", "usage.*"), ("key", "k1"), ("since", "1h")):
        found = json.loads(bridge.get(f"/api/events?{name}={value}&limit=9")[1])["events"]
        assert good in {one["id"] for one in found}
    assert json.loads(bridge.get("/api/events?key=k3")[1])["events"] == []
    assert bridge.get("/api/events?since=soon")[0] == 422
    browser.open(address(bridge, f"/events/{good}"))
    browser.sees("its transaction is applied")
    browser.sees("cus_good")
    browser.sees("message sent after 1 attempt")
    browser.open(address(bridge, f"/events/{bad}"))
    browser.submit(".card a")
    browser.sees("Correct and retry")
    told = bridge.get(f"/api/events/{good}")[1]  # vera's token shows no values
    assert ("cus_good" in told, "•••" in json.loads(told)["event"]["payload"]) == (False, True)
    assert browser.complaints == []


def test_messages_are_sent_now_discarded_and_brought_back(
    console: Start, browser: Chromium, world: World, receiver: Receiver
) -> None:
    receiver.always = Reply(503, b"down")
    bridge = console()
    emit(world.source, *[usage() for _ in range(3)])

    def states() -> dict[str, int]:
        return dict(world.target.execute("select state, count(*)::int from bridge.delivery group by 1"))

    until(lambda: world.target.value("select count(*) from bridge.delivery where attempts > 0"), "an answer")
    sign_in(browser, bridge, path="/deliveries")
    browser.sees("after http_503")
    browser.click("tbody tr:nth-of-type(3) input")
    browser.fill("#reason", "not wanted")
    browser.submit("#discard")
    browser.sees("1 discarded")
    assert states() == {"pending": 2, "discarded": 1}
    browser.submit(".note button")
    browser.sees("1 waiting again")
    assert states() == {"pending": 3}
    receiver.always = Reply()
    browser.click("input[data-all]")
    browser.submit("#retry")
    browser.sees("due now")
    until(lambda: states() == {"sent": 3}, "all are sent")
    browser.open(address(bridge, "/deliveries?state=sent"))
    browser.sees("HTTP 503")
    acted = [row[0] for row in world.target.execute("select action from bridge.audit order by id")]
    assert acted == ["sink discard", "sink restore", "sink retry"]
    assert browser.complaints == []


def test_a_sink_is_paused_and_resumed(
    console: Start, browser: Chromium, world: World, receiver: Receiver
) -> None:
    bridge = console()
    sign_in(browser, bridge, path="/deliveries")
    browser.fill("section.card form [name=reason]", "their window")
    browser.submit("button.pause")
    browser.sees("paused by anna: their window")
    emit(world.source, usage())
    until(lambda: world.applied() == 1, "the table has it")
    browser.open(address(bridge, "/deliveries"))
    browser.sees("paused by anna: their window: bridge sink resume")
    assert not receiver.requests
    assert "paused by anna: their window" in world.command("sink", "list")
    browser.submit("button.resume")
    browser.sees("usage-limit-hits/told: resumed")
    until(lambda: receiver.requests, "what waited is sent")
    acted = world.target.execute("select who, action, reason from bridge.audit order by id")
    assert acted == [("anna", "sink pause", "their window"), ("anna", "sink resume", None)]
