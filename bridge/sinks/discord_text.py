"""Discord's markdown: what a value becomes in it, and how a text is truncated.

support.discord.com, "Markdown Text 101"; a message's limits are counted in code points (discord-api-docs, issue 1315).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridge.expressions.markup import MARK, InContext, Markup

_MARKUP = re.compile(r"([\\*_~`|>#\[\]()<:@-])")
_CODE = re.compile(r"(?<![\\`])(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_ADDRESSES = (re.compile(r"\]\(\s*<?([^\s()<>]*)"), re.compile(r"https?://([^\s<>()]*)"))
_LINK = re.compile(r"https?://[^\s\x00-\x1f]+")
_APART = re.compile(r"[\s<>()\[\]{}|\\^`\"*]")
_CUT_LINK = re.compile(r"(?:\[[^\[\]]*\]\()?<?https?://\S*\Z")
_FENCE = "```"
_CLOSING = f"\n{_FENCE}"


def escape(text: str) -> str:
    """Escape Discord's markdown with backslashes; a link alone stays one."""
    return _address(text) if _LINK.fullmatch(text) else _MARKUP.sub(r"\\\1", text)


def around(text: str, values: Sequence[str]) -> str:
    """Backslashes escape nothing in a code span or in a link's address: there the value stays as it is, less what would
    end the span or the address."""
    codes = [found.span(2) for found in _CODE.finditer(text)]
    addresses = [found.span(1) for each in _ADDRESSES for found in each.finditer(text)]
    parts = []
    start = 0
    for value, found in zip(values, re.finditer(MARK, text), strict=True):
        at = found.start()
        parts.append(text[start:at])
        if any(first <= at < end for first, end in codes):
            parts.append(value.replace("`", "\N{MODIFIER LETTER GRAVE ACCENT}") or " ")
        elif any(first <= at < end for first, end in addresses):
            parts.append(_address(value))
        else:
            parts.append(escape(value))
        start = found.end()
    return "".join([*parts, text[start:]])


def _address(value: str) -> str:
    """Percent-encode what is markup, or would end the address."""
    return _APART.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)


TEXT = Markup(InContext(escape, around))


def cut_text(text: str, limit: int) -> str:
    """Truncate without half a link, half an escape or an open code block."""
    if len(text) <= limit:
        return text
    made = _shortened(text, limit)
    if not made.count(_FENCE) % 2:
        return made
    made = _shortened(text, limit - len(_CLOSING))
    return made + _CLOSING if made.count(_FENCE) % 2 else made


def _shortened(text: str, limit: int) -> str:
    kept = text[: max(0, limit - 1)]
    if not text[len(kept)].isspace():
        kept = _CUT_LINK.sub("", kept)
    if (len(kept) - len(kept.rstrip("\\"))) % 2:
        kept = kept[:-1]
    return kept + "\N{HORIZONTAL ELLIPSIS}"
