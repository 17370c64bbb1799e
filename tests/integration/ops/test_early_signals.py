"""SIGHUP before the bridge runs."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.world import World


@pytest.mark.parametrize("fork", ["1", "0"], ids=["forked", "plain"])
def test_a_reload_that_is_asked_for_during_the_start_is_done_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch, fork: str
) -> None:
    """The file is a pipe at first, so that the bridge stands still while it reads it."""
    monkeypatch.setenv("BRIDGE_TEST_FORK", fork)
    text, pipe = world.text, world.config.with_name("pipe.yaml")
    os.mkfifo(pipe)
    world.config = pipe
    bridge = world.bridge().start()
    with pipe.open("w") as writing:  # returns when the bridge has opened it
        bridge.signal(signal.SIGHUP)
        pipe.unlink()
        world.text = text.replace("usage-limit-hits:", "renamed-since:")
        writing.write(text)
    bridge.wait_log('"reloaded"')
    bridge.wait_ready()
    assert bridge.terminate() == 0
