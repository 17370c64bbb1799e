"""Can a value of this kind, or this very word, be stored in a column of this type? Told from names alone, offline.

"never" where the type's input function refuses every such value (PostgreSQL manual, chapter 8), "perhaps" where that
depends on the value. What is not known here is no finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

Group = Literal["number", "boolean", "moment", "time", "uuid", "text", "json", "object", "array", ""]
"""Types whose input functions take the same texts; moment: a date or a timestamp; object: of an event, json: of a
server, which may be anything."""

_GROUPS: dict[str, Group] = {
    **dict.fromkeys(("int2", "int4", "int8", "numeric", "float4", "float8", "oid"), "number"),
    "bool": "boolean",
    **dict.fromkeys(("date", "timestamp", "timestamptz"), "moment"),
    **dict.fromkeys(("time", "timetz"), "time"),
    "uuid": "uuid",
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "citext"), "text"),
    **dict.fromkeys(("json", "jsonb"), "json"),
}
_NEVER: dict[Group, frozenset[Group]] = {
    "boolean": frozenset({"number", "moment", "time", "uuid", "array"}),
    "number": frozenset({"time", "uuid", "array"}),
    "moment": frozenset({"number", "boolean", "uuid", "array"}),
    "time": frozenset({"number", "boolean", "uuid", "array"}),
    "uuid": frozenset({"number", "boolean", "moment", "time", "array"}),
    "array": frozenset({"number", "boolean", "moment", "time", "uuid"}),
    "object": frozenset({"number", "boolean", "moment", "time", "uuid", "array"}),
}
"""What a column takes never, by the group of what comes."""
_PERHAPS: dict[Group, frozenset[Group]] = {
    "text": frozenset({"number", "boolean", "moment", "time", "uuid", "array"}),
    "json": frozenset({"number", "boolean", "moment", "time", "uuid", "array"}),
    "number": frozenset({"boolean", "moment"}),
    "moment": frozenset({"time"}),
    "time": frozenset({"moment"}),
}


@dataclass(frozen=True, slots=True)
class ColumnType:
    """Of a table's or a query's column. base: pg_type.typname below its domains. declared: with its modifier. labels:
    of an enum type."""

    base: str
    declared: str = ""
    labels: tuple[str, ...] = ()

    @property
    def group(self) -> Group:
        return "array" if self.base.startswith("_") else _GROUPS.get(self.base, "")

    @property
    def shown(self) -> str:
        """For people."""
        return self.declared or self.base


def fit_of(given: Group, column: ColumnType) -> Literal["fits", "perhaps", "never"]:
    """Of what comes from another column or an expression."""
    if column.group in _NEVER.get(given, ()):
        return "never"
    return "perhaps" if column.group in _PERHAPS.get(given, ()) else "fits"


# -- words --------------------------------------------------------------------------------------------

_LIMITS = {"int2": 2**15, "int4": 2**31, "int8": 2**63}
_WHOLE = re.compile(r"[+-]?(0|[0-9][0-9_]*|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+)")
_TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0")
_UUID = re.compile(r"\{?([0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}\}?")
_MOMENTS = {"now", "today", "tomorrow", "yesterday", "epoch", "infinity", "-infinity", "allballs"}
_LENGTH = re.compile(r"\((\d+)\)$")


def refused(words: Sequence[Any], column: ColumnType) -> list[Any]:
    """Those of these constants that the column's type never takes."""
    return [word for word in words if not _takes(column, word)]


def _takes(column: ColumnType, word: Any) -> bool:
    if column.labels:
        return str(word) in column.labels
    text = {True: "true", False: "false"}[word] if isinstance(word, bool) else str(word)
    check = _CHECKS.get(column.group)
    return check is None or check(column, text.strip() if column.group != "text" else text)


def _number(column: ColumnType, text: str) -> bool:
    limit = _LIMITS.get(column.base)
    if limit is not None and _WHOLE.fullmatch(text) and not set(text) & set("xXoObB"):
        return -limit <= int(text.replace("_", "")) < limit
    try:
        value = Decimal(text.replace("_", ""))
    except InvalidOperation:
        return bool(_WHOLE.fullmatch(text))
    return limit is None or (value.is_finite() and value == value.to_integral_value() and abs(value) <= limit)


def _boolean(_column: ColumnType, text: str) -> bool:
    return bool(text) and text != "o" and any(word.startswith(text.lower()) for word in _TRUTHS)


def _moment(_column: ColumnType, text: str) -> bool:
    """Of a time too: `allballs` is midnight."""
    return text.lower() in _MOMENTS or any(sign.isdigit() for sign in text)


def _text(column: ColumnType, text: str) -> bool:
    length = _LENGTH.search(column.declared) if column.base in ("varchar", "bpchar") else None
    return length is None or len(text.rstrip(" ")) <= int(length[1])


_CHECKS: Mapping[Group, Any] = {
    "number": _number,
    "boolean": _boolean,
    "moment": _moment,
    "time": _moment,
    "array": lambda _column, text: text.startswith(("{", "[")),
    "uuid": lambda _column, text: bool(_UUID.fullmatch(text)),
    "text": _text,
}
