"""The template engine with limits: on work, on memory, and nothing of the process within reach.

The engine's own limit (fuel) counts instructions, and one instruction can make a gigabyte: `'x' * 10**9`, a
filter with a width, a macro that doubles its argument. So what could multiply a text is left out, refused
when it runs, replaced by a bounded one, or, where a loop prints, counted while it prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from minijinja import Environment

FUEL = 20_000  # engine instructions an evaluation may take; a handful is usual
LONGEST = 1 << 20  # characters of one text that is made
_UNWANTED_GLOBALS = ("debug", "cycler", "joiner", "namespace")
_UNWANTED_FILTERS = ("indent", "format", "batch", "slice")  # a number makes their result as large as it likes
_TAGS = {"if", "elif", "else", "endif", "for", "endfor", "set", "raw", "endraw"}
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_PARTS = re.compile(  # what is not code; {{ code }}; {% code %}
    rf"""\{{\#.*?\#\}}
    | \{{%[-+]?\s*raw\s*[-+]?%\}} .*? \{{%[-+]?\s*endraw\s*[-+]?%\}}
    | \{{\{{ (?P<printed>(?:{_STRING}|[^'"])*?) \}}\}}
    | \{{% (?P<statement>(?:{_STRING}|[^'"])*?) %\}}""",
    re.DOTALL | re.VERBOSE,
)
_WIDE = re.compile(r"\btojson\s*\((?!\s*(?:indent\s*=\s*)?\d?\s*\))")
_REPEATS = re.compile(rf"({_STRING})|(?<!\*)\*(?!\*)", re.DOTALL)


class TooLong(ValueError):
    """A text that is longer than a template may make."""


def bounded(text: str, length: int) -> str:
    """The text, when something of this length may be made."""
    if length > LONGEST:
        raise TooLong
    return text


def _replace(text: Any, old: Any, new: Any, *_: Any) -> str:
    whole, part, other = str(text), str(old), str(new)
    bounded(whole, len(whole) + whole.count(part) * max(0, len(other) - len(part)))
    return whole.replace(part, other)


def _join(values: Sequence[Any], separator: Any = "", attribute: str | None = None) -> str:
    items = [each if attribute is None else each[attribute] for each in values]
    texts = ["" if each is None else str(each) for each in items]
    between = str(separator)
    bounded("", sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def sandbox(finalizer: Callable[[Any], Any] | None = None) -> Environment:
    """An engine without what could grow a text at will."""
    engine = Environment(undefined_behavior="strict", fuel=FUEL, debug=False, finalizer=finalizer)
    for name in _UNWANTED_GLOBALS:
        engine.remove_global(name)
    for name in _UNWANTED_FILTERS:
        engine.remove_filter(name)
    engine.add_filter("replace", _replace)
    engine.add_filter("join", _join)
    return engine


def numbers_only(code: str) -> str:
    """Code of the engine in which `*` refuses texts and arrays, whose product has no bound: `a * b` becomes
    `a ** 1 * - - b`, which is the same for numbers. Raises ValueError for an indentation of any width."""
    if _WIDE.search(code):
        raise ValueError("tojson takes an indentation of at most 9")
    return _REPEATS.sub(lambda found: found[1] or " ** 1 * - - ", code)


def inert(source: str) -> str:
    """A template made harmless. Raises ValueError for what has no place in one."""

    def checked(found: re.Match[str]) -> str:
        code = found["printed"] if found["printed"] is not None else found["statement"]
        if code is None:
            return found[0]
        if "{" in re.sub(_STRING, "", code, flags=re.DOTALL):
            raise ValueError("an object has no place in it: make it in a `set` step")
        tag = code.strip("-+ \t\n").partition(" ")[0]
        if found["printed"] is None and tag not in _TAGS:
            raise ValueError(f"the tag {tag!r} has no place in it")
        return numbers_only(found[0])

    if re.search(r"\{\{|\{%", _PARTS.sub("", source)):
        raise ValueError("a quote, {{ or {% is not closed")
    return _PARTS.sub(checked, source)
