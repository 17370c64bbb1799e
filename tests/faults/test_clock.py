"""The bridge's clock jumps. Positions are LSNs and xids and waits are monotonic: nothing may depend on the hour."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.debian import CACHE, tool
from tests.support.producers import Traffic
from tests.support.world import World, until

DAY = timedelta(days=1)


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """What the bridge's wall clock is wrong by, such as "+1d": libfaketime reads it at every look."""
    made = tmp_path / "clock"
    made.write_text("+0")
    return made


def library() -> Path:
    """libfaketime, from where Debian's faketime has it."""
    program, _ = tool("faketime", "faketime", "libfaketime")
    roots = [CACHE / "faketime", Path("/usr/lib")]
    found = [at for root in roots for at in root.rglob("libfaketimeMT.so.1")]
    assert found, f"{program} is here, and its library is not"
    return found[0]


def set_clock(clock: Path, offset: str) -> None:
    """At once, so that nobody reads half of it."""
    new = clock.with_suffix(".new")
    new.write_text(offset)
    os.replace(new, clock)


@pytest.mark.fault(10)
@pytest.mark.parametrize("capture", ["slot", pytest.param("poll", marks=pytest.mark.slow)])
def test_a_clock_that_jumps_a_day_either_way_changes_nothing(world: World, clock: Path, capture: str) -> None:
    world.configure(lambda c: c["source"].update(capture=capture, poll_interval="100ms"))
    bridge = world.bridge(
        LD_PRELOAD=str(library()),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        DONT_FAKE_MONOTONIC="1",
    ).start()
    bridge.wait_log("streaming" if capture == "slot" else "polling")
    with Traffic(world.source.dsn, producers=2, burst=100, pause=0.02):
        for offset, wrong_by in (("+1d", DAY), ("-1d", -DAY), ("+0", timedelta())):
            set_clock(clock, offset)
            world.caught_up()
            until(lambda: world.target.execute(_END), "its session is ended")
            world.caught_up()
            lines = len(bridge.lines)
            bridge.signal(signal.SIGHUP)
            said = json.loads(bridge.wait_log("reloaded", since=lines))
            assert abs(datetime.fromisoformat(said["time"]) - datetime.now(UTC) - wrong_by) < DAY / 24
            floor = world.checkpoint("floor")
            until(lambda known=floor: world.checkpoint("floor") != known, "the floor rises")  # type: ignore[misc]
    world.law()
    assert bridge.terminate() == 0


_END = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'bridge/%'"
