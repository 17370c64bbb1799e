"""Which frame of the log carries an event: for `bridge explain`. Reads a partition's frames, the oldest first."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from bridge.bus.connection import Bus
from bridge.bus.journal import SLICE, frames_of
from bridge.errors import BridgeError, Halt
from bridge.protocol.events import format_lsn
from bridge.stream.frames import BadFrame, decode
from bridge.stream.spec import RelaySpec

_FRAMES = 2000
"""Read at most: a person waits."""
_SECONDS = 5.0


def find_frame(relay: RelaySpec, partition: int, event_id: bytes) -> dict[str, Any] | None:
    """Where it is, and what it spans; None: not in the log, or not among its oldest frames. Raises BridgeError."""
    subject = frames_of(relay.relay, partition)
    with closing(Bus(relay.bus, "outbox_bridge explain")) as bus:
        bus.connect(_SECONDS)
        sequence = 1
        for _ in range(_FRAMES):
            found = _next(bus, relay.relay, subject, sequence)
            if found is None:
                return None
            sequence = int(found.seq) + 1
            if event_id not in found.data:
                continue
            if found.headers and SLICE in found.headers:  # a part of a frame, whose head is in the first one
                return {"subject": subject, "why": f"a frame in slices; this one has sequence {found.seq}"}
            try:
                frame, _ = decode(found.data)
            except (BadFrame, Halt) as error:
                return {"subject": subject, "why": f"sequence {found.seq} cannot be read: {error.args[0]}"}
            return {
                "subject": subject,
                "sequence": int(found.seq),
                "incarnation": frame.origin.incarnation,
                "prev": format_lsn(frame.prev),
                "end": format_lsn(frame.end) if frame.end else None,
                "rows": frame.rows,
            }
    return None


def _next(bus: Bus, stream: str, subject: str, sequence: int) -> Any:
    from nats.js.errors import NotFoundError  # noqa: PLC0415  an extra

    async def get(js: Any) -> Any:
        try:
            return await js.get_msg(stream, seq=sequence, subject=subject, direct=True, next=True)
        except NotFoundError:
            return None

    try:
        return bus.call(get, doing=f"read {subject}", subject=f"$JS.API.DIRECT.GET.{stream}")
    except BridgeError as error:
        if "there is no such stream" in str(error.args[0]):
            return None
        raise
