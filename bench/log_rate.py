"""How fast a relay fills its log: by the log's own clock, which is in every message that it stores."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from bridge.demo.log_server import LogNode
from bridge.stream.frames import decode


@dataclass(frozen=True, slots=True)
class Frames:
    """rate: rows a second from the first frame to the last, without the first's."""

    rows: int
    frames: int
    rate: float


def frames_in(node: LogNode, stream: str, events: int, limit: float) -> Frames:
    """Wait until the newest frames have so many rows, and count them. The log holds nothing else that has rows."""
    return asyncio.run(_count(node.url, stream, events, limit))


async def _count(url: str, stream: str, events: int, limit: float) -> Frames:
    import nats  # noqa: PLC0415  an extra
    from nats.errors import TimeoutError as Nothing  # noqa: PLC0415

    client = await nats.connect(url)
    jetstream = client.jetstream()
    end = time.monotonic() + limit
    last = -1
    while True:  # until no frame of rows comes: reading them meanwhile would cost the machine
        state = (await jetstream.stream_info(stream)).state
        if last >= 0 and state.bytes - last < 20_000 and state.bytes > events * 100:
            break
        if time.monotonic() > end:
            raise TimeoutError(f"{state.bytes} bytes in {stream}")
        last = state.bytes
        await asyncio.sleep(1.0)
    subscription = await jetstream.subscribe(f"{stream}.frames.*", ordered_consumer=True)
    seen: list[tuple[float, int]] = []
    try:
        while True:
            message = await subscription.next_msg(timeout=1.0)
            rows = decode(message.data)[0].rows
            if rows:
                seen.append((message.metadata.timestamp.timestamp(), rows))
            if message.metadata.num_pending == 0:
                break
    except Nothing:
        pass
    await client.close()
    total = sum(rows for _, rows in seen)
    if total < events:
        raise ValueError(f"{total} rows in the log, {events} were expected")
    return Frames(total, len(seen), (total - seen[0][1]) / (seen[-1][0] - seen[0][0]))
