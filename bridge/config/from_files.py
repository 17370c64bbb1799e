"""A connection string with parts from files: a file that is rotated has another password, user or whole string.

Apart from what makes one (dsn.py), for the connections that read it again and load nothing of a configuration.
"""

from __future__ import annotations

from collections.abc import Callable


class FromFiles(str):
    """A connection string as its files made it. `reread`: the string that they make now, from the text of bridge.yaml
    that is in use, whatever is in that file by now. Raises ValueError, without values, if there is none. `recipe`: how
    it is made."""

    __slots__ = ("recipe", "reread")

    recipe: tuple[str, ...]
    reread: Callable[[], str]
