"""The console for everybody: axe-core, light and dark, 400 px wide, by keyboard; and the pictures of docs/."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.console.conftest import address, sign_in
from tests.integration.ops.conftest import emit, usage
from tests.support.axe import findings
from tests.support.bridge_process import REPOSITORY, BridgeProcess
from tests.support.chromium import Chromium
from tests.support.receiver import Receiver, Reply
from tests.support.world import World, until

Start = Callable[[], BridgeProcess]
PAGES = {
    "overview": "/",
    "dead": "/dead",
    "events": "/events",
    "deliveries": "/deliveries",
    "configuration": "/configuration",
    "jobs": "/jobs",
    "audit": "/audit",
}


@pytest.fixture
def busy(console: Start, world: World, receiver: Receiver) -> tuple[BridgeProcess, dict[str, str]]:
    """A console on which there is something to see, and its pages: a letter's and an event's too."""
    bridge = console()
    [good, *_] = emit(world.source, *[usage(used=n) for n in range(1, 9)], key="acct_42")
    until(lambda: world.applied() == 8 and len(receiver.requests) == 8, "rows and messages")
    receiver.always = Reply(503, b"down for maintenance")
    emit(world.source, usage(limit="ten"), usage(plan="pro", used="many"))
    emit(world.source, usage(), usage(), key="acct_43")
    until(lambda: world.applied() == 10 and len(world.dead_letters()) == 4, "dead letters")
    refused = "select count(*) from bridge.delivery where attempts > 0 and state = 'pending'"
    until(lambda: world.target.value(refused), "an answer")
    letter = world.target.value(
        "select id::text from bridge.dead_letter where destination = 'events' limit 1"
    )
    return bridge, {**PAGES, "letter": f"/dead/{letter}", "event": f"/events/{good}"}


def prepare(browser: Chromium, bridge: BridgeProcess) -> None:
    """An action in the audit, a job, and a correction's preview where there is one."""
    sign_in(browser, bridge, path="/jobs")
    browser.submit("#prove-it")
    browser.sees("no difference")


def look(browser: Chromium, bridge: BridgeProcess, name: str, path: str) -> None:
    browser.open(address(bridge, path))
    if name == "overview":
        browser.until("document.querySelectorAll('.charts canvas').length === 4", "its charts")
    if name == "letter":
        text = str(browser.run("document.querySelector('#payload').value"))
        browser.fill("#payload", text.replace('"ten"', "10").replace('"many"', "7"))
        browser.click("#preview-it")
        browser.sees("A retry would end as applied")


def test_no_page_has_a_serious_finding_in_light_dark_or_narrow(
    busy: tuple[BridgeProcess, dict[str, str]], browser: Chromium
) -> None:
    bridge, pages = busy
    browser.open(address(bridge))
    assert findings(browser) == []  # the form to sign in
    prepare(browser, bridge)
    for name, path in pages.items():
        for dark, width in ((False, 1200), (True, 1200), (False, 400)):
            browser.dark(dark=dark)
            browser.size(width, 900)
            look(browser, bridge, name, path)
            assert findings(browser) == [], f"{name}, dark {dark}, {width} px"
            over = browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over == 0, f"{name} at {width} px is wider than the window by {over}"
    assert browser.complaints == []


def test_a_page_is_used_by_keyboard_alone(
    busy: tuple[BridgeProcess, dict[str, str]], browser: Chromium
) -> None:
    bridge, _ = busy
    browser.open(address(bridge))
    browser.sees("Sign in")
    browser.run("document.querySelector('#token').value = 'anna-operates'")
    browser.press("Enter")  # the field has the focus
    browser.sees("anna, operator")
    browser.until("document.readyState === 'complete'", "loaded")
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    for _ in range(3):
        browser.press("Tab")
    assert browser.run("document.activeElement.innerText") == "Events"
    browser.press("Enter")
    browser.sees("The newest")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    browser.press("Tab")
    assert browser.run(outline) == "solid"


@pytest.mark.slow
def test_pictures_of_the_pages_are_made(
    busy: tuple[BridgeProcess, dict[str, str]], browser: Chromium, tmp_path: Path
) -> None:
    """`make screenshots` keeps them in docs/."""
    bridge, pages = busy
    folder = REPOSITORY / "docs" / "console" if os.environ.get("BRIDGE_SCREENSHOTS") else tmp_path
    folder.mkdir(exist_ok=True)
    prepare(browser, bridge)
    for name, path in pages.items():
        look(browser, bridge, name, path)
        browser.picture(folder / f"{name}.png")
    browser.dark(dark=True)
    look(browser, bridge, "overview", "/")
    browser.picture(folder / "overview-dark.png")
    browser.dark(dark=False)
    browser.size(400, 800)
    look(browser, bridge, "dead", "/dead")
    browser.picture(folder / "dead-narrow.png", whole=False)
    made = sorted(one.name for one in folder.glob("*.png"))
    assert len(made) == len(pages) + 2
    assert all((folder / name).stat().st_size > 5000 for name in made)
