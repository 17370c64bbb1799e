"""Dead letters in a real browser: found, corrected with a preview, retried, discarded and brought back, and audited."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.integration.console.conftest import address, sign_in
from tests.integration.ops.conftest import emit, letters, usage
from tests.support.bridge_process import BridgeProcess
from tests.support.chromium import Chromium
from tests.support.world import World, until

Start = Callable[[], BridgeProcess]


def test_a_letter_is_corrected_previewed_and_applied_once(
    console: Start, browser: Chromium, world: World
) -> None:
    bridge = console()
    emit(world.source, usage(limit="ten", used=10**20 + 1))
    until(lambda: letters(world.target) == 2, "a letter for the table and one for the hook")
    sign_in(browser, bridge, path="/dead?destination=events")
    browser.sees("limit")
    browser.submit("section.card a")
    assert '"used": 100000000000000000001,' in str(
        browser.run("document.querySelector('#payload').value")
    )  # exact
    browser.click("#preview-it")
    browser.sees("A retry would end as failed: contract")
    text = str(browser.run("document.querySelector('#payload').value")).replace('"ten"', "10")
    browser.fill("#payload", text)
    browser.click("#preview-it")
    browser.sees("A retry would end as applied. Nothing was changed.")
    browser.sees("limit\t10")
    assert world.applied() == 0
    browser.fill("#reason", "a typing error")
    browser.submit("#save")
    browser.sees("The corrected payload is kept; retry uses it")
    browser.submit("#retry")
    browser.sees("1 applied")
    assert world.target.value('select "limit" from events.usage_limits') == 10
    browser.open(address(bridge, "/dead?destination=told"))
    browser.submit("section.card a")
    browser.fill("#payload", text)
    browser.submit("#retry")  # what was typed, not what was sent
    browser.sees("1 applied")
    kept = world.target.execute(
        "select payload ->> 'limit', edited ->> 'limit' from bridge.dead_letter where edited is not null"
    )
    assert kept == [("ten", "10")] * 2  # what was sent stays
    browser.open(address(bridge, "/audit"))
    browser.sees("a typing error")
    acted = world.target.execute("select who, via, action, reason, result from bridge.audit order by id")
    assert acted == [
        ("anna", "console", "dead edit", "a typing error", "kept"),
        ("anna", "console", "dead retry", None, "1 applied"),
        ("anna", "console", "dead edit", None, "kept"),
        ("anna", "console", "dead retry", None, "1 applied"),
    ]
    assert "ten" not in str(world.target.execute("select subject from bridge.audit"))
    assert browser.complaints == []


def test_letters_are_discarded_in_bulk_and_undone(console: Start, browser: Chromium, world: World) -> None:
    bridge = console()
    emit(world.source, *[{"customer_id": number} for number in range(3)])
    until(lambda: letters(world.target) == 6, "six letters")
    sign_in(browser, bridge, path="/dead")
    browser.click("input[data-all]")
    browser.fill("#reason", "tests")
    browser.submit("#discard")
    browser.sees("6 discarded")
    assert letters(world.target, "discarded") == 6
    browser.submit(".note button")
    browser.sees("6 open again")
    assert letters(world.target) == 6
    browser.submit("form.act button:nth-of-type(2)")  # of the first cause: retry all
    browser.sees("3 failed (contract:")
    done = world.target.execute("select action, reason, subject -> 'count' from bridge.audit order by id")
    assert done == [("dead discard", "tests", 6), ("dead restore", None, 6), ("dead retry", None, 3)]
    assert "6" in world.command("dead", "discard", "--all")  # a command is audited too
    assert world.target.value("select via from bridge.audit order by id desc limit 1") == "command"


@pytest.mark.security(22)
def test_who_sees_no_values_sees_none_and_cannot_edit(
    console: Start, browser: Chromium, world: World
) -> None:
    bridge = console()
    emit(world.source, usage(customer_id="cus_secret", limit="ten"))
    until(lambda: letters(world.target) == 2, "two letters")
    letter = world.target.value("select id::text from bridge.dead_letter where destination = 'events'")
    sign_in(browser, bridge, "omar", path=f"/dead/{letter}")
    browser.sees("This token does not show values")
    browser.click("#preview-it")
    browser.sees("A retry would end as failed")
    assert "cus_secret" not in str(browser.run("document.documentElement.outerHTML"))
    bridge.token = "omar-operates"
    assert "cus_secret" not in bridge.get(f"/api/dead/{letter}")[1]
    bridge.token = "anna-operates"
    assert "cus_secret" in bridge.get(f"/api/dead/{letter}")[1]
    found = json.loads(bridge.get("/api/dead?destination=events")[1])
    assert [one["letters"] for one in found["groups"]] == [1]


@pytest.mark.slow
def test_an_older_ledger_is_read_and_says_what_acting_needs(
    console: Start, browser: Chromium, world: World
) -> None:
    bridge = console()
    world.target.execute(
        "drop table bridge.audit, bridge.sample; alter table bridge.dead_letter drop column edited;"
        " delete from bridge.migration where version = 4"
    )
    emit(world.source, {"customer_id": 1})
    until(lambda: letters(world.target) == 2, "two letters")
    sign_in(browser, bridge, path="/dead")
    browser.submit("form.act button:nth-of-type(2)")
    browser.sees("needs version 4 of the ledger")
    browser.sees("bridge schema target | psql <target>")
    assert letters(world.target) == 2
    browser.open(address(bridge))
    browser.sees("keeps no samples")
    browser.open(address(bridge, "/audit"))
    browser.sees("keeps no audit")
