"""Where a message has markup, and how values become plain text there.

The same value is written differently in a text, in a code span and in a link's address, and not at all changed in a
field that is no markup (an address, a color, a date). So a sink says it by field, and, where the vendor's markup knows
no escape that holds everywhere, by what stands around a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from bridge.expressions.server_text import ServerText

Escape = Callable[[str], str]
"""A function that makes text inert in a vendor's markup."""

MARK = "\ufdd0"
"""Stands for a value in a text that is to be put together. It is no character of any text: Unicode, 23.7."""


@dataclass(frozen=True, slots=True)
class InContext:
    """An escape that depends on what stands around a value. alone: for a value that is the whole text. around: the
    text, with MARK where each of the values belongs, to the whole."""

    alone: Escape
    around: Callable[[str, Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class Markup:
    """One place in a message. text: what makes a value there inert; None: it is no markup. below: places inside, by
    key; lists do not count. rest: the other places inside are like this one."""

    text: Escape | InContext | None = None
    below: Mapping[str, Markup] = field(default_factory=dict)
    rest: bool = False

    def at(self, name: str) -> Markup:
        found = self.below.get(name)
        return found if found is not None else self if self.rest else PLAIN

    def inert(self, value: Any) -> Any:
        """A value that stands here alone: its texts and numbers, where they are markup."""
        if isinstance(value, Mapping):
            return {name: self.at(name).inert(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.inert(item) for item in value]
        if self.text is None or isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            return value
        escape = self.text.alone if isinstance(self.text, InContext) else self.text
        return escape(value.as_json() if isinstance(value, ServerText) else str(value))


PLAIN = Markup()
