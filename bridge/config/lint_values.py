"""Lint of operands that can be absent: what is missing, null or zero is a dead letter at run time.

Reads expressions as neighbouring tokens, and leaves alone what it cannot tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bridge.config.contract import EventField
from bridge.config.known import EventFields
from bridge.expressions.expression import compile_expression
from bridge.expressions.syntax import ExpressionSyntaxError, Token, tokens_of
from bridge.planning.rows import classify, names_of
from bridge.problem import KeyPath, Remark

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
_ORDER = _COMPARE - {"==", "!="}
_DIVISION = {"/", "//", "%"}
_ARITHMETIC_SIGNS = {"+", "-", "*", "**"} | _DIVISION
_CODE = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_DEFAULTS = {"number": "0", "integer": "0", "boolean": "false", "string": "''"}


class Absences:
    """The absent values of one pipeline, checked expression by expression in the order of evaluation. Each path is
    reported once."""

    def __init__(self, fields: EventFields | None) -> None:
        """`fields`: the contracts'; None if there is none."""
        self._fields = fields or EventFields((), {})
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
            yield from self._null(path, pieces)
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

    def _null(self, path: KeyPath, pieces: list[Token]) -> Iterator[Remark]:
        """A path by itself whose field only some of the types have."""
        for piece in pieces:
            without = self._lacking(piece.text)
            if without and piece.text not in self._known:
                self._known.add(piece.text)
                message = (
                    f"{piece.text} is null in events of {', '.join(without)}: their contract does not have it"
                )
                fix = "take these types in a pipeline of their own, or add the field to their contract"
                yield Remark("warning", path, message, fix, name="field-of-some")

    def check_template(self, path: KeyPath, template: str) -> Iterator[Remark]:
        """Warnings for fields that a template prints and that may be missing. (Null prints nothing.)"""
        code = " ".join(_CODE.findall(template))
        for name in self._fields.names():
            text = f"$event.{name}"
            without = self._fields.lacking(name)
            if text in self._known or not (without or any(not one.required for one in self._fields.of(name))):
                continue
            uses = re.findall(rf"\bevent\.{re.escape(name)}\b(?!\.)\s*(\||is\b)?", code)
            if uses and not any(uses):
                self._known.add(text)
                may = f"is missing in events of {', '.join(without)}" if without else "may be missing"
                message = f"event.{name} {may}: this destination then gets a dead letter"
                fix = f"give a default: {{{{ event.{name}|default('') }}}}"
                yield Remark("warning", path, message, fix, name="may-be-absent")

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
            without = self._lacking(text)
            optional = bool(without) or any(not one.required for one in definitions)
            nullable = needs_value and any(one.nullable for one in definitions)
            if text in self._known or not (optional or nullable):
                return
            may = (
                f"is missing in events of {', '.join(without)}"
                if without
                else "may be missing or null"
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
        yield Remark("warning", path, message, fix, name="may-be-absent")

    def _divisor(self, path: KeyPath, piece: Token) -> Iterator[Remark]:
        if piece.kind == "number" and not piece.text.strip("0._"):
            yield Remark(
                "error", path, "divides by zero: every event would become a dead letter", name="zero-divisor"
            )
        elif piece.text not in self._compared and self._definitions(piece.text):
            self._compared.add(piece.text)
            message = f"{piece.text} may be 0: a division by zero makes the event a dead letter"
            fix = f"check first, here or in an earlier filter: {piece.text} > 0"
            yield Remark("warning", path, message, fix, name="may-divide-by-zero")

    def _definitions(self, text: str) -> list[EventField]:
        root, _, field = text[1:].partition(".")
        return self._fields.of(field) if root == "event" else []

    def _lacking(self, text: str) -> list[str]:
        root, _, field = text[1:].partition(".")
        return self._fields.lacking(field) if root == "event" else []


def _neighbour(pieces: list[Token], index: int) -> str:
    """The operator or word beside an operand; a string literal counts as none."""
    if not 0 <= index < len(pieces) or pieces[index].kind == "string":
        return ""
    return pieces[index].text
