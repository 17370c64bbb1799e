"""What an HTTP answer means for a delivery: sent, retry, or dead."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from bridge.sinks.model import SENT, Reply, SendOutcome

_PASSING = frozenset({408, 425})  # RFC 9110, 15.5.9; RFC 8470, 5.2: the same request may succeed later
_OURS = frozenset({401, 402, 403, 404, 405, 407, 410})
"""Statuses that the next message would get too: the address or the credentials are wrong."""
_GONE = 410  # RFC 9110, 15.5.11: likely for good
PATIENCE_SECONDS = 600.0
"""How long a message is retried although the address or the credentials are refused: both are often mended soon."""


def judge(
    answer: Reply, *, code: str = "", detail: str = "", retry_after: float | None = None
) -> SendOutcome:
    """The rule for every status. code, detail: the vendor's own word, if it is known to contain no values."""
    status = answer.status
    said = f"HTTP {status}{f': {detail}' if detail else ''}"
    code = code or f"http_{status}"
    if 200 <= status < 300:
        return SENT
    if status == 429:
        wait = retry_after if retry_after is not None else retry_after_of(answer)
        return SendOutcome("retry", code, f"{said}: too many requests", wait, blame="pace")
    if status in _PASSING or status >= 500:
        return SendOutcome("retry", code, said, retry_after_of(answer), blame="destination")
    if 300 <= status < 400:
        cause = f"{said}: redirects are not followed; configure the final address"
        return SendOutcome("dead", code, cause, blame="destination")
    ours, patience = status in _OURS, 0.0 if status == _GONE else PATIENCE_SECONDS
    return SendOutcome(
        "dead",
        code,
        said,
        blame="destination" if ours else "message",
        gone=status in (404, _GONE),
        patience=patience if ours else 0.0,
    )


def not_theirs(vendor: str) -> SendOutcome:
    """Of a 2xx that this vendor does not give: a proxy's page, a wrong address. Whether the message is there is not
    known, and so it is not sent."""
    cause = f"the answer is not from {vendor}: check the address, and proxies on the way"
    return SendOutcome("retry", "unreadable", cause, blame="destination")


def begins(answer: Reply, name: str, value: str) -> bool:
    """Is the body a JSON object in which a field has this value (a pattern)? Also of a body that was capped, or that
    did not arrive whole: the status was the answer, and its first bytes show whose it is."""
    return bool(
        answer.body.lstrip()[:1] == b"{"
        and re.search(rb'"%b"\s*:\s*%b' % (name.encode(), value.encode()), answer.body)
    )


def retry_after_of(answer: Reply) -> float | None:
    """`Retry-After` in seconds (RFC 9110, 10.2.3: a number, or a date measured against the answer's own)."""
    text = answer.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text)) if text.replace(".", "", 1).isdigit() else _until(text, answer)
    except (ValueError, TypeError, OverflowError):
        return None


def _until(text: str, answer: Reply) -> float:
    then = parsedate_to_datetime(text)
    try:
        now = parsedate_to_datetime(answer.headers.get("date", ""))
    except (ValueError, TypeError):
        now = datetime.now(UTC)
    return max(0.0, (then - now).total_seconds())


def document(answer: Reply) -> dict[str, Any]:
    """The body as a JSON object; empty if it is not one."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def seconds(value: Any) -> float | None:
    """A vendor's number of seconds to wait; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        return float(value)
    return None
