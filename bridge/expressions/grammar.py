"""Parse an expression into closures.

The operators (and, or, not, comparisons, in, + - * /, x if y else z) run here, because the engine's results for
mixed kinds are misleading (operators.py) and a call into it costs several microseconds. Everything else (filters,
tests, calls, `~`, `//`, `%`, `**`, objects) goes to the engine as a span of the source in which every `$path` is a
variable. Grammar and precedence are minijinja's (https://docs.rs/minijinja, "syntax"), so that both read a text in
the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from bridge.expressions import columnar, syntax
from bridge.expressions.operators import (
    MISSING,
    Path,
    Reader,
    add,
    divide,
    multiply,
    negate,
    reader,
    subtract,
)
from bridge.expressions.syntax import ExpressionSyntaxError, path_of, tokens_of

Fallback = Callable[[str, Mapping[str, Path]], Reader]

_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "none": None, "None": None}


class Parser:
    """Recursive descent over the tokens of one expression. `read()` returns its closure; call it once."""

    def __init__(self, source: str, engine: Fallback) -> None:
        self.source = source
        self.engine = engine
        self.tokens = tokens_of(source)
        self.at = 0
        self.paths: list[Path] = [path_of(t.text) for t in self.tokens if t.kind == "path"]
        self.columns: dict[Reader, columnar.ColumnReader] = {}
        """Nodes with a form over whole lists."""

    def read(self) -> Reader:
        node = self.choice()
        if self.tokens[self.at].kind != "end":
            self.fail()
        return node

    # -- tokens

    def fail(self) -> None:
        token = self.tokens[self.at]
        what = "the end" if token.kind == "end" else repr(token.text)
        hint = f"write ${token.text} for a field or root of that name" if token.kind == "name" else ""
        raise ExpressionSyntaxError(
            f"unexpected {what} in expression {self.source!r}", token.start, hint=hint
        )

    def sees(self, *texts: str) -> bool:
        token = self.tokens[self.at]
        return token.kind in ("operator", "name") and token.text in texts

    def take(self, *texts: str) -> str | None:
        if not self.sees(*texts):
            return None
        self.at += 1
        return self.tokens[self.at - 1].text

    def expect(self, text: str) -> None:
        if self.take(text) is None:
            self.fail()

    def label(self, start: int) -> str:
        """The source from token `start` up to here: an operand's name in a message."""
        return self.source[self.tokens[start].start : self.tokens[self.at - 1].end]

    def delegate(self, start: int) -> Reader:
        """Pass the tokens from `start` up to here to the engine."""
        variables: dict[str, Path] = {}
        parts: list[str] = []
        for token in self.tokens[start : self.at]:
            if token.kind == "path":
                name = f"_{len(variables)}"
                variables[name] = path_of(token.text)
                parts.append(name)
            else:
                parts.append(token.text)
        text = re.sub(r"(_\d+) \. ", r"\1.", " ".join(parts))
        try:
            return self.engine(text, variables)
        except ValueError:
            raise ExpressionSyntaxError(
                f"cannot read {self.label(start)!r} in expression {self.source!r}", self.tokens[start].start
            ) from None

    def note(self, node: Reader, compile_column: Callable[..., columnar.ColumnReader]) -> None:
        """Record the node's form over lists, if it has one."""
        with suppress(columnar.NotPlain):
            self.columns[node] = compile_column()

    # -- the grammar, loosest first

    def choice(self) -> Reader:
        """x if condition else y"""
        node = self.either()
        while self.take("if"):
            start = self.at
            condition = syntax.guard(self.either(), self.label(start))
            otherwise = self.choice() if self.take("else") else syntax.Constant(None)
            node = syntax.choose(condition, node, otherwise)
        return node

    def either(self) -> Reader:
        start = self.at
        node = self.both()
        while self.take("or"):
            label = self.label_before(start)
            left, right = node, self.both()
            node = syntax.either(syntax.guard(left, label), right)
            self.note(node, lambda a=left, b=right: columnar.logical("or", a, b, self.columns))
        return node

    def both(self) -> Reader:
        start = self.at
        node = self.negation()
        while self.take("and"):
            label = self.label_before(start)
            left, right = node, self.negation()
            node = syntax.both(syntax.guard(left, label), right)
            self.note(node, lambda a=left, b=right: columnar.logical("and", a, b, self.columns))
        return node

    def label_before(self, start: int) -> str:
        """As label(), without the operator just taken."""
        return self.source[self.tokens[start].start : self.tokens[self.at - 2].end]

    def negation(self) -> Reader:
        if self.take("not"):
            start = self.at
            node = self.negation()
            negated = syntax.negation(syntax.guard(node, self.label(start)))
            self.note(negated, lambda: columnar.logical("not", node, None, self.columns))
            return negated
        return self.comparison()

    def comparison(self) -> Reader:
        start = self.at
        left = self.sum()
        left_label = self.label(start)
        links: list[Reader] = []
        while True:
            inverted = self.sees("not") and self.tokens[self.at + 1].text == "in"
            if inverted:
                self.at += 1
            word = self.take("==", "!=", "<", "<=", ">", ">=", "in")
            if word is None:
                break
            start = self.at
            right = self.sum()
            label = self.label(start)
            link = syntax.compare(word, inverted, left, right, left_label, label)
            self.note(
                link,
                lambda w=word, i=inverted, a=left, b=right: columnar.compare(w, i, a, b, self.columns),
            )
            links.append(link)
            left, left_label = right, label
        if not links:
            return left
        if len(links) == 1:
            return links[0]
        return lambda context: all(link(context) for link in links)

    def sum(self) -> Reader:
        return self.binary({"+": add, "-": subtract}, self.joined)

    def joined(self) -> Reader:
        start = self.at
        node = self.product()
        if not self.sees("~"):
            return node
        while self.take("~"):
            self.product()
        return self.delegate(start)

    def product(self) -> Reader:
        start = self.at
        node = self.binary({"*": multiply, "/": divide}, self.unary)
        if not self.sees("//", "%"):
            return node
        while self.take("//", "%", "*", "/"):
            self.unary()
        return self.delegate(start)

    def binary(self, words: Mapping[str, Callable[[Any, Any], Any]], operand: Callable[[], Reader]) -> Reader:
        start = self.at
        node = operand()
        while (word := self.take(*words)) is not None:
            left_label = self.label_before(start)
            right_start = self.at
            left, right = node, operand()
            node = syntax.calculate(words[word], left, right, left_label, self.label(right_start))
            self.note(node, lambda o=words[word], a=left, b=right: columnar.calculate(o, a, b, self.columns))
        return node

    def unary(self) -> Reader:
        start = self.at
        return self.suffixes(start, self.signed())

    def signed(self) -> Reader:
        if not self.take("-"):
            return self.power()
        start = self.at
        inner, label = self.signed(), self.label(start)
        return lambda context: syntax.named(negate, (inner(context),), (label,))

    def power(self) -> Reader:
        start = self.at
        node = self.primary()
        if not self.sees("**"):
            return node
        while self.take("**"):
            self.take("-")
            self.primary()
        return self.delegate(start)

    def suffixes(self, start: int, node: Reader) -> Reader:
        """Filters and tests. `is defined` and `is none` are ours, the rest the engine's."""
        ours = True
        while True:
            if self.take("|"):
                self.word()
                self.arguments()
                ours = False
            elif self.take("is"):
                test = presence(node, self) if ours else None
                if test is None:
                    self.take("not")
                    self.word()
                    self.arguments()
                elif not self.sees("|", "is"):
                    return test
                ours = False
            else:
                return node if ours else self.delegate(start)

    def word(self) -> None:
        if self.tokens[self.at].kind != "name":
            self.fail()
        self.at += 1

    def arguments(self) -> None:
        """Skip `( ... )`, if it is next."""
        if self.sees("("):
            self.brackets()

    def brackets(self) -> None:
        """Skip one bracketed group; the engine parses its inside."""
        depth = 0
        while True:
            token = self.tokens[self.at]
            if token.kind == "end":
                self.fail()
            self.at += 1
            if token.kind == "operator":
                depth += (token.text in "([{") - (token.text in ")]}")
                if depth == 0:
                    return

    def primary(self) -> Reader:
        start = self.at
        node = self.atom()
        ours = True
        while self.sees(".", "[", "("):
            ours = False
            if self.take("."):
                self.at += 1
            else:
                self.brackets()
        return node if ours else self.delegate(start)

    def atom(self) -> Reader:  # noqa: PLR0911  one return a kind of atom
        token = self.tokens[self.at]
        if token.kind == "path":
            self.at += 1
            steps = path_of(token.text)
            node = reader(steps)
            self.columns[node] = columnar.path(steps)
            return node
        if token.kind == "name" and token.text in _CONSTANTS:
            self.at += 1
            return syntax.Constant(_CONSTANTS[token.text])
        if token.kind in ("number", "string"):
            start = self.at
            while self.tokens[self.at].kind == token.kind:  # neighbouring strings are one, as in Python
                self.at += 1
            return syntax.Constant(self.delegate(start)({}))
        if token.kind == "name" and self.tokens[self.at + 1].text == "(":
            start = self.at
            self.at += 1
            self.brackets()
            return self.delegate(start)
        if self.take("("):
            node = self.choice()
            if self.take(")"):
                return node
        elif self.take("["):
            return self.array()
        elif self.sees("{"):
            start = self.at
            self.brackets()
            return self.delegate(start)
        self.fail()
        raise AssertionError

    def array(self) -> Reader:
        items: list[Reader] = []
        while not self.take("]"):
            items.append(self.choice())
            if not self.take(",") and not self.sees("]"):
                self.fail()
        if all(isinstance(item, syntax.Constant) for item in items):
            return syntax.Constant([item({}) for item in items])
        return lambda context: [None if (v := item(context)) is MISSING else v for item in items]


def presence(node: Reader, parser: Parser) -> Reader | None:
    """`is [not] defined`, `is [not] undefined`, `is [not] none`, if they are next."""
    at = parser.at
    inverted = parser.take("not") is not None
    word = parser.take("defined", "undefined", "none")
    if word is None:
        parser.at = at
        return None
    if word == "none":
        return lambda context: (node(context) is None) is not inverted
    wanted = (word == "undefined") is not inverted
    return lambda context: (node(context) is MISSING) is wanted
