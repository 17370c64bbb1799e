"""A dotted path such as `event.user.id`: how it reads a document.

Apart, because most columns, keys and conditions are nothing else and need no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bridge.core.expressions.operators import MISSING

Path = tuple[str, ...]
Reader = Callable[[Mapping[str, Any]], Any]


def step(value: Any, name: str) -> Any:
    """One segment: an object's field or an array's element; MISSING when there is none."""
    if isinstance(value, Mapping):
        return value.get(name, MISSING)
    if isinstance(value, list):
        try:
            return value[int(name)]
        except (ValueError, IndexError):
            return MISSING
    return MISSING


def follow(value: Any, path: Path) -> Any:
    """All segments in turn; MISSING when one leads nowhere."""
    for name in path:
        value = step(value, name)
        if value is MISSING:
            return MISSING
    return value


def reader(path: Path) -> Reader:
    """A function from a context (root name -> value) to the value of `path`, or MISSING."""
    root = path[0]
    if len(path) == 1:
        return lambda context: context.get(root, MISSING)
    if len(path) == 2:
        leaf = path[1]

        def read(context: Mapping[str, Any]) -> Any:
            value = context.get(root)
            if value.__class__ is dict:
                return value.get(leaf, MISSING)
            return step(value, leaf)

        return read
    return lambda context: follow(context, path)
