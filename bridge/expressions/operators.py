"""How a dotted path reads a document, and the operators of expressions, with their refusals.

minijinja orders values of different kinds by kind ('95' >= 0.9 is true, null < 1 is true): a branch would silently be
wrong. Here an operator without a sensible answer refuses. Arithmetic is float64, except that two integers give an
integer if the result is one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite
from typing import Any, Final

from bridge.expressions.server_text import Moment, ServerArray, ServerObject, ServerText, ordered

Path = tuple[str, ...]
Reader = Callable[[Mapping[str, Any]], Any]


def step(value: Any, name: str) -> Any:
    """One segment: an object's field or an array's element; MISSING if there is none."""
    if isinstance(value, Mapping):
        return value.get(name, MISSING)
    if isinstance(value, list):
        try:
            return value[int(name)]
        except (ValueError, IndexError):
            return MISSING
    return MISSING


def follow(value: Any, path: Path) -> Any:
    """All segments in turn; MISSING if one does not exist."""
    for name in path:
        value = step(value, name)
        if value is MISSING:
            return MISSING
    return value


def reader(path: Path) -> Reader:
    """A function from a context (root name -> value) to the value of `path`, or MISSING."""
    root = path[0]
    if len(path) == 1:
        return lambda context: context.get(root, MISSING)
    if len(path) == 2:
        leaf = path[1]

        def read(context: Mapping[str, Any]) -> Any:
            value = context.get(root)
            if value.__class__ is dict:
                return value.get(leaf, MISSING)
            return step(value, leaf)

        return read
    return lambda context: follow(context, path)


class MissingType:
    """The value of a path that does not exist. Only `is defined`, `is none` and a lone path accept it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = MissingType()

PLAIN_NUMBERS = frozenset({int, float})
_NUMBERS = frozenset({int, float, Decimal})
_TEMPORAL = (date, datetime, time, Moment)


class NoAnswer(Exception):
    """An operator has no answer for these kinds of values. The text names kinds, never values."""


def kind_of(value: Any) -> str:
    """JSON's name for a value's type."""
    names: dict[type, str] = {
        MissingType: "missing",
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        Decimal: "a number",
        str: "a string",
        dict: "an object",
        list: "an array",
    }
    if isinstance(value, ServerText | ServerArray | ServerObject):
        return value.kind
    return names.get(type(value), f"a {type(value).__name__}")


def comparable(left: Any, right: Any) -> tuple[Any, Any]:
    """Both values in a form that Python can order: numbers, texts, or dates (a text is read as ISO 8601)."""
    kinds = {left.__class__, right.__class__}
    if kinds <= _NUMBERS:
        if Decimal in kinds and (float in kinds or not (finite(left) and finite(right))):
            return float(left), float(right)
        return left, right
    if kinds == {str}:
        return left, right
    if isinstance(left, _TEMPORAL) or isinstance(right, _TEMPORAL):
        return temporal(left, right)
    raise NoAnswer(f"{kind_of(left)} and {kind_of(right)} have no order")


def finite(number: int | float | Decimal) -> bool:
    """False for NaN and the infinities."""
    return number.is_finite() if isinstance(number, Decimal) else isfinite(number)


def temporal(left: Any, right: Any) -> tuple[Any, Any]:
    """Two dates or times of the same class. Raises NoAnswer if a text is not one."""
    if isinstance(left, Moment) or isinstance(right, Moment):
        pair = ordered(left, right)
        if pair is None:
            raise NoAnswer(f"{kind_of(left)} and {kind_of(right)} have no order")
        return pair
    try:
        if isinstance(left, str):
            left = type(right).fromisoformat(left)
        elif isinstance(right, str):
            right = type(left).fromisoformat(right)
        _ = left < right
    except (TypeError, ValueError):
        raise NoAnswer(f"{kind_of(left)} and {kind_of(right)} have no order") from None
    return left, right


def same(left: Any, right: Any) -> bool:
    """Equality: numbers by value, a date equals its ISO text. Refuses only a missing value."""
    if left is MISSING or right is MISSING:
        raise NoAnswer("missing has no value to compare")
    if left == right:
        return True
    if left.__class__ in _NUMBERS and right.__class__ in _NUMBERS:
        pair = comparable(left, right)
        return bool(pair[0] == pair[1])
    if isinstance(left, _TEMPORAL) or isinstance(right, _TEMPORAL):
        try:
            pair = temporal(left, right)
        except NoAnswer:
            return False
        return bool(pair[0] == pair[1])
    return False


def contains(item: Any, container: Any) -> bool:
    """`item in container` for arrays, objects (their keys) and texts (a part of it)."""
    if item is MISSING:
        raise NoAnswer("missing has no value to look for")
    if isinstance(container, list | tuple):
        return any(same(item, candidate) for candidate in container)
    if isinstance(container, dict):
        return isinstance(item, str) and item in container
    if isinstance(container, str) and isinstance(item, str):
        return item in container
    raise NoAnswer(f"{kind_of(item)} cannot be looked for in {kind_of(container)}")


def _float64(value: Any) -> float:
    return float(value)


def divide(left: Any, right: Any) -> float:
    """Division, always float64: 2^53 + 1 and Decimals are rounded."""
    if left.__class__ not in _NUMBERS or right.__class__ not in _NUMBERS:
        raise NoAnswer(f"{kind_of(left)} cannot be divided by {kind_of(right)}")
    try:
        return number(_float64(left) / _float64(right))
    except ZeroDivisionError:
        raise NoAnswer("division by zero") from None
    except OverflowError:
        raise NoAnswer("too large for float64") from None


def number(value: float) -> float:
    """Return a finite number."""
    if not isfinite(value):
        raise NoAnswer("too large for float64")
    return value


def arithmetic(operate: Callable[[Any, Any], Any], word: str) -> Callable[[Any, Any], Any]:
    """+, - or * over numbers: integers stay exact, everything else is float64."""

    def calculate(left: Any, right: Any) -> Any:
        if left.__class__ is int and right.__class__ is int:
            result = operate(left, right)
            return result if result.bit_length() < 127 else float(result)
        if left.__class__ in _NUMBERS and right.__class__ in _NUMBERS:
            try:
                return number(operate(_float64(left), _float64(right)))
            except OverflowError:
                raise NoAnswer("too large for float64") from None
        if word == "added to" and left.__class__ is str and right.__class__ is str:
            return operate(left, right)
        raise NoAnswer(f"{kind_of(right)} cannot be {word} {kind_of(left)}")

    return calculate


add = arithmetic(operator.add, "added to")
subtract = arithmetic(operator.sub, "subtracted from")
multiply = arithmetic(operator.mul, "multiplied with")


def negate(value: Any) -> Any:
    """Unary minus."""
    if value.__class__ not in _NUMBERS:
        raise NoAnswer(f"{kind_of(value)} cannot be negated")
    return -value if value.__class__ is int else -_float64(value)
