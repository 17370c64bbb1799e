"""Lint of comparisons: a text is never compared with a number, and an enum only with its own values.

Apart because it reads expressions as neighbouring tokens, `left operator right`; what it cannot tell, it
leaves alone.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterator, Mapping

from bridge.config.contract import EventField
from bridge.config.expressions import tokens
from bridge.config.problem import KeyPath, Remark, nearest
from bridge.core.expressions.tokens import Token

_COMPARE = {"==", "!=", "<", "<=", ">", ">="}
_KINDS = {
    "string": "text",
    "timestamp": "text",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
}
_SIDE_ENDS = {"and", "or", "not", "if", "else"}
_WORDS = {"true": "boolean", "false": "boolean"}


def check_comparisons(
    path: KeyPath, expression: str, fields: Mapping[str, list[EventField]]
) -> Iterator[Remark]:
    """Comparisons in `expression` that can't mean what they say."""
    pieces = tokens(expression)
    for index in range(1, len(pieces) - 1):
        before, here, after = pieces[index - 1], pieces[index], pieces[index + 1]
        if here.text in _COMPARE and here.kind == "operator":
            if _alone(pieces, index - 1, -1) and _alone(pieces, index + 1, 1):
                yield from _pair(path, before, after, fields)
        elif here.text == "in" and after.text == "[":
            for piece in pieces[index + 2 :]:
                if piece.text == "]":
                    break
                if piece.text != ",":
                    yield from _pair(path, before, piece, fields)


def _alone(pieces: list[Token], index: int, step: int) -> bool:
    """Is the operand at `index` a whole side of its comparison, not the end of some arithmetic or call?"""
    beyond = index + step
    if not 0 <= beyond < len(pieces):
        return True
    return pieces[beyond].text in {"(", ")"} | _SIDE_ENDS


def _pair(
    path: KeyPath, left: Token, right: Token, fields: Mapping[str, list[EventField]]
) -> Iterator[Remark]:
    kinds = _kind(left, fields), _kind(right, fields)
    if None not in kinds and kinds[0] != kinds[1]:
        message = f"{left.text} is a {kinds[0]} and {right.text} is a {kinds[1]}: they never compare"
        number = next((piece for piece in (left, right) if piece.kind == "string"), None)
        fix = f"write {number.text[1:-1]} without quotes" if number and _numeric(number) else ""
        yield Remark("error", path, message, fix or "compare like with like, or mend the contract")
        return
    for side, other in ((left, right), (right, left)):
        values = _enum(side, fields)
        if values is None or other.kind != "string":
            continue
        value = literal_eval(other.text)
        if value not in values:
            known = [str(one) for one in values]
            fix = nearest(value, known) or f"its values: {', '.join(known)}"
            yield Remark("error", path, f"{side.text} is never {other.text}", fix)


def _numeric(token: Token) -> bool:
    return token.text[1:-1].replace(".", "", 1).isdigit()


def _definitions(token: Token, fields: Mapping[str, list[EventField]]) -> list[EventField]:
    parts = token.text[1:].split(".")
    if token.kind != "path" or len(parts) != 2 or parts[0] != "event":
        return []
    return fields.get(parts[1], [])


def _kind(token: Token, fields: Mapping[str, list[EventField]]) -> str | None:
    if token.kind == "string":
        return "text"
    if token.kind == "number":
        return "number"
    if token.kind == "name":
        return _WORDS.get(token.text)
    kinds = {_KINDS.get(field.type) for field in _definitions(token, fields)}
    return kinds.pop() if len(kinds) == 1 else None


def _enum(token: Token, fields: Mapping[str, list[EventField]]) -> tuple[object, ...] | None:
    definitions = _definitions(token, fields)
    if len(definitions) != 1:
        return None
    return definitions[0].enum
