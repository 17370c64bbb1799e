"""A frame as bytes: what a relay puts into the log, and a stream takes out of it.

    OBF1 | checksum of the rest, 4 bytes | length of the head, 4 bytes | head, JSON | body
    body: length of the Relation message, 4 bytes | it | number of messages, 4 bytes | lengths, 4 bytes each | they

The messages are pgoutput's, as the walsender sent them, so that a stream decodes what a slot of its own would have
brought. Integers are big-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from struct import Struct, pack, unpack_from
from zlib import crc32

import orjson

from bridge.errors import BridgeError, Halt
from bridge.protocol.chain import Frame, Look, Origin
from bridge.protocol.events import Lsn, parse_snapshot

_MAGIC = b"OBF"
VERSION = 1
"""Of this format; the byte behind the magic says it."""
_LENGTH = Struct("!I")
_CHECKED = Struct("!II")


class BadFrame(BridgeError):
    """What the log holds is no frame, or not as it was put in."""

    reason = "bad_frame"


def body_of(relation: bytes, messages: Sequence[bytes]) -> bytes:
    """A body. relation: the message that describes the rows."""
    lengths = pack(f"!{len(messages)}I", *map(len, messages))
    return b"".join((_LENGTH.pack(len(relation)), relation, _LENGTH.pack(len(messages)), lengths, *messages))


def messages_of(body: bytes) -> tuple[bytes, list[bytes]]:
    """The Relation message, and the others."""
    if not body:
        return b"", []
    (size,) = _LENGTH.unpack_from(body)
    at = 4 + size
    relation = body[4:at]
    (count,) = _LENGTH.unpack_from(body, at)
    first = at + 4 + 4 * count
    ends = accumulate(unpack_from(f"!{count}I", body, at + 4), initial=first)
    return relation, [body[start:end] for start, end in pairwise(ends)]


def encode(frame: Frame, body: bytes) -> bytes:
    """The bytes of a frame."""
    look = frame.look
    head = orjson.dumps(
        {
            "incarnation": frame.origin.incarnation,
            "life": frame.origin.life,
            "partitions": frame.origin.partitions,
            "partition": frame.partition,
            "prev": frame.prev,
            "end": frame.end,
            "rows": frame.rows,
            "commit": frame.commit,
            "offset": frame.offset,
            "open": frame.is_open,
            "look": None if look is None else [str(look.snapshot), look.lsn, look.insert_lsn],
        }
    )
    rest = b"".join((_LENGTH.pack(len(head)), head, body))
    return b"%b%d%b%b" % (_MAGIC, VERSION, _LENGTH.pack(crc32(rest)), rest)


def decode(data: bytes) -> tuple[Frame, bytes]:
    """A frame and its body. Raises BadFrame, or Halt where another release made it."""
    if data[:3] != _MAGIC or len(data) < 12:
        raise BadFrame("it does not begin as a frame does")
    if data[3:4] != b"%d" % VERSION:
        raise Halt(
            f"the log has frames of format {data[3:4].decode(errors='replace')}, and this program reads {VERSION}: the "
            "relay is of another release",
            reason="log_version",
            hint="run one release on the relay and all workers; after an upgrade the workers first: pip install "
            "--upgrade outbox-bridge",
        )
    checksum, size = _CHECKED.unpack_from(data, 4)
    if crc32(memoryview(data)[8:]) != checksum:
        raise BadFrame("its checksum is not that of what it holds")
    try:
        said = orjson.loads(data[12 : 12 + size])
        look = said["look"]
        frame = Frame(
            Origin(said["incarnation"], said["life"], said["partitions"]),
            said["partition"],
            Lsn(said["prev"]),
            Lsn(said["end"]),
            rows=said["rows"],
            commit=Lsn(said["commit"]),
            offset=said["offset"],
            is_open=said["open"],
            look=None if look is None else Look(parse_snapshot(look[0]), Lsn(look[1]), Lsn(look[2])),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise BadFrame(f"its head cannot be read ({type(error).__name__})") from None
    return frame, data[12 + size :]
