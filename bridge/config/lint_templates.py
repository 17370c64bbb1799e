"""Lint of what a template compares: as in an expression, with names that have no dollar.

Only what is printed and what `if` asks is read, and only of names that the template itself does not make.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from bridge.config.known import EventFields, Roots
from bridge.config.lint_comparisons import check_operators
from bridge.expressions.expression import code_of
from bridge.expressions.syntax import ExpressionSyntaxError, tokens_of
from bridge.expressions.tree import tree_of
from bridge.problem import KeyPath, Remark

_ASKS = ("", "if", "elif")
_NAME = re.compile(r"[A-Za-z_]\w*")


def check_template_operators(
    path: KeyPath, template: str, known: Collection[str], roots: Roots, fields: EventFields | None
) -> Iterator[Remark]:
    """Comparisons and arithmetic in a template that cannot be meant. known: the names that it can read."""
    codes = code_of(template)
    own = {
        name
        for tag, code in codes
        if tag in ("for", "set")
        for name in _NAME.findall(re.split(r"=|\bin\b", code)[0])
    }
    dollar = re.compile(rf"\$(?=(?:{'|'.join(['name', *sorted(known)])})\b)")
    told = set()
    for tag, code in codes:
        node = tree_of(_with_dollars(code, set(known) - own)) if tag in _ASKS else None
        if node is None:
            continue
        for one in check_operators(path, node, roots, fields):
            said = replace(one, message=dollar.sub("", one.message), fix=dollar.sub("", one.fix))
            if said not in told:
                told.add(said)
                yield said


def _with_dollars(code: str, roots: Collection[str]) -> str:
    """The same as an expression: `event.used > 5` is `$event.used > 5`."""
    try:
        tokens = tokens_of(code)
    except ExpressionSyntaxError:
        return ""
    made, end, before = "", 0, ""
    for token in tokens:
        made += code[end : token.start]
        root = token.kind == "name" and token.text in roots and before not in (".", "|", "is")
        made += f"${token.text}" if root else token.text
        end, before = token.end, token.text
    return made
