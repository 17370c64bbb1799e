"""Lint of what expressions do with values: comparisons of kinds that never meet, operands that can be absent.

A text is never compared with a number, and an enum only with its own values; an operand that can be missing, null
or zero is a dead letter at run time. Both read expressions as neighbouring tokens, and leave alone what they cannot
tell.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterator, Mapping
from typing import Any

from bridge.config.contract import EventField
from bridge.expressions.expression import compile_expression
from bridge.expressions.syntax import ExpressionSyntaxError, Token, tokens_of
from bridge.planning.rows import classify, names_of
from bridge.problem import KeyPath, Remark, nearest

_PATH = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)")
_ARITHMETIC = {"+", "-", "*", "/", "//", "%", "**"}
_NO_NUMBER = {"==", "!=", "<", "<=", ">", ">=", "and", "or", "not", "in", "~"}


def tokens(expression: str) -> list[Token]:
    """The tokens of an expression; none if it cannot be split."""
    try:
        return tokens_of(expression)[:-1]
    except ExpressionSyntaxError:
        return []


def expression_names(expression: str) -> frozenset[str]:
    """The dotted names that an expression reads, without the dollar. Raises ConfigError if it cannot be parsed."""
    return compile_expression(expression).names


def value_names(value: Any) -> frozenset[str]:
    """The dotted names that a value reads: an expression, a template, or either inside lists and objects."""
    return names_of(classify(value))


def is_expression(value: Any) -> bool:
    """Is this value an expression?"""
    return isinstance(value, str) and _PATH.match(value) is not None


def paths_in_text(text: str) -> list[str]:
    """`$name.field` inside a literal text, where it is only text."""
    return _PATH.findall(text.replace("$$", ""))


def has_arithmetic(expression: str) -> bool:
    """Is the result computed, and so a float64? (A comparison's result is not a number.)"""
    words = {token.text for token in tokens(expression) if token.kind in ("operator", "name")}
    return bool(words & _ARITHMETIC) and not words & _NO_NUMBER


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
    """Comparisons in `expression` that cannot be intended."""
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
    """Is the operand at `index` a whole side of its comparison, not the end of an arithmetic expression or call?"""
    beyond = index + step
    if not 0 <= beyond < len(pieces):
        return True
    return pieces[beyond].text in {"(", ")"} | _SIDE_ENDS


def _pair(
    path: KeyPath, left: Token, right: Token, fields: Mapping[str, list[EventField]]
) -> Iterator[Remark]:
    kinds = _kind(left, fields), _kind(right, fields)
    if None not in kinds and kinds[0] != kinds[1]:
        message = f"{left.text} is a {kinds[0]} and {right.text} is a {kinds[1]}: they cannot be compared"
        number = next((piece for piece in (left, right) if piece.kind == "string"), None)
        fix = f"write {number.text[1:-1]} without quotes" if number and _numeric(number) else ""
        yield Remark("error", path, message, fix or "compare values of one type, or correct the contract")
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


_ORDER = _COMPARE - {"==", "!="}
_DIVISION = {"/", "//", "%"}
_ARITHMETIC_SIGNS = {"+", "-", "*", "**"} | _DIVISION
_CODE = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_DEFAULTS = {"number": "0", "integer": "0", "boolean": "false", "string": "''"}


class Absences:
    """The absent values of one pipeline, checked expression by expression in the order of evaluation. Each path is
    reported once."""

    def __init__(self, fields: Mapping[str, list[EventField]] | None) -> None:
        """`fields`: the contract's fields by name; None if there is no contract."""
        self._fields = fields or {}
        self._rows: set[str] = set()
        self._known: set[str] = set()  # asked for, or told of
        self._compared: set[str] = set()  # a zero has had its chance to be told

    def row(self, name: str) -> None:
        """From here on `$name` is a row that may be missing; then each of its fields is null."""
        self._rows.add(name)

    def check(self, path: KeyPath, expression: str) -> Iterator[Remark]:
        """Warnings for the expression at `path`; an error for a division by a literal zero."""
        pieces = tokens(expression)
        if len(pieces) < 2:  # a path by itself is null, and no failure
            return
        operands = [
            (piece, _neighbour(pieces, index - 1), _neighbour(pieces, index + 1))
            for index, piece in enumerate(pieces)
            if piece.kind in ("path", "number")
        ]
        for piece, before, after in operands:
            if piece.kind == "path" and (after in ("is", "|") or (after == "and" and before not in _COMPARE)):
                self._ask(piece)
        for piece, before, after in operands:
            if piece.kind == "path":
                yield from self._absent(path, piece, before, after)
            if before not in _DIVISION and {before, after} & _COMPARE:
                self._compared.add(piece.text)
        for piece, before, _ in operands:
            if before in _DIVISION:
                yield from self._divisor(path, piece)

    def check_template(self, path: KeyPath, template: str) -> Iterator[Remark]:
        """Warnings for fields that a template prints and that may be missing. (Null prints nothing.)"""
        code = " ".join(_CODE.findall(template))
        for name, definitions in self._fields.items():
            text = f"$event.{name}"
            if text in self._known or all(one.required for one in definitions):
                continue
            uses = re.findall(rf"\bevent\.{re.escape(name)}\b(?!\.)\s*(\||is\b)?", code)
            if uses and not any(uses):
                self._known.add(text)
                message = f"event.{name} may be missing: this destination then gets a dead letter"
                fix = f"give a default: {{{{ event.{name}|default('') }}}}"
                yield Remark("warning", path, message, fix)

    def _ask(self, piece: Token) -> None:
        root = piece.text[1:].partition(".")[0]
        self._known.add(root if root in self._rows else piece.text)

    def _absent(self, path: KeyPath, piece: Token, before: str, after: str) -> Iterator[Remark]:
        text = piece.text
        root, _, field = text[1:].partition(".")
        needs_value = bool({before, after} & (_ORDER | _ARITHMETIC_SIGNS))
        if root in self._rows:
            if root in self._known or not field or not needs_value:
                return
            message = f"{text} is null where no {root} is found: the event then becomes a dead letter"
            fix = f"check first: {text} is not none and ..."
        else:
            definitions = self._definitions(text)
            optional = any(not one.required for one in definitions)
            nullable = needs_value and any(one.nullable for one in definitions)
            if text in self._known or not (optional or nullable):
                return
            may = (
                "may be missing or null"
                if optional and nullable
                else "may be missing"
                if optional
                else "may be null"
            )
            message = f"{text} {may}: the event then becomes a dead letter"
            default = _DEFAULTS.get(definitions[0].type)
            fix = (
                f"give a default: ({text}|default({default}, true))"
                if default
                else f"check first: {text} is defined and ..."
            )
        self._ask(piece)
        yield Remark("warning", path, message, fix)

    def _divisor(self, path: KeyPath, piece: Token) -> Iterator[Remark]:
        if piece.kind == "number" and not piece.text.strip("0._"):
            yield Remark("error", path, "divides by zero: every event would become a dead letter")
        elif piece.text not in self._compared and self._definitions(piece.text):
            self._compared.add(piece.text)
            message = f"{piece.text} may be 0: a division by zero makes the event a dead letter"
            yield Remark(
                "warning", path, message, f"check first, here or in an earlier filter: {piece.text} > 0"
            )

    def _definitions(self, text: str) -> list[EventField]:
        root, _, field = text[1:].partition(".")
        return self._fields.get(field, []) if root == "event" else []


def _neighbour(pieces: list[Token], index: int) -> str:
    """The operator or word beside an operand; a string literal counts as none."""
    if not 0 <= index < len(pieces) or pieces[index].kind == "string":
        return ""
    return pieces[index].text
