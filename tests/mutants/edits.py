"""Edits on the syntax tree: find one place in the code by what it says, and make it say something else.

A place is found anywhere in bridge/, by its shape: not by a file, a line or a layout. So an edit outlives a formatter,
a module that moves, and a local variable that is renamed. One that fits no place, or two, is an error.

`Code(find, put)`: Python. `$NAME` stands for any expression, the same one wherever it stands again; `...` for any
further arguments, or any statements; `**$NAME` in a dict for its other entries. `Sql(find, put)`: a part of a string,
whatever its white space; `{}` stands for what an f-string interpolates.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

_WORD = re.compile(r"\w+")
Holes = dict[str, ast.expr]
_HOLE = "HOLE_"


class NotOnePlace(LookupError):
    """An edit fits no place, or more than one."""


class Module:
    """A module's syntax tree."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree

    @cached_property
    def words(self) -> frozenset[str]:
        return _words(self.tree)


Modules = Mapping[str, Module]  # by path


class Edit(Protocol):
    """Changes one place."""

    def places(self, modules: Modules) -> list[Place]: ...


@dataclass(frozen=True, slots=True)
class Place:
    """path: the module's; line: where; changed: the module with the edit in it."""

    path: str
    line: int
    changed: ast.Module


def read_modules(root: Path) -> dict[str, Module]:
    """bridge/ below this directory."""
    return {
        str(path.relative_to(root)): Module(ast.parse(path.read_text()))
        for path in sorted((root / "bridge").rglob("*.py"))
    }


def apply(edit: Edit, modules: Modules) -> dict[str, Module]:
    """The modules with this edit. Raises NotOnePlace."""
    places = edit.places(modules)
    if len(places) != 1:
        found = ", ".join(f"{place.path}:{place.line}" for place in places) or "nowhere"
        raise NotOnePlace(f"wanted in one place, found {found}: {edit}")
    return {**modules, places[0].path: Module(places[0].changed)}


# --- Python -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Code:
    """Replace an expression or, where either text is no expression, a run of statements.

    inside: the name of a function or class (`Decoder`, `Decoder.feed`), of which the code has one; None: anywhere.
    given: an expression that stands there too; it says what its holes are, for `put`.
    """

    find: str
    put: str
    inside: str | None = None
    given: str | None = None

    def places(self, modules: Modules) -> list[Place]:
        if self.inside is None:
            words = _words(_parse(self.find))
            within: dict[str, ast.AST] = {
                path: one.tree for path, one in modules.items() if words <= one.words
            }
        else:
            within = dict([_definition(modules, self.inside)])
        search = (
            self._expressions if _is_expression(self.find) and _is_expression(self.put) else self._statements
        )
        return [
            Place(path, line, _replaced(modules[path].tree, old, new))
            for path, root in within.items()
            for line, old, new in search(root)
        ]

    def _expressions(self, root: ast.AST) -> Iterator[tuple[int, ast.AST, ast.AST]]:
        pattern, put = _expression(_parse(self.find)), _expression(_parse(self.put))
        for node in _walk(root):
            for holes in self._holes(_match(pattern, node, {}), root):
                yield _line(node), node, _filled(put, holes)

    def _statements(self, root: ast.AST) -> Iterator[tuple[int, ast.AST, ast.AST]]:
        """The node that holds the statements is replaced by one that holds others."""
        pattern, put = _parse(self.find).body, _parse(self.put).body
        for node in _walk(root):
            for name, body in ast.iter_fields(node):
                if not (isinstance(body, list) and body and isinstance(body[0], ast.stmt)):
                    continue
                for at in range(len(body)):
                    end = at + len(pattern)
                    for holes in self._holes(_match_all(pattern, body[at:end], {}), root):
                        new = copy.copy(node)
                        setattr(new, name, [*body[:at], *(_filled(one, holes) for one in put), *body[end:]])
                        yield _line(body[at]), node, new

    def _holes(self, found: Holes | None, root: ast.AST) -> list[Holes]:
        """What the holes are, those of `given` too: one way, none, or several."""
        if found is None or self.given is None:
            return [] if found is None else [found]
        pattern = _expression(_parse(self.given))
        ways = [way for node in _walk(root) if (way := _match(pattern, node, found)) is not None]
        return list({ast.dump(ast.Tuple(list(way.values()))): way for way in ways}.values())


def _words(tree: ast.AST) -> frozenset[str]:
    """All words of its names and constants, but for holes. A pattern can only stand where all of its words do."""
    values = (value for node in ast.walk(tree) for value in vars(node).values())
    texts = (value.decode(errors="replace") if isinstance(value, bytes) else value for value in values)
    words = (word for text in texts if isinstance(text, str) for word in _WORD.findall(text))
    return frozenset(word for word in words if not word.startswith(_HOLE))


def _definition(modules: Modules, name: str) -> tuple[str, ast.AST]:
    found = [
        (path, node)
        for path, module in modules.items()
        for qualified, node in _definitions(module.tree)
        if f".{qualified}".endswith(f".{name}")
    ]
    if len(found) != 1:
        raise NotOnePlace(f"{name} is defined in {[path for path, _ in found] or 'no module'}")
    return found[0]


def _definitions(node: ast.AST, above: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield above + child.name, child
            yield from _definitions(child, f"{above}{child.name}.")
        else:
            yield from _definitions(child, above)


def _parse(text: str) -> ast.Module:
    return ast.parse(re.sub(r"\$(?=[A-Z])", _HOLE, text))


def _is_expression(text: str) -> bool:
    body = _parse(text).body
    return len(body) == 1 and isinstance(body[0], ast.Expr)


def _expression(module: ast.Module) -> ast.expr:
    [statement] = module.body
    assert isinstance(statement, ast.Expr)
    return statement.value


def _match(pattern: ast.AST, node: ast.AST, bound: Holes) -> Holes | None:
    """What the holes of the pattern are, where this node fits it."""
    if isinstance(pattern, ast.Name) and pattern.id.startswith(_HOLE):
        if not isinstance(node, ast.expr):
            return None
        before = bound.get(pattern.id)
        same = before is None or ast.unparse(before) == ast.unparse(node)
        return {**bound, pattern.id: node} if same else None
    if isinstance(pattern, ast.Call) and isinstance(node, ast.Call) and any(map(_is_more, pattern.args)):
        given = [argument for argument in pattern.args if not _is_more(argument)]
        return _match_all([pattern.func, *given], [node.func, *node.args[: len(given)]], bound)
    if isinstance(pattern, ast.Dict) and isinstance(node, ast.Dict) and None in pattern.keys:
        return _match_entries(pattern, node, bound)
    return _match_fields(pattern, node, bound) if type(pattern) is type(node) else None


def _match_fields(pattern: ast.AST, node: ast.AST, bound: Holes) -> Holes | None:
    found: Holes | None = bound
    for field, wanted in ast.iter_fields(pattern):
        here = getattr(node, field)
        if found is None or field in ("ctx", "type_comment", "kind"):
            continue
        if isinstance(wanted, list):
            found = _match_all(wanted, here, found)
        elif isinstance(wanted, ast.AST):
            found = _match(wanted, here, found) if isinstance(here, ast.AST) else None
        elif wanted != here or type(wanted) is not type(here):
            found = None
    return found


def _match_entries(pattern: ast.Dict, node: ast.Dict, bound: Holes) -> Holes | None:
    """Some entries, wherever they stand in the dict; its other entries are what `**$NAME` stands for."""
    rest = list(zip(node.keys, node.values, strict=True))
    found: Holes | None = bound
    for key, value in zip(pattern.keys, pattern.values, strict=True):
        if key is None:
            continue
        for entry in rest:
            more = _match_all([key, value], list(entry), found) if found is not None else None
            if more is not None:
                found = more
                rest.remove(entry)
                break
        else:
            return None
    [hole] = [value for key, value in zip(pattern.keys, pattern.values, strict=True) if key is None]
    others = ast.Dict([key for key, _ in rest], [value for _, value in rest])
    return found if found is None else _match(hole, others, found)


def _match_all(patterns: Sequence[ast.AST], nodes: Sequence[ast.AST | None], bound: Holes) -> Holes | None:
    if len(patterns) == 1 and isinstance(patterns[0], ast.Expr) and _is_more(patterns[0].value):
        return bound
    if len(patterns) != len(nodes):
        return None
    found: Holes | None = bound
    for pattern, node in zip(patterns, nodes, strict=True):
        found = None if found is None or node is None else _match(pattern, node, found)
    return found


def _is_more(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


class _Fill(ast.NodeTransformer):
    def __init__(self, bound: Holes) -> None:
        self._bound = bound

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return copy.deepcopy(self._bound[node.id]) if node.id.startswith(_HOLE) else node


def _filled(tree: ast.AST, bound: Holes) -> ast.AST:
    filled: ast.AST = _Fill(bound).visit(copy.deepcopy(tree))
    return filled


class _Replace(ast.NodeTransformer):
    """Replace one node, by identity; what is above it is copied."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def generic_visit(self, node: ast.AST) -> ast.AST:
        made = copy.copy(node)
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(made, field, [self.visit(one) if isinstance(one, ast.AST) else one for one in value])
            elif isinstance(value, ast.AST):
                setattr(made, field, self.visit(value))
        return made

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


def _replaced(module: ast.Module, old: ast.AST, new: ast.AST) -> ast.Module:
    changed = _Replace(old, new).visit(module)
    assert isinstance(changed, ast.Module)
    return changed


def _walk(root: ast.AST) -> Iterator[ast.AST]:
    """Every node but docstrings, in order."""
    yield root
    for field, value in ast.iter_fields(root):
        children = value if isinstance(value, list) else [value]
        for n, child in enumerate(children):
            if isinstance(child, ast.AST) and not (field == "body" and n == 0 and _is_docstring(child)):
                yield from _walk(child)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


# --- SQL ----------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\{\}|\w+|[^\w\s]")
_PUT = "\0{}\0"  # an interpolation, by its number


@dataclass(frozen=True, slots=True)
class Sql:
    """Replace a part of one string: str, bytes or f-string."""

    find: str
    put: str

    def places(self, modules: Modules) -> list[Place]:
        pattern, words = self._pattern(), frozenset(_WORD.findall(self.find))
        found = []
        for path, module in modules.items():
            if not words <= module.words:
                continue
            for node, text, holes in _texts(module.tree):
                for match in pattern.finditer(text):
                    put = self.put
                    for captured in match.groups():
                        put = put.replace("{}", captured, 1)
                    changed = text[: match.start()] + put + text[match.end() :]
                    new = _string(node, changed, holes)
                    found.append(Place(path, _line(node), _replaced(module.tree, node, new)))
        return found

    def _pattern(self) -> re.Pattern[str]:
        parts: list[str] = []
        before = ""
        for token in _TOKEN.findall(self.find):
            if before:
                words = before[-1].isalnum() and token[0].isalnum()
                parts.append(r"\s+" if words else r"\s*")
            parts.append(r"(\0\d+\0)" if token == "{}" else re.escape(token))
            before = token
        return re.compile("".join(parts))


def _texts(module: ast.Module) -> Iterator[tuple[ast.expr, str, list[ast.FormattedValue]]]:
    """Every string: as text, in which interpolations have numbers."""
    parts = {id(part) for node in _walk(module) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in _walk(module):
        if isinstance(node, ast.JoinedStr):
            holes = [value for value in node.values if isinstance(value, ast.FormattedValue)]
            numbers = iter(range(len(holes)))
            text = "".join(
                str(value.value) if isinstance(value, ast.Constant) else _PUT.format(next(numbers))
                for value in node.values
            )
            yield node, text, holes
        elif isinstance(node, ast.Constant) and id(node) not in parts:
            if isinstance(node.value, str):
                yield node, node.value, []
            elif isinstance(node.value, bytes):
                yield node, node.value.decode(errors="surrogateescape"), []


def _string(like: ast.expr, text: str, holes: list[ast.FormattedValue]) -> ast.expr:
    if isinstance(like, ast.JoinedStr):
        pieces = re.split("\0(\\d+)\0", text)
        values: list[ast.expr] = []
        for n, piece in enumerate(pieces):
            values.append(holes[int(piece)] if n % 2 else ast.Constant(piece))
        return ast.JoinedStr(values)
    assert isinstance(like, ast.Constant)
    return ast.Constant(text if isinstance(like.value, str) else text.encode(errors="surrogateescape"))
