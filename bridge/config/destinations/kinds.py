"""Every kind of destination: the modules of this package, except those that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.config.destinations.destination import DestinationSection
from bridge.discover import Kinds

DESTINATIONS: tuple[type[DestinationSection], ...] = tuple(
    Kinds(__name__, DestinationSection, but=("destination", "kinds")).values()
)


def kind_of(written: Mapping[str, Any], kinds: Mapping[str, str]) -> type[DestinationSection]:
    """What is meant by a mapping in the file: told by its connection's type and by its keys. kinds: the types of
    connections, by name."""
    kind = kinds.get(str(written.get("connection")))
    fitting = [each for each in DESTINATIONS if each.fits(kind)]
    marked = [each for each in fitting if each.mark and each.mark in written]
    return (marked or [each for each in fitting if each.usual(kind)])[0]
