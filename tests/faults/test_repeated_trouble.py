"""Ready means delivering: a stream that makes no progress while events wait says so, in the server's own words."""

from __future__ import annotations

import pytest

from tests.support.variants import first_fast
from tests.support.world import World

_FULL = """
    create function events.full() returns trigger language plpgsql as
        $$ begin raise exception 'the disk quota is used up' using errcode = '{state}'; end $$;
    create trigger full_up before insert on events.usage_limits for each row execute function events.full()"""


@pytest.mark.fault(19)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.parametrize("state", ["53400", "53200"])
def test_a_stream_that_is_refused_again_and_again_is_not_ready(
    world: World, capture: str, state: str
) -> None:
    world.configure(lambda c: c["source"].update(capture=capture, poll_interval="100ms"))
    bridge = world.bridge().start()
    bridge.wait_ready()
    world.caught_up()
    world.target.execute(_FULL.format(state=state))
    with world.producer() as producer:
        producer.transaction(3)
    body = bridge.wait_readyz(lambda status, body: status == 503 and "target_refused" in body)
    assert "refused a batch" in body
    for _ in range(8):  # more than one session's tries: it begins anew, and is not ready for it
        seen = len(bridge.lines)
        bridge.wait_log(f'"reason":"{state}"', since=seen)
    assert bridge.get("/readyz")[0] == 503
    assert world.dead_letters() == []
    world.target.execute("drop function events.full() cascade")
    bridge.wait_ready()
    world.law()
