"""Lint of what may not be there: operands that can be missing, null or zero, each a dead letter at run time.

Apart from the comparisons because it goes by what earlier expressions of the pipeline have asked for. Like them it
reads neighbouring tokens, and what it cannot tell, it leaves alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from bridge.config.contract import EventField
from bridge.config.expressions import tokens
from bridge.config.problem import KeyPath, Remark
from bridge.core.expressions.tokens import Token

_COMPARE = {"==", "!=", "<", "<=", ">", ">="}
_ORDER = _COMPARE - {"==", "!="}
_DIVISION = {"/", "//", "%"}
_ARITHMETIC = {"+", "-", "*", "**"} | _DIVISION
_CODE = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_DEFAULTS = {"number": "0", "integer": "0", "boolean": "false", "string": "''"}


class Absences:
    """One pipeline's, asked expression by expression in the order of evaluation. Each path is told of once."""

    def __init__(self, fields: Mapping[str, list[EventField]] | None) -> None:
        """`fields`: the contract's, by name; None when anything may come, and nothing is known."""
        self._fields = fields or {}
        self._rows: set[str] = set()
        self._known: set[str] = set()  # asked for, or told of
        self._compared: set[str] = set()  # a zero has had its chance to be told

    def row(self, name: str) -> None:
        """From here on `$name` is a row that may not have been found: each of its fields is null then."""
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
        """Warnings for fields that a template prints though they may be missing. (Null prints nothing.)"""
        code = " ".join(_CODE.findall(template))
        for name, definitions in self._fields.items():
            text = f"$event.{name}"
            if text in self._known or all(one.required for one in definitions):
                continue
            uses = re.findall(rf"\bevent\.{re.escape(name)}\b(?!\.)\s*(\||is\b)?", code)
            if uses and not any(uses):
                self._known.add(text)
                message = f"event.{name} may be missing: a dead letter for this destination then"
                fix = f"say what stands there instead: {{{{ event.{name}|default('') }}}}"
                yield Remark("warning", path, message, fix)

    def _ask(self, piece: Token) -> None:
        root = piece.text[1:].partition(".")[0]
        self._known.add(root if root in self._rows else piece.text)

    def _absent(self, path: KeyPath, piece: Token, before: str, after: str) -> Iterator[Remark]:
        text = piece.text
        root, _, field = text[1:].partition(".")
        needs_value = bool({before, after} & (_ORDER | _ARITHMETIC))
        if root in self._rows:
            if root in self._known or not field or not needs_value:
                return
            message = f"{text} is null where no {root} is found: the event is a dead letter then"
            fix = f"ask first: {text} is not none and ..."
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
            message = f"{text} {may}: the event is a dead letter then"
            default = _DEFAULTS.get(definitions[0].type)
            fix = (
                f"say what counts instead: ({text}|default({default}, true))"
                if default
                else f"ask first: {text} is defined and ..."
            )
        self._ask(piece)
        yield Remark("warning", path, message, fix)

    def _divisor(self, path: KeyPath, piece: Token) -> Iterator[Remark]:
        if piece.kind == "number" and not piece.text.strip("0._"):
            yield Remark("error", path, "divides by zero: every event would be a dead letter")
        elif piece.text not in self._compared and self._definitions(piece.text):
            self._compared.add(piece.text)
            message = f"{piece.text} may be 0: a division by zero makes the event a dead letter"
            yield Remark("warning", path, message, f"ask first, here or in a filter above: {piece.text} > 0")

    def _definitions(self, text: str) -> list[EventField]:
        root, _, field = text[1:].partition(".")
        return self._fields.get(field, []) if root == "event" else []


def _neighbour(pieces: list[Token], index: int) -> str:
    """The text of an operator or word beside an operand; a text of the customer's own counts as none."""
    if not 0 <= index < len(pieces) or pieces[index].kind == "string":
        return ""
    return pieces[index].text
