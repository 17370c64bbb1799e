"""Every kind of destination: each module here but those of what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.config.destinations.destination import DestinationSection
from bridge.discover import made_in, modules_of

_HERE = __name__.rpartition(".")[0]

DESTINATIONS: tuple[type[DestinationSection], ...] = tuple(
    made_in(_HERE, name, DestinationSection) for name in modules_of(_HERE, but=("destination", "kinds"))
)


def kind_of(written: Mapping[str, Any], kinds: Mapping[str, str]) -> type[DestinationSection]:
    """What is meant by a mapping in the file: told by its connection's type and by its keys. kinds: the types of
    connections, by name."""
    kind = kinds.get(str(written.get("connection")))
    fitting = [each for each in DESTINATIONS if each.fits(kind)]
    marked = [each for each in fitting if each.mark and each.mark in written]
    return (marked or [each for each in fitting if each.usual(kind)])[0]
