"""Events to documents that keep their contracts: the first thing that happens to a batch."""

from __future__ import annotations

from secrets import randbits
from typing import Any

import orjson

from bridge.core.contract import Contract
from bridge.core.document import parse
from bridge.core.event import Event
from bridge.core.failure import PayloadFailure, UnitFailure
from bridge.core.rows import Failures

_TOGETHER = 64  # payloads a call: most of what a small document costs is the call
_MARK = 1 << 62 | randbits(62)
_BETWEEN = b",%d," % _MARK
"""Stands between payloads, so that no text which is not JSON by itself can become it beside another."""


def _together(payloads: list[bytes]) -> list[Any]:
    """What orjson reads each payload as; ValueError when it cannot read one."""
    parsed: list[Any] = []
    for at in range(0, len(payloads), _TOGETHER):
        some = payloads[at : at + _TOGETHER]
        values = orjson.loads(b"[%b]" % _BETWEEN.join(some))
        if len(values) != 2 * len(some) - 1 or values[1::2] != [_MARK] * (len(some) - 1):
            raise ValueError
        parsed += values[::2]
    return parsed


def read_documents(
    contract: Contract | None, events: list[Event], group: list[int], documents: list[dict[str, Any]]
) -> tuple[list[int], Failures]:
    """Parse a group of one type and hold it to its contract; fills `documents`."""
    failures: Failures = []
    try:
        parsed = _together([events[place][5] for place in group])
    except ValueError:
        parsed = []
    if set(map(type, parsed)) != {dict}:
        parsed, good = [], []
        for place in group:
            try:
                parsed.append(parse(events[place].payload))
                good.append(place)
            except PayloadFailure as failure:
                failures.append((place, events[place], failure))
        group = good
    if contract is not None:
        broken: dict[int, UnitFailure] = {}
        for row in contract.check(parsed):
            violation = contract.violation(parsed[row], events[group[row]].payload)
            if violation is not None:
                broken[row] = violation
        if broken:
            failures += [(group[row], events[group[row]], failure) for row, failure in broken.items()]
            parsed = [document for row, document in enumerate(parsed) if row not in broken]
            group = [place for row, place in enumerate(group) if row not in broken]
    if len(group) == len(documents):
        documents[:] = parsed
    else:
        for place, document in zip(group, parsed, strict=True):
            documents[place] = document
    return group, failures
