"""YAML text to plain values, each with its line and column, with `${VAR}` and `${file:/path}` substituted.

This settles what YAML leaves to surprise, before any model sees a value: numbers are what JSON calls numbers,
`true`, `false` and `null` are the only words, everything else (`on`, `no`, `012`, `12:30`, `2027-03-01`) is the text
it looks like; `True`, `NULL` and their like are refused. No tag constructs anything. A key stands once in a mapping.
What `${VAR}` and `${file:/path}` become: substitution.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.error import Mark, MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from bridge.config.allow import Allow, allows_of
from bridge.config.substitution import BadReference, Outside, Unset, in_files, substitute
from bridge.problem import TOP, InvalidConfig, KeyPath, Position, Problem

_KEY = re.compile(r"\s*[\w.-]+")  # what stands before the first colon of a line
_PLAIN = "plain"  # the tag of an unquoted scalar without a tag of its own
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_LOOKALIKES = {"True", "TRUE", "False", "FALSE", "Null", "NULL"}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,999})(\.[0-9]{1,999})?([eE][-+]?[0-9]{1,9})?")
_TAGS = {BaseResolver.DEFAULT_MAPPING_TAG, BaseResolver.DEFAULT_SEQUENCE_TAG, BaseResolver.DEFAULT_SCALAR_TAG}
_NODES_MAX = 100_000  # aliases can make a small file a huge tree
_MERGE = "<<"


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to nodes; it cannot construct objects."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        if kind is ScalarNode and implicit[0]:
            return _PLAIN
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag


@dataclass(slots=True)
class Document:
    """A file's values and their positions.

    values, keys: the position of each value and of each mapping key, by path from the top. substituted: paths whose
    text came from a variable or file and must not be shown: what was put in, and the reference that it was put in for.
    unset: (path, message) of each reference without a value here; their texts stay as written. allows: findings of
    lint that the file allows. in_files: the text of each value that a file has a part of, as written. text, outside:
    what all of it was made of.
    """

    file: str
    tree: Any = None
    text: str = ""
    outside: Outside = field(default_factory=lambda: Outside({}, Path()))
    values: dict[KeyPath, Position] = field(default_factory=dict)
    keys: dict[KeyPath, Position] = field(default_factory=dict)
    substituted: dict[KeyPath, dict[str, str]] = field(default_factory=dict)
    allows: list[Allow] = field(default_factory=list)
    unset: list[tuple[KeyPath, str]] = field(default_factory=list)
    in_files: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def position(self, path: KeyPath, *, key: bool = False) -> Position:
        """The position of a value (or its key); for a missing path, of its nearest parent."""
        for length in range(len(path), 0, -1):
            here = path[:length]
            first, second = (
                (self.keys, self.values) if key or length < len(path) else (self.values, self.keys)
            )
            found = first.get(here) or second.get(here)
            if found:
                return found
        return TOP

    def masked(self, path: KeyPath, text: str) -> str:
        """A text about the value at `path` with the references, where it has what was put in for them."""
        for length in range(len(path) + 1):
            for value, reference in self.substituted.get(path[:length], {}).items():
                text = text.replace(value, reference)
        return text

    def problem(self, path: KeyPath, message: str, hint: str = "", *, key: bool = False) -> None:
        """Record an error at `path`."""
        self.problems.append(Problem(self.position(path, key=key), path, message, hint))


def read(path: Path, environ: Mapping[str, str]) -> Document:
    """The file as a Document. Raises InvalidConfig if it cannot be opened or is not YAML."""
    try:
        content = path.read_bytes()
    except OSError as error:
        theirs = isinstance(error, PermissionError)
        fix = (
            "run the command with sudo, or as the bridge's user" if theirs else "bridge init writes a new one"
        )
        failure = Problem(TOP, (), f"cannot be read: {error.strerror}", fix)
        raise InvalidConfig(str(path), [failure], unreadable=True) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise InvalidConfig(str(path), [Problem(Position(line, column), (), "is not UTF-8 text")]) from None
    return parse(text, environ, file=str(path), directory=path.parent)


def parse(
    text: str,
    environ: Mapping[str, str],
    *,
    file: str,
    directory: Path,
    contents: Mapping[str, str] | None = None,
) -> Document:
    """Like `read`, from text. directory, contents: as Outside."""
    try:
        node = _Loader(text).get_single_node()
    except MarkedYAMLError as error:
        raise InvalidConfig(file, [_syntax(error, text)]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        hint = "remove it, or write it as an escape in double quotes"
        problem = Problem(Position(line, column), (), "has a character that YAML does not allow", hint)
        raise InvalidConfig(file, [problem]) from None
    except RecursionError:
        raise InvalidConfig(file, [Problem(TOP, (), "is nested too deeply")]) from None
    document = Document(
        file, None, text, Outside(environ, directory, contents or {}), allows=allows_of(text, _Loader)
    )
    if node is None:
        raise InvalidConfig(file, [Problem(TOP, (), "is empty", "bridge init writes one to start from")])
    builder = _Builder(document)
    try:
        document.tree = builder.build(node, ())
    except RecursionError:
        raise InvalidConfig(file, [Problem(TOP, (), "is nested too deeply")]) from None
    return document


class _Builder:
    """Nodes to values. Errors are collected in the document, so that one run finds all of them."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()  # nodes being built: a node in this set contains itself
        self.count = 0

    def build(self, node: Node, path: KeyPath) -> Any:
        self.document.values[path] = _position(node.start_mark)
        self.count += 1
        if self.count > _NODES_MAX:
            if self.count == _NODES_MAX + 1:
                self.document.problem(path, "the file is too large after its aliases are expanded")
            return None
        if id(node) in self.open:
            self.document.problem(path, "an alias that contains itself")
            return None
        if node.tag not in _TAGS and node.tag != _PLAIN:
            self.document.problem(path, "tags are not allowed", "remove the !, or quote the text")
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self.open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            assert isinstance(node, MappingNode)  # noqa: S101  # YAML has no fourth kind; for mypy
            return self.mapping(node, path)
        finally:
            self.open.discard(id(node))

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key_node, value_node in node.value:
            position = _position(key_node.start_mark)
            if not isinstance(key_node, ScalarNode):
                hint = "a value with {{ }} needs quotes around it"
                self.document.problems.append(Problem(position, path, "a key must be text", hint))
                continue
            key = key_node.value
            if key == _MERGE and key_node.tag == _PLAIN:
                self.merge(value_node, path, merged)
                continue
            if key in own:
                first = self.document.keys[(*path, key)]
                message = f"occurs twice in this mapping (first in line {first.line})"
                self.document.problems.append(Problem(position, (*path, key), message, "keep one"))
                continue
            own[key] = value_node
            self.document.keys[(*path, key)] = position
        for key, value_node in {**merged, **own}.items():
            result[key] = self.build(value_node, (*path, key))
        return result

    def merge(self, node: Node, path: KeyPath, into: dict[str, Node]) -> None:
        """`<<: *defaults`: keys not given here, the first source winning (YAML 1.1 merge key)."""
        sources = node.value if isinstance(node, SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, MappingNode):
                position = _position(node.start_mark)
                self.document.problems.append(Problem(position, (*path, _MERGE), "must name a mapping"))
                return
            for key_node, value_node in source.value:
                if isinstance(key_node, ScalarNode) and key_node.value not in into:
                    into[key_node.value] = value_node
                    self.document.keys.setdefault((*path, key_node.value), _position(key_node.start_mark))

    def scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        text: str = node.value
        if node.tag == _PLAIN:
            if text in _WORDS:
                return _WORDS[text]
            if text in _LOOKALIKES:
                self.document.problem(
                    path, f"{text} is ambiguous: a word or text", f"write {text.lower()}, or quote it"
                )
                return None
            if _NUMBER.fullmatch(text):
                return _number(text)
        return self.substituted(text, path) if "${" in text else text

    def substituted(self, text: str, path: KeyPath) -> str:
        put: dict[str, str] = {}
        try:
            value = substitute(text, self.document.outside, put)
        except Unset as unset:
            self.document.unset.append((path, str(unset)))
            return text
        except BadReference as error:
            self.document.problem(path, str(error))
            return text
        if value != text:
            self.document.substituted[path] = put
        if in_files(text):
            self.document.in_files[path] = text
        return value


def _number(text: str) -> int | float | Decimal:
    """An integer, or the float that means exactly this decimal, or else the Decimal."""
    if not set(text) & set(".eE"):
        return int(text)
    exact = Decimal(text)
    near = float(text)
    return near if Decimal(repr(near)) == exact else exact


def _position(mark: Mark) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _syntax(error: MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    position = _position(mark) if mark else TOP
    line = text.splitlines()[position.line - 1] if position.line <= len(text.splitlines()) else ""
    hint = ""
    if line[max(position.column - 2, 0) :].startswith("${") or line[position.column - 1 :].startswith("${"):
        hint = "inside { } and [ ], quote a value that has ${...}"
    elif "got '?'" in (error.problem or ""):
        hint = "inside { } and [ ], quote a text that has a question mark"
    elif "\t" in line[: position.column]:
        hint = "indent with spaces, not tabs"
    elif "expected <block end>" in (error.problem or "") and error.context_mark is not None:
        block = error.context_mark
        hint = (
            f"indent it as the keys beside it: it begins in column {position.column}, where no block does;"
            f" the one around it begins in column {block.column + 1} (line {block.line + 1})"
        )
    elif "mapping values are not allowed" in (error.problem or "") and _KEY.fullmatch(
        line[: position.column - 1]
    ):
        hint = "indent it as the line before it: the value there ends with its line"
    elif "mapping values are not allowed" in (error.problem or ""):
        hint = "quote a value that has a colon and a space in it"
    elif line[position.column - 1 :].startswith(("@", "`", "%")):
        hint = "quote a value that starts with this character"
    return Problem(position, (), f"is not YAML: {error.problem or error.context}", hint)
