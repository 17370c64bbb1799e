"""A bridge with a sink, tokens of a viewer and operators, and a browser that looks at its console."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.integration.sinks.conftest import SECRET
from tests.support.bridge_process import BridgeProcess
from tests.support.chromium import Chromium
from tests.support.receiver import Receiver
from tests.support.world import World

TOKENS = {
    "anna": {"token": "anna-operates", "role": "operator", "show_values": True},
    "omar": {"token": "omar-operates", "role": "operator"},
    "vera": {"token": "vera-views"},
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with closing(Receiver()) as made:
        yield made


@pytest.fixture
def browser() -> Iterator[Chromium]:
    made = Chromium()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def console(world: World, receiver: Receiver) -> Callable[..., BridgeProcess]:
    """Starts a bridge whose console has the TOKENS, and a sink; ready when this returns."""

    def start() -> BridgeProcess:
        def change(document: dict[str, Any]) -> None:
            document["admin"]["tokens"] = TOKENS
            document["connections"]["hook"] = {
                "type": "webhook",
                "url": receiver.url,
                "allow": ["127.0.0.0/8"],
                "secret": SECRET,
            }
            document["pipelines"]["usage-limit-hits"]["destinations"]["told"] = {"connection": "hook"}

        world.configure(change)
        bridge = world.bridge()
        bridge.token = "vera-views"
        return bridge.start().wait_ready()

    return start


def address(bridge: BridgeProcess, path: str = "/") -> str:
    return f"http://{bridge.admin}{path}"


def sign_in(browser: Chromium, bridge: BridgeProcess, name: str = "anna", path: str = "/") -> None:
    browser.open(address(bridge, path))
    browser.sees("Sign in")
    browser.fill("#token", str(TOKENS[name]["token"]))
    browser.submit("button")
    browser.sees(f"{name}, {TOKENS[name].get('role', 'viewer')}")
    browser.complaints.clear()  # the 401 that brought the form
