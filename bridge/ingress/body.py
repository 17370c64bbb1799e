"""Read a request's body within limits of size and time: before that, nobody has proved who they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import Receive

from bridge.ingress.problem import Refusal

READ_SECONDS = 10.0
"""From the end of the header to the end of the body."""


def check_headers(headers: dict[bytes, bytes], most: int, media_types: Iterable[bytes] = ()) -> bytes:
    """What the header already tells against a body; the media type in lower case.

    Raises Refusal 413 for a length over `most` bytes, 415 for a compressed body or another media type
    than `media_types` (empty: any).
    """
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15 or int(length) > most:
        raise _too_large(most)
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding != b"identity":
        raise Refusal(415, "media-type", "send the body without content-encoding", close=True)
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_types and media_type not in media_types:
        names = " or ".join(name.decode() for name in media_types)
        raise Refusal(415, "media-type", f"send content-type: {names}", close=True)
    return media_type


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too-large", f"a body may have {most} bytes (ingress.max_payload)", close=True)


async def read_body(receive: Receive, most: int) -> bytes:
    """The whole body. Raises Refusal: 413 past `most` bytes, 408 after READ_SECONDS, 400 when cut off."""
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(READ_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "malformed", "the client went away", close=True)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                more = message.get("more_body", False)
                if size > most:
                    raise _too_large(most)
    except TimeoutError:
        raise Refusal(408, "slow", f"the body took over {READ_SECONDS:.0f} s", close=True) from None
    return b"".join(parts) if len(parts) > 1 else parts[0]
