"""The most common nodes of expressions over whole lists: one comprehension instead of a call per event.

Only if every value has a kind for which the answer is simple. Otherwise (null, missing, mixed kinds, a division by
zero) it raises NotPlain, and the expression runs event by event, which produces the error messages.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import repeat
from math import isfinite
from typing import Any

from bridge.expressions.operators import NoAnswer, Path, Reader, add, divide, multiply, subtract
from bridge.expressions.syntax import Constant

Columns = Callable[[Path], list[Any]]
"""Returns a path's value in every row, None where it does not exist."""
ColumnReader = Callable[[Columns], list[Any]]


class NotPlain(Exception):
    """These values must be evaluated one by one."""


_INTEGERS = frozenset({int})
_NUMBERS = frozenset({int, float})
_TEXTS = frozenset({str})
_CONDITIONS = frozenset({bool, int, float, str})
_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_EQUALITIES = {"==": operator.eq, "!=": operator.ne}
_ARITHMETIC = {add: operator.add, subtract: operator.sub, multiply: operator.mul}


def path(steps: Path) -> ColumnReader:
    """A lone path."""
    return lambda columns: columns(steps)


def kinds(values: list[Any]) -> set[type]:
    return set(map(type, values))


def _sides(
    left: Reader | None, right: Reader | None, known: dict[Reader, ColumnReader]
) -> Callable[[Columns], Any]:
    """Both operands' lists with the kinds in them; a constant repeats itself."""

    def one(side: Reader | None) -> Callable[[Columns], tuple[Any, set[type]]] | None:
        if isinstance(side, Constant):
            value = side.value
            return lambda _columns: (repeat(value), {type(value)})
        column = known.get(side) if side is not None else None
        if column is None:
            return None

        def listed(columns: Columns) -> tuple[Any, set[type]]:
            values = column(columns)
            return values, kinds(values)

        return listed

    first, second = one(left), one(right)
    if first is None or second is None or (isinstance(left, Constant) and isinstance(right, Constant)):
        raise NotPlain

    def both(columns: Columns) -> Any:
        a, a_kinds = first(columns)
        b, b_kinds = second(columns)
        return a, b, a_kinds | b_kinds

    return both


def compare(
    word: str, inverted: bool, left: Reader, right: Reader, known: dict[Reader, ColumnReader]
) -> ColumnReader:
    """A comparison or `in`; raises NotPlain at once if it has no form over lists."""
    if word == "in":
        return _within(inverted, left, right, known)
    sides = _sides(left, right, known)
    operate = _ORDERS.get(word) or _EQUALITIES[word]

    def compared(columns: Columns) -> list[Any]:
        a, b, found = sides(columns)
        if not (found <= _NUMBERS or found <= _TEXTS):
            raise NotPlain
        return list(map(operate, a, b))

    return compared


def _within(inverted: bool, left: Reader, right: Reader, known: dict[Reader, ColumnReader]) -> ColumnReader:
    column = known.get(left)
    if column is None or not isinstance(right, Constant) or not isinstance(right.value, list):
        raise NotPlain
    texts = frozenset(item for item in right.value if isinstance(item, str))

    def within(columns: Columns) -> list[Any]:
        values = column(columns)
        if not kinds(values) <= _TEXTS:
            raise NotPlain
        found = map(texts.__contains__, values)
        return list(map(operator.not_, found)) if inverted else list(found)

    return within


def calculate(
    operate: Callable[[Any, Any], Any], left: Reader, right: Reader, known: dict[Reader, ColumnReader]
) -> ColumnReader:
    """+ - * / over numbers; integers stay exact, the rest is float64 as in operators.py."""
    sides = _sides(left, right, known)
    plain = _ARITHMETIC.get(operate)

    def calculated(columns: Columns) -> list[Any]:
        a, b, found = sides(columns)
        if not found <= _NUMBERS:
            raise NotPlain
        try:
            if operate is divide:
                result = list(map(operator.truediv, map(float, a), map(float, b)))
            elif plain is not None and found == _INTEGERS:
                result = list(map(plain, a, b))
                if max(map(int.bit_length, result), default=0) >= 127:
                    raise NotPlain
                return result
            else:
                return list(map(operate, a, b))
        except (ArithmeticError, NoAnswer):  # found row by row, with the words for it
            raise NotPlain from None
        if not all(map(isfinite, result)):
            raise NotPlain
        return result

    return calculated


def logical(word: str, left: Reader, right: Reader | None, known: dict[Reader, ColumnReader]) -> ColumnReader:
    """and, or, not: both sides are evaluated, which makes no difference if neither can fail."""
    first = known.get(left)
    second = known.get(right) if right is not None else None
    if first is None or (right is not None and second is None):
        raise NotPlain

    def decided(columns: Columns) -> list[Any]:
        a = first(columns)
        if not kinds(a) <= _CONDITIONS:
            raise NotPlain
        if second is None:
            return list(map(operator.not_, a))
        b = second(columns)
        if not kinds(b) <= _CONDITIONS:
            raise NotPlain
        if word == "and":
            return [x and y for x, y in zip(a, b, strict=True)]
        return [x or y for x, y in zip(a, b, strict=True)]

    return decided
