"""Every sink there is, by its connection's `type`: each module here, named so, but those of what sinks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from bridge.discover import made_in, modules_of
from bridge.sinks.model import SinkConnection

_HERE = __name__.rpartition(".")[0]
_KINDS = modules_of(_HERE, but=("apprise_thread", "http", "judge", "kinds", "model"))


class _Sinks(Mapping[str, type[SinkConnection]]):
    """Loads a vendor's module when that vendor is asked for."""

    def __getitem__(self, kind: str) -> type[SinkConnection]:
        if kind not in _KINDS:
            raise KeyError(kind)
        return _load(kind)

    def __contains__(self, kind: object) -> bool:
        return kind in _KINDS

    def __iter__(self) -> Iterator[str]:
        return iter(_KINDS)

    def __len__(self) -> int:
        return len(_KINDS)


@cache
def _load(kind: str) -> type[SinkConnection]:
    return made_in(_HERE, kind, SinkConnection)


SINKS: Mapping[str, type[SinkConnection]] = _Sinks()
"""A connection's `type` to its model."""
