"""The texts beside a payload, within what the outbox' checks allow (sql/source/001_outbox.sql)."""

from __future__ import annotations

import re

from bridge.core.json_text import refuse_text
from bridge.ingress.problem import Refusal

LONGEST = {"type": 200, "key": 500, "idempotency_key": 255, "id": 255}
"""In characters. `id` is a webhook delivery's."""

_TYPE = re.compile(r"[^\s*?\[\]/\x00-\x1f]+")


def check_text(name: str, text: str, field: str | None = None) -> str:
    """The text as it is. Raises Refusal 400, naming `field` (or `name`), for one that cannot be stored."""
    field = field or name
    try:
        refuse_text(text, field)
    except ValueError as error:
        raise Refusal(400, "malformed", str(error), field=field) from None
    if not text or len(text) > LONGEST[name]:
        raise Refusal(400, "malformed", f"{field} must have 1 to {LONGEST[name]} characters", field=field)
    if name == "type" and not _TYPE.fullmatch(text):
        raise Refusal(400, "malformed", "an event type has no blanks, no / and no * ? [ ]", field=field)
    return text
