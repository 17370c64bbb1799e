"""How a digest makes one message's keys from those of several messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

DIGEST = "$digest"
"""The field of a stored message that says which messages go together as one. No vendor's key begins so."""

IDENTITY = "$id"
"""The field of a stored message that was moved to another destination: the id that it had, and is sent with."""


def take_group(fields: dict[str, Any]) -> str | None:
    """Take DIGEST out of the fields: no vendor gets it."""
    group = fields.pop(DIGEST, None)
    return None if group is None else str(group)


def take_identity(fields: dict[str, Any]) -> str | None:
    """Take IDENTITY out of the fields."""
    identity = fields.pop(IDENTITY, None)
    return None if identity is None else str(identity)


Join = Callable[[Sequence[Any]], Any]
"""The values of one key, in the order of their events, as one value. None of them is null or empty."""


def as_list(values: Sequence[Any]) -> list[Any]:
    """All of them."""
    return list(values)


def lines(values: Sequence[Any]) -> str:
    """One under the other."""
    return "\n".join(map(str, values))


def rules(values: Sequence[Any]) -> str:
    """Parts of an HTML document, with a line between them."""
    return "\n<hr>\n".join(map(str, values))


def first_and_more(values: Sequence[Any]) -> str:
    """A subject."""
    return f"{values[0]} (and {len(values) - 1} more)" if len(values) > 1 else str(values[0])


def in_one(values: Sequence[Any]) -> list[Any]:
    """Lists as one list."""
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def joined(joins: Mapping[str, Join], messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The fields of one message for several. A key without a join is the first message's."""
    if len(messages) == 1:
        return messages[0]
    made = dict(messages[0])
    for key, join in joins.items():
        values = [one[key] for one in messages if one.get(key) not in (None, "")]
        if values:
            made[key] = join(values)
    return made
