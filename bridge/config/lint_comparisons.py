"""Lint of operators whose operands never go together: a text and a number, a word that an enum does not have.

Which kinds do is operators.py's; what is not known is left alone.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterator

from bridge.config.known import NAMES, EventFields, Kind, Known, Roots
from bridge.expressions.tree import Node
from bridge.problem import KeyPath, Level, Remark, nearest

_ALIKE = frozenset({frozenset({"text", "time"})})
"""Kinds that can be compared though they differ: a date of a lookup and its ISO 8601 text."""
_EQUALITY = ("==", "!=")
_MEMBER = ("in", "not in")


def check_operators(path: KeyPath, node: Node, roots: Roots, fields: EventFields | None) -> Iterator[Remark]:
    """Comparisons and arithmetic in an expression that cannot be meant."""
    for one in node.walk():
        if one.kind == "arithmetic":
            yield from _arithmetic(path, one, roots)
        elif one.kind == "compare" and one.word in _MEMBER:
            yield from _member(path, one, roots, fields)
        elif one.kind == "compare":
            left, right = one.parts
            unlike = list(_unlike(path, left, right, roots))
            yield from unlike
            if not unlike and one.word in _EQUALITY:
                words = (_never(left, right, roots, fields), _never(right, left, roots, fields))
                yield from (_remark(path, word, "error") for word in words if word is not None)


# -- kinds ----------------------------------------------------------------------------------------------


def _unlike(path: KeyPath, left: Node, right: Node, roots: Roots) -> Iterator[Remark]:
    """Two sides of a comparison whose kinds differ."""
    one, other = roots.of(left), roots.of(right)
    if _apart(one.kind, other.kind):
        message = f"{left.text} is {NAMES[one.kind]} and {right.text} is {NAMES[other.kind]}: they cannot be compared"
        number = next((side for side in (left, right) if side.kind == "string" and _numeric(side)), None)
        fix = f"write {number.text[1:-1]} without quotes" if number else ""
        fix = fix or "compare values of one type, or correct the contract"
        yield Remark("error", path, message, fix, name="unlike-values")
        return
    for side, known, against in ((left, one, other), (right, other, one)):
        wrong = [event for event, kind in known.by_type.items() if _apart(kind, against.kind)]
        if wrong:
            kind = NAMES[known.by_type[wrong[0]]]
            message = f"{side.text} is {kind} in events of {', '.join(wrong)}: there they cannot be compared"
            fix = "check first: $meta.type == ... and ..."
            yield Remark("warning", path, message, fix, name="unlike-values")


def _apart(one: Kind, other: Kind) -> bool:
    """Are both known, and never equal nor in an order?"""
    return bool(one and other) and one != other and frozenset({one, other}) not in _ALIKE


def _numeric(node: Node) -> bool:
    return node.text[1:-1].replace(".", "", 1).isdigit()


def _arithmetic(path: KeyPath, node: Node, roots: Roots) -> Iterator[Remark]:
    """Operands that are no numbers. `+` also joins two texts."""
    kinds = [roots.of(part).kind for part in node.parts]
    if node.word == "+" and set(kinds) <= {"text", ""}:
        return
    for part, kind in zip(node.parts, kinds, strict=True):
        if kind not in ("number", ""):
            message = f"{part.text} is {NAMES[kind]}: `{node.text}` makes every event a dead letter"
            fix = "let the contract say number, or write ($name|int)" if kind == "text" else "use a number"
            yield Remark("error", path, message, fix, name="no-number")


# -- words ----------------------------------------------------------------------------------------------


def _member(path: KeyPath, node: Node, roots: Roots, fields: EventFields | None) -> Iterator[Remark]:
    """`x in [...]`: an error if no element can be meant, a warning for one of several."""
    item, container = node.parts
    if container.kind != "list":
        if container.kind == "string" and roots.of(item).kind in ("number", "boolean"):
            yield from _unlike(path, item, container, roots)
        return
    found = []
    for element in container.parts:
        remarks = list(_unlike(path, item, element, roots))
        word = _never(item, element, roots, fields)
        if word is not None:
            remarks.append(_remark(path, word, "error"))
        found.append(remarks)
    level: Level = "error" if all(found) else "warning"
    for remarks in found:
        for one in remarks:
            yield Remark(
                level if one.level == "error" else one.level, path, one.message, one.fix, name=one.name
            )


Word = tuple[str, str, bool]
"""What is said of a word that never comes, its fix, and whether that is sure."""


def _never(side: Node, literal: Node, roots: Roots, fields: EventFields | None) -> Word | None:
    """`side` never has the value of `literal`."""
    value = _value(literal)
    if value is None or side.kind != "path":
        return None
    if side.text == "$meta.type" and fields is not None:
        if not isinstance(value, str) or fields.may_be(value):
            return None
        fix = nearest(value, fields.by_type) or f"it takes: {', '.join(fields.patterns)}"
        return f"{side.text} is never {literal.text}: the pipeline does not take it", fix, True
    known: Known = roots.path(side.text)
    if known.words is None or value in known.words:
        return None
    words = [str(one) for one in known.words]
    fix = nearest(str(value), words) or f"its values: {', '.join(words)}"
    never = f"{side.text} is never" if known.total else f"no contract lets {side.text} be"
    return f"{never} {literal.text}", fix, known.total


def _value(literal: Node) -> str | int | float | bool | None:
    """Of a constant."""
    if literal.kind == "word":
        return {"true": True, "false": False}.get(literal.text.lower())
    if literal.kind not in ("string", "number"):
        return None
    try:
        found: str | int | float = literal_eval(literal.text)
    except (ValueError, SyntaxError):
        return None
    return found


def _remark(path: KeyPath, word: Word, level: Level) -> Remark:
    message, fix, sure = word
    return Remark(level if sure else "warning", path, message, fix, name="never-equal")
