"""Event contracts: the shape that a producer promised.

Checked by columns: if all values of a field have allowed types, the field costs one set comparison per batch. Only
if one has not, events are checked one by one, to say what is wrong.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from operator import itemgetter
from typing import Any

from bridge.errors import ContractFailure
from bridge.expressions.document import parse_exact
from bridge.expressions.operators import kind_of
from bridge.planning.spec import ContractSpec, FieldSpec

_NONE = type(None)
_TYPES: dict[str, frozenset[type]] = {
    "string": frozenset({str}),
    "number": frozenset({int, float, Decimal}),
    "integer": frozenset({int}),
    "boolean": frozenset({bool}),
    "object": frozenset({dict}),
    "array": frozenset({list}),
    "timestamp": frozenset({str}),
    "any": frozenset({str, int, float, Decimal, bool, dict, list}),
}
# RFC 3339, section 5.6
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
    r"(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
)


def is_timestamp(text: str) -> bool:
    """True for an RFC 3339 date-time that names a real day."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return False
    try:
        date.fromisoformat(match.group(1))
    except ValueError:
        return False
    return True


class Contract:
    """A compiled ContractSpec."""

    __slots__ = ("_checks", "_known", "_rejects", "spec")

    def __init__(self, spec: ContractSpec) -> None:
        self.spec = spec
        self._known = frozenset(field.name for field in spec.fields)
        self._rejects = spec.unknown == "reject"
        self._checks = [(field, itemgetter(field.name), *_allowed(field)) for field in spec.fields]

    def check(self, documents: list[dict[str, Any]]) -> list[int]:
        """Rows that may break the contract; `violation` decides."""
        suspects: set[int] = set()
        for field, get, types, members in self._checks:
            try:
                values = list(map(get, documents))
            except KeyError:
                suspects.update(row for row, document in enumerate(documents) if field.name not in document)
                values = [document.get(field.name) for document in documents]
            if not set(map(type, values)) <= types:
                suspects.update(row for row, value in enumerate(values) if value.__class__ not in types)
            if members is not None:
                try:
                    if not members.issuperset(values):
                        suspects.update(row for row, value in enumerate(values) if value not in members)
                except TypeError:  # an object or array among them
                    suspects.update(range(len(documents)))
            elif field.type == "timestamp":
                for row, value in enumerate(values):
                    if value.__class__ is str and not is_timestamp(value):
                        suspects.add(row)
        if self._rejects:
            known = self._known
            suspects.update(row for row, document in enumerate(documents) if not document.keys() <= known)
        return sorted(suspects)

    def violation(self, document: dict[str, Any], payload: bytes) -> ContractFailure | None:
        """What is wrong with one event, without its values; None: nothing."""
        for field in self.spec.fields:
            if field.name not in document:
                if field.required:
                    return ContractFailure(f'field "{field.name}": missing')
                continue
            value = document[field.name]
            if value.__class__ is float and (field.type == "integer" or field.enum is not None):
                value = parse_exact(payload)[field.name]
            wrong = _wrong(field, value)
            if wrong:
                return ContractFailure(f'field "{field.name}": {wrong}')
        if self._rejects and not document.keys() <= self._known:
            unknown = len(document.keys() - self._known)
            return ContractFailure(
                f"{unknown} unknown field{'s' if unknown > 1 else ''} (the contract has "
                f"{', '.join(sorted(self._known))})"
            )
        return None


def _allowed(field: FieldSpec) -> tuple[frozenset[type], frozenset[Any] | None]:
    """Types and members that are certainly allowed. None among the members means null or missing."""
    types = frozenset(map(type, field.enum)) if field.enum is not None else _TYPES[field.type]
    if field.nullable or field.type == "any":
        types |= {_NONE}
    if field.enum is None:
        return types, None
    # a missing field is a suspect by its own; True == 1, so a mix of both is always looked at
    mixed = bool in types and not types <= {bool, _NONE}
    return (frozenset() if mixed else types), frozenset(field.enum) | {None}


def _wrong(field: FieldSpec, value: Any) -> str:  # noqa: PLR0911  one return a kind of violation
    if value is None:
        if field.nullable or (field.type == "any" and field.enum is None):
            return ""
        return f"expected {_article(field)}, got null"
    if field.enum is not None:
        if any(_equal(value, member) for member in field.enum):
            return ""
        return f"not one of {', '.join(map(str, field.enum))}"
    if field.type == "integer" and isinstance(value, Decimal):
        return "" if value == value.to_integral_value() else "expected integer, got a number with a fraction"
    if value.__class__ not in _TYPES[field.type]:
        return f"expected {_article(field)}, got {_plain(value)}"
    if field.type == "timestamp" and not is_timestamp(str(value)):
        return "not an RFC 3339 timestamp"
    return ""


def _equal(value: Any, member: Any) -> bool:
    return value == member and isinstance(value, bool) == isinstance(member, bool)


def _article(field: FieldSpec) -> str:
    return "one of " + ", ".join(map(str, field.enum)) if field.enum is not None else field.type


def _plain(value: Any) -> str:
    return kind_of(value).removeprefix("a ").removeprefix("an ")
