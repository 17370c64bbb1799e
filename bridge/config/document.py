"""YAML text to plain values, each with its line and column, with `${VAR}` and `${file:/path}` substituted.

This settles what YAML leaves to surprise, before any model sees a value: numbers are what JSON calls numbers,
`true`, `false` and `null` are the only words, everything else (`on`, `no`, `012`, `12:30`, `2027-03-01`) is the text
it looks like; `True`, `NULL` and their like are refused. No tag constructs anything. A key stands once in a mapping.
Substitution (`${VAR}`, `${VAR:-default}`, `${VAR:?message}`, `${file:/path}`) alone touches secrets: what it reads
goes into the value and into no message.
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

from bridge.config.outside import Outside
from bridge.problem import TOP, InvalidConfig, KeyPath, Position, Problem

_REFERENCE = re.compile(
    r"""\$\$                                                  # a literal dollar: left for the value's reader
      | \$\{(?=\{)                                            # a dollar, then a template
      | \$\{file:(?P<file>[^{}]+)\}
      | \$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<how>[-?])(?P<rest>[^}]*))?\}
      | (?P<broken>\$\{)
    """,
    re.VERBOSE | re.DOTALL,
)
_FILE_MAX = 1 << 20  # bytes; a secret is a line, not a disk


class BadReference(ValueError):
    """A reference that cannot be parsed or resolved. The text contains no values."""


class Unset(BadReference):
    """The variable or file does not exist on this machine; it may exist on the machine that runs the bridge."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def substitute(text: str, environ: Mapping[str, str], directory: Path) -> str:
    """`text` with every reference replaced; replacements are not substituted again.

    directory: the base of relative `${file:...}` paths (the configuration's directory). Trailing line breaks of a
    file are removed. An empty variable counts as unset for `:-` and `:?`, as in a shell. Raises Unset for a missing
    variable or file, BadReference for an invalid reference.
    """

    def value(match: re.Match[str]) -> str:
        if match["broken"]:
            raise BadReference(
                "has a ${ that is not a reference: write ${NAME}, ${NAME:-default}, ${file:/path}"
            )
        if match["file"]:
            if isinstance(environ, Outside):
                return environ.file(match["file"], _read)
            return _read(directory / match["file"])
        name = match["name"]
        if name is None:
            return match[0]
        rest = match["rest"] or ""
        if "${" in rest:
            raise BadReference(f"${{{name}:...}} contains another reference: references do not nest")
        found = environ.get(name)
        if match["how"] and not found:
            if match["how"] == "-":
                return rest
            raise Unset(name, f"{name} is not set: {rest or 'it is required'}")
        if found is None:
            fix = f"set it in the environment, or write ${{{name}:-default}}"
            raise Unset(name, f"{name} is not set: {fix}")
        return found

    return _REFERENCE.sub(value, text)


def in_files(text: str) -> bool:
    """Whether a file has a part of this value."""
    return any(match["file"] for match in _REFERENCE.finditer(text))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_MAX + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise Unset(str(path), f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadReference(f"{path} is not UTF-8 text") from None
    if len(content) > _FILE_MAX or "\0" in text:
        raise BadReference(f"{path} is not a file of at most one MiB")
    return text.rstrip("\r\n")


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
    text came from a variable or file and must not be shown. unset: (path, message) of each reference without a value
    here; their texts stay as written.
    """

    file: str
    tree: Any = None
    values: dict[KeyPath, Position] = field(default_factory=dict)
    keys: dict[KeyPath, Position] = field(default_factory=dict)
    substituted: set[KeyPath] = field(default_factory=set)
    unset: list[tuple[KeyPath, str]] = field(default_factory=list)
    in_files: dict[KeyPath, str] = field(default_factory=dict)
    """The text of each value that a file has a part of, as written."""
    text: str = ""
    outside: Outside = field(default_factory=lambda: Outside({}, Path()))
    """What all of it was made of."""
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

    def problem(self, path: KeyPath, message: str, hint: str = "", *, key: bool = False) -> None:
        """Record an error at `path`."""
        self.problems.append(Problem(self.position(path, key=key), path, message, hint))


def read(path: Path, environ: Mapping[str, str]) -> Document:
    """The file as a Document. Raises InvalidConfig if it cannot be opened or is not YAML."""
    try:
        content = path.read_bytes()
    except OSError as error:
        failure = Problem(TOP, (), f"cannot be read: {error.strerror}", "bridge init writes a new one")
        raise InvalidConfig(str(path), [failure], unreadable=True) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise InvalidConfig(str(path), [Problem(Position(line, column), (), "is not UTF-8 text")]) from None
    outside = Outside(environ, path.parent)
    document = parse(text, outside, file=str(path), directory=path.parent)
    document.text, document.outside = text, outside
    return document


def parse(text: str, environ: Mapping[str, str], *, file: str, directory: Path) -> Document:
    """Like `read`, from text. directory: the base of relative `${file:...}` paths."""
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
    document = Document(file)
    if node is None:
        raise InvalidConfig(file, [Problem(TOP, (), "is empty", "bridge init writes one to start from")])
    builder = _Builder(document, environ, directory)
    try:
        document.tree = builder.build(node, ())
    except RecursionError:
        raise InvalidConfig(file, [Problem(TOP, (), "is nested too deeply")]) from None
    return document


class _Builder:
    """Nodes to values. Errors are collected in the document, so that one run finds all of them."""

    def __init__(self, document: Document, environ: Mapping[str, str], directory: Path) -> None:
        self.document = document
        self.environ = environ
        self.directory = directory
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
        try:
            value = substitute(text, self.environ, self.directory)
        except Unset as unset:
            self.document.unset.append((path, str(unset)))
            return text
        except BadReference as error:
            self.document.problem(path, str(error))
            return text
        if in_files(text):
            self.document.in_files[path] = text
        if value != text:
            self.document.substituted.add(path)
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
    elif "mapping values are not allowed" in (error.problem or ""):
        hint = "quote a value that has a colon and a space in it"
    elif line[position.column - 1 :].startswith(("@", "`", "%")):
        hint = "quote a value that starts with this character"
    return Problem(position, (), f"is not YAML: {error.problem or error.context}", hint)
