"""An expression as a tree, for whoever asks what it says and not what it is worth.

Grammar and precedence are grammar.py's. What the engine reads (calls, the arguments of filters, objects) is a leaf of
the kind `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from bridge.expressions.syntax import ExpressionSyntaxError, tokens_of

Kind = Literal[
    "path",
    "number",
    "string",
    "word",  # true, false, none
    "list",
    "arithmetic",  # operators + - * / // % **
    "join",  # ~
    "negative",
    "compare",  # == != < <= > >= in, not in
    "and",
    "or",
    "not",
    "choice",  # then, condition, otherwise
    "filtered",
    "test",
    "other",
]


@dataclass(frozen=True, slots=True)
class Node:
    """text: as written. word: the operator, or the name of the filter or test."""

    kind: Kind
    text: str
    parts: tuple[Node, ...] = ()
    word: str = ""

    def walk(self) -> Iterator[Node]:
        """The node and all below it, from left to right."""
        yield self
        for part in self.parts:
            yield from part.walk()


def tree_of(source: str) -> Node | None:
    """The tree of an expression; None if it cannot be parsed."""
    try:
        return _Reader(source).read()
    except (ExpressionSyntaxError, IndexError, RecursionError):
        return None


_COMPARE = ("==", "!=", "<", "<=", ">", ">=", "in")
_WORDS = ("true", "True", "false", "False", "none", "None")


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = tokens_of(source)
        self.at = 0

    def read(self) -> Node | None:
        node = self.choice()
        return node if self.tokens[self.at].kind == "end" else None

    # -- tokens

    def sees(self, *texts: str) -> bool:
        token = self.tokens[self.at]
        return token.kind in ("operator", "name") and token.text in texts

    def take(self, *texts: str) -> str:
        if not self.sees(*texts):
            return ""
        self.at += 1
        return self.tokens[self.at - 1].text

    def made(self, start: int, kind: Kind, *parts: Node, word: str = "") -> Node:
        text = self.source[self.tokens[start].start : self.tokens[self.at - 1].end]
        return Node(kind, text, parts, word)

    def skip_brackets(self) -> None:
        """One bracketed group, if it is next."""
        depth = 0
        while depth or self.sees("(", "[", "{"):
            token = self.tokens[self.at]
            if token.kind == "end":
                raise IndexError
            self.at += 1
            if token.kind == "operator":
                depth += (token.text in "([{") - (token.text in ")]}")
            if not depth:
                return

    # -- the grammar, loosest first

    def choice(self) -> Node:
        start, node = self.at, self.either()
        while self.take("if"):
            parts = [node, self.either()]
            if self.take("else"):
                parts.append(self.choice())
            node = self.made(start, "choice", *parts)
        return node

    def either(self) -> Node:
        start, node = self.at, self.both()
        while self.take("or"):
            node = self.made(start, "or", node, self.both())
        return node

    def both(self) -> Node:
        start, node = self.at, self.negation()
        while self.take("and"):
            node = self.made(start, "and", node, self.negation())
        return node

    def negation(self) -> Node:
        start = self.at
        if self.take("not"):
            return self.made(start, "not", self.negation())
        return self.comparison()

    def comparison(self) -> Node:
        start = self.at
        left = self.sum()
        links: list[Node] = []
        while True:
            inverted = self.sees("not") and self.tokens[self.at + 1].text == "in"
            self.at += inverted
            word = self.take(*_COMPARE)
            if not word:
                break
            right = self.sum()
            links.append(self.made(start, "compare", left, right, word="not in" if inverted else word))
            left = right
        if len(links) < 2:
            return links[0] if links else left
        return self.made(start, "and", *links)

    def sum(self) -> Node:
        return self.arithmetic(self.joined, "+", "-")

    def joined(self) -> Node:
        start, node = self.at, self.product()
        while self.take("~"):
            node = self.made(start, "join", node, self.product())
        return node

    def product(self) -> Node:
        return self.arithmetic(self.unary, "*", "/", "//", "%")

    def arithmetic(self, operand: Callable[[], Node], *words: str) -> Node:
        start, node = self.at, operand()
        while word := self.take(*words):
            node = self.made(start, "arithmetic", node, operand(), word=word)
        return node

    def unary(self) -> Node:
        start, node = self.at, self.signed()
        while True:
            if self.take("|"):
                word = self.name()
                self.skip_brackets()
                node = self.made(start, "filtered", node, word=word)
            elif self.take("is"):
                inverted = self.take("not")
                word = self.name()
                self.skip_brackets()
                node = self.made(start, "test", node, word=f"not {word}" if inverted else word)
            else:
                return node

    def name(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1].text

    def signed(self) -> Node:
        start = self.at
        if self.take("-"):
            return self.made(start, "negative", self.signed())
        return self.power()

    def power(self) -> Node:
        start, node = self.at, self.primary()
        while self.take("**"):
            self.take("-")
            node = self.made(start, "arithmetic", node, self.primary(), word="**")
        return node

    def primary(self) -> Node:
        start, node = self.at, self.atom()
        while self.sees(".", "[", "("):
            if self.take("."):
                self.at += 1
            else:
                self.skip_brackets()
            node = self.made(start, "other")
        return node

    def atom(self) -> Node:
        start, token = self.at, self.tokens[self.at]
        if token.kind in ("number", "string"):
            while self.tokens[self.at].kind == token.kind:  # neighbouring strings are one
                self.at += 1
            return self.made(start, "number" if token.kind == "number" else "string")
        if self.take("("):
            node = self.choice()
            if not self.take(")"):
                raise IndexError
            return node
        if self.take("["):
            items = []
            while not self.take("]"):
                items.append(self.choice())
                if not self.take(",") and not self.sees("]"):
                    raise IndexError
            return self.made(start, "list", *items)
        if self.sees("{"):
            self.skip_brackets()
            return self.made(start, "other")
        if token.kind not in ("path", "name"):
            raise IndexError
        self.at += 1
        if token.kind == "path":
            return self.made(start, "path")
        return self.made(start, "word" if token.text in _WORDS else "other")
