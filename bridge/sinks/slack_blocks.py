"""Slack's texts and blocks: what is markup in them, and what fits.

docs.slack.dev: "Formatting message text"; "Blocks", "Block elements" and "Composition objects" for the limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.expressions.markup import MARK, PLAIN, InContext, Markup
from bridge.sinks.model import cut, text_of

TEXT_MAX = 40_000
BLOCKS_MAX = 50
_OBJECT_MAX = 3000  # a text object, where nothing shorter holds
_TEXTS: Mapping[tuple[str, str], int] = {
    ("header", "text"): 150,
    ("section", "fields"): 2000,
    ("image", "title"): 2000,
    ("button", "text"): 75,
    ("options", "text"): 75,
    ("options", "description"): 75,
    ("confirm", "title"): 100,
    ("confirm", "text"): 300,
    ("confirm", "confirm"): 30,
    ("confirm", "deny"): 30,
    ("video", "title"): 200,
    ("video", "description"): 200,
}
"""Characters of a text object: (the type of what it is in, or the key of that where it has no type; its key)."""
_PLACEHOLDER_MAX = 150
_STRINGS = {
    "alt_text": 2000,
    "value": 2000,
    "block_id": 255,
    "action_id": 255,
    "accessibility_label": 75,
    "author_name": 50,
    "provider_name": 50,
}
_MARKDOWN_MAX = 12_000
_LINKS = ("url", "image_url", "title_url", "video_url", "thumbnail_url", "provider_icon_url")
_LINK_MAX = 3000
_ITEMS = {("section", "fields"): 10, ("context", "elements"): 10, ("actions", "elements"): 25}
_NEEDS = {
    "section": ("text", "fields"),
    "header": ("text",),
    "context": ("elements",),
    "actions": ("elements",),
    "markdown": ("text",),
    "image": ("image_url", "slack_file"),
    "button": ("text",),
}
"""Without one of these, Slack refuses the whole message."""
_MORE = {"type": "context", "elements": [{"type": "mrkdwn", "text": "\N{HORIZONTAL ELLIPSIS}"}]}

_TARGET = re.compile(rf"<((?:https?:|mailto:|tel:|{MARK})[^|<>]*)")
_ADDRESS = re.compile(r"(?i)https?://|mailto:|tel:")
_APART = re.compile(r"[\s|<>\"\\`]")


def escape(text: str) -> str:
    """Escape Slack's three control characters, so that a value cannot create a mention, link or channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def around(text: str, values: Sequence[str]) -> str:
    """A value in the address of a link, `<{{ event.url }}|open>`, ends neither the address nor the link, and makes no
    mention where an address was meant."""
    addresses = [found.span(1) for found in _TARGET.finditer(text)]
    parts = []
    start = 0
    for value, found in zip(values, re.finditer(MARK, text), strict=True):
        at = found.start()
        parts.append(text[start:at])
        inside = [first for first, end in addresses if first <= at < end]
        parts.append(escape(_in_address(value, begins=at in inside) if inside else value))
        start = found.end()
    return "".join([*parts, text[start:]])


def _in_address(value: str, *, begins: bool) -> str:
    apart = _APART.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)
    if begins and apart and not _ADDRESS.match(apart) and apart[0] in "!@#":
        apart = f"%{ord(apart[0]):02X}{apart[1:]}"
    return apart


_INERT = InContext(escape, around)
_TEXT = Markup(_INERT, {"text": Markup(_INERT)})  # a text, or a text object
_ELEMENTS = Markup(
    None, {"text": _TEXT, "elements": PLAIN}, rest=True
)  # elements of elements: rich text, which is plain
MARKUP = {"text": Markup(_INERT), "blocks": Markup(None, {"text": _TEXT, "elements": _ELEMENTS}, rest=True)}


def cut_text(text: str, limit: int) -> str:
    """Truncate without half an entity (`&am`) and without half a link or mention (`<https://...`)."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 1]
    if kept.rfind("<") > kept.rfind(">"):
        kept = kept[: kept.rfind("<")]
    return cut(re.sub(r"&[a-z]{0,4}\Z", "", kept) + "\N{HORIZONTAL ELLIPSIS}", limit)


def fitted(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The blocks within Slack's limits: texts are truncated, links that are too long and whatever is empty are left
    out, and so is what lacks what it needs."""
    made = [block for one in blocks if (block := _fit(one, "blocks", "")) is not None]
    return made if len(made) <= BLOCKS_MAX else [*made[: BLOCKS_MAX - 1], _MORE]


def _fit(value: Any, owner: str, key: str) -> Any:
    """owner, key: where the value stands. None: it is left out."""
    if isinstance(value, list | tuple):
        items = [item for each in value if (item := _fit(each, owner, key)) is not None]
        return items[: _ITEMS.get((owner, key))] or None
    if not isinstance(value, Mapping):
        return value
    kind = str(value.get("type", ""))
    if kind in ("mrkdwn", "plain_text"):
        limit = _PLACEHOLDER_MAX if key == "placeholder" else _TEXTS.get((owner, key), _OBJECT_MAX)
        text = text_of(value.get("text"))
        return {**value, "text": cut_text(text, limit)} if text.strip() else None
    if kind in ("rich_text", "table"):  # plain, and their places count
        return dict(value)
    made = {name: _part(name, item, kind or key) for name, item in value.items()}
    made = {name: item for name, item in made.items() if item is not None}
    if kind == "image" and not made.get("alt_text"):
        made["alt_text"] = "image"
    needs = _NEEDS.get(kind)
    return made if needs is None or made.keys() & set(needs) else None


def _part(name: str, value: Any, owner: str) -> Any:
    if not isinstance(value, str):
        return _fit(value, owner, name)
    if not value.strip() or (name in _LINKS and len(value) > _LINK_MAX):
        return None
    if owner == "markdown" and name == "text":
        return cut_text(value, _MARKDOWN_MAX)
    return cut(value, _STRINGS[name]) if name in _STRINGS else value
