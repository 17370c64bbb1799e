"""Durations, sizes, addresses, and strict numbers and booleans: types for the fields of every Section. Lint, the
documentation and the tests use them too.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

_DURATION_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_DURATION_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|w)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")

_SIZE_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_SIZE = re.compile(rf"([0-9]{{1,15}}(?:\.[0-9]{{1,6}})?) ?({'|'.join(_SIZE_UNITS)})")
_BYTES_MAX = 2**63 - 1


def parse_duration(value: Any) -> timedelta:
    """Parse `500ms`, `30s`, `5m`, `24h`, `7d`, `2w`, or several parts (`1h30m`). Raises ValueError for anything
    else, also for a number without a unit."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError("must be a duration such as 500ms, 30s, 5m, 24h or 7d")
    try:
        return sum(
            (float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(value)),
            timedelta(),
        )
    except OverflowError:
        raise ValueError("is too long a duration") from None


def format_duration(value: timedelta) -> str:
    """The shortest exact text of a non-negative duration, e.g. `1h30m`. Precision: a millisecond."""
    left = round(value / timedelta(milliseconds=1))
    parts = []
    for unit, one in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, one)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_size(value: Any) -> int:
    """`8GiB`, `1MiB`, `64kB` (1000), `512B` to bytes. Raises ValueError for anything else, also for a number without
    a unit."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a size such as 512KiB, 1MiB or 8GiB")
    size = round(float(match[1]) * _SIZE_UNITS[match[2]]) if "." in match[1] else _whole(match)
    if size > _BYTES_MAX:
        raise ValueError("is too large a size")
    return size


def _whole(match: re.Match[str]) -> int:
    return int(match[1]) * _SIZE_UNITS[match[2]]


class Listen(NamedTuple):
    """The address that an HTTP server listens on. port 0: any free port."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(value: Any) -> Listen:
    """`127.0.0.1:8377`, `localhost:0`, `[::1]:8377`. ValueError for anything else."""
    if isinstance(value, Listen):
        return value
    match = (
        re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", value)
        if isinstance(value, str)
        else None
    )
    if match is None or int(match[3]) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:8377")
    return Listen(match[1] or match[2], int(match[3]))


def parse_start(value: Any) -> Literal["earliest", "now"] | datetime:
    """`earliest`, `now`, or an ISO 8601 timestamp with its zone. ValueError for anything else."""
    if isinstance(value, datetime) or value in ("earliest", "now"):
        return value  # type: ignore[no-any-return]  # narrowed by the test just made
    try:
        start = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError("must be earliest, now or a timestamp such as 2027-03-01T00:00:00Z") from None
    if start.tzinfo is None:
        raise ValueError("needs its time zone, such as 2027-03-01T00:00:00Z")
    return start


def parse_boolean(value: Any) -> bool:
    """Only `true` and `false`, as YAML or (from a variable) as text."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError("must be true or false")


def parse_integer(value: Any) -> int:
    """A whole number, as YAML or (from a variable) as decimal text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", value):
        return int(value)
    raise ValueError("must be a whole number")


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["5m", "7d"]}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$", "examples": ["1MiB", "8GiB"]}),
]
Address = Annotated[
    Listen,
    BeforeValidator(parse_listen),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["127.0.0.1:8377"]}),
]
Start = Annotated[
    Literal["earliest", "now"] | datetime,
    BeforeValidator(parse_start),
    WithJsonSchema({"type": "string", "description": "earliest, now or an ISO 8601 timestamp with its zone"}),
]
Boolean = Annotated[
    bool, BeforeValidator(parse_boolean, json_schema_input_type=bool | Literal["true", "false"])
]
Integer = Annotated[
    int,
    BeforeValidator(
        parse_integer, json_schema_input_type=int | Annotated[str, Field(pattern=r"^-?(0|[1-9][0-9]{0,17})$")]
    ),
]


def _public_url(url: str) -> str:
    parts = urlsplit(url)
    if "${" not in url and (parts.scheme not in ("http", "https") or not parts.netloc or not url.isascii()):
        raise ValueError("must be an address such as https://example.com/v1/webhooks/name")
    if parts.query or parts.fragment or "?" in url:
        raise ValueError("must not have a query: that of each request is put behind it")
    return url


PublicUrl = Annotated[str, AfterValidator(_public_url)]


def _origin(text: str) -> str:
    """As a browser sends it (RFC 6454, 6.2), so that texts can be compared."""
    parts = urlsplit(text)
    if "${" not in text and (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or text != f"{parts.scheme}://{parts.netloc.lower()}"
        or "@" in text
        or text.endswith((":443" if parts.scheme == "https" else ":80", ":"))
    ):
        raise ValueError(
            "must be an origin as browsers send it: https://app.example.com, in lower case, no path"
        )
    return text


Origin = Annotated[str, AfterValidator(_origin)]
