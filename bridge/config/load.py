"""From bridge.yaml to a Config: read, substitute, validate, and report all errors at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bridge.config.destinations.destination import kind_of
from bridge.config.document import Document, parse, read
from bridge.config.model import Config
from bridge.config.names import check_names, connection_kinds
from bridge.config.original import Original
from bridge.config.schema import keys_at
from bridge.problem import InvalidConfig, KeyPath, nearest

_SHAPES = {
    "model_type": "must be a mapping (key: value)",
    "model_attributes_type": "must be a mapping (key: value)",
    "dict_type": "must be a mapping (key: value)",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be text: put quotes around it",
    "int_type": "must be a whole number",
}


def load(path: Path, environ: Mapping[str, str], *, offline: bool = False) -> Config:
    """The configuration in the file at `path`.

    environ: the values of `${VAR}`. offline: a reference to a missing variable or file stays as written, for
    commands that connect to nothing. Raises InvalidConfig (a ConfigError) with every problem.
    """
    return config_of(read(path, environ), offline=offline)


def config_of(document: Document, *, offline: bool = False) -> Config:
    """The configuration of a document, as load()."""
    config = build(document, offline=offline)
    if config is None or document.problems:
        raise InvalidConfig(document.file, document.problems)
    if document.in_files:
        from bridge.config.dsn import follow_files  # noqa: PLC0415  without secrets in files there are none to follow

        follow_files(document, config)
    outside = document.outside
    config._original = Original(document.file, document.text, outside.variables, outside.files)
    return config


def again(made_of: Original, environ: Mapping[str, str], contents: Mapping[str, str]) -> Config:
    """A configuration from its text. contents: as Outside. Raises as load()."""
    return config_of(document_of(made_of, environ, contents))


def document_of(made_of: Original, environ: Mapping[str, str], contents: Mapping[str, str]) -> Document:
    """The document that a configuration was made of. Raises as document.read()."""
    directory = Path(made_of.file).parent
    return parse(made_of.text, environ, file=made_of.file, directory=directory, contents=contents)


def build(document: Document, *, offline: bool = False) -> Config | None:
    """Models from a document; problems are added to the document. None: there is no Config."""
    if not offline:
        for path, message in document.unset:
            document.problem(path, message)
    for key, value in document.tree.items() if isinstance(document.tree, dict) else ():
        if value is None:
            document.problem((key,), "is empty", "give it a value, or remove the key", key=True)
    broken = {problem.path for problem in document.problems}
    config = None
    try:
        context = {"connections": connection_kinds(document.tree)}
        config = Config.model_validate(document.tree, context=context)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            _report(detail, document, broken)
    for remark in check_names(document.tree):
        shown = "" if remark.key else _shown(document, remark.path)
        document.problem(remark.path, f"{shown}{remark.message}", remark.fix, key=remark.key)
    return config


def _report(detail: ErrorDetails, document: Document, broken: set[KeyPath]) -> None:
    location = detail["loc"]
    about_key = bool(location) and location[-1] == "[key]"
    path = _in_tree(location[:-1] if about_key else location, document.tree)
    if any(path[: len(other)] == other for other in broken if other):
        return  # already reported: it could not be read
    kind, context = detail["type"], detail.get("ctx", {})
    unset = dict(document.unset).get(path)
    if unset is not None:
        document.problem(path, unset, "the file cannot be checked without its value")
        return
    if kind == "missing":
        document.problem(path, f"`{location[-1]}` is missing", key=True)
    elif kind == "extra_forbidden":
        known = _keys_of_destination(document, path[:-1]) or keys_at(path[:-1])
        hint = nearest(str(location[-1]), known) or (f"known: {', '.join(sorted(known))}" if known else "")
        document.problem(path, "unknown key", hint, key=True)
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'|(\d+)", context.get("expected", ""))
        words = [text or number for text, number in choices]
        if path[:1] == ("connections",) and path[-1] == "type":
            words.insert(0, "postgres")
        value = document_value(document.tree, path)
        hint = nearest(value, words) if isinstance(value, str) and path not in document.substituted else ""
        document.problem(path, f"{_shown(document, path)}must be {' or '.join(words)}", hint)
    elif document_value(document.tree, path) is None and not kind.startswith("value_error"):
        document.problem(path, "is empty", "give it a value, or remove the key")
    elif kind == "value_error":
        document.problem(path, str(context["error"]), key=about_key)
    elif kind in _SHAPES:
        document.problem(path, _SHAPES[kind])
    else:
        document.problem(path, detail["msg"][0].lower() + detail["msg"][1:])


def _keys_of_destination(document: Document, path: KeyPath) -> set[str]:
    """The keys of the kind of destination that stands there; none where there is no destination."""
    written = document_value(document.tree, path)
    if len(path) != 4 or (path[0], path[2]) != ("pipelines", "destinations") or not isinstance(written, dict):
        return set()
    return set(kind_of(written, connection_kinds(document.tree)).model_fields)


def _shown(document: Document, path: KeyPath) -> str:
    """The text at `path` for a message; omitted if it came from a variable or is long."""
    value = document_value(document.tree, path)
    if isinstance(value, str) and len(value) <= 60 and path not in document.substituted:
        return f"`{value}` "
    return ""


def document_value(tree: Any, path: KeyPath) -> Any:
    """The value at `path`, or None."""
    for step in path:
        if not _has(tree, step):
            return None
        tree = tree[step]
    return tree


def _has(tree: Any, step: int | str) -> bool:
    if isinstance(tree, dict):
        return step in tree
    return isinstance(tree, list) and isinstance(step, int) and step < len(tree)


def _in_tree(location: tuple[int | str, ...], tree: Any) -> KeyPath:
    """A model's location as a path of the file, without parts that only the model has (`fields`)."""
    if not location:
        return ()
    step, rest = location[0], location[1:]
    best = (step, *_in_tree(rest, tree[step])) if _has(tree, step) else ()
    skipped = _in_tree(rest, tree) if len(best) < len(rest) else ()
    return skipped if len(skipped) > len(best) else best
