"""A recipe's parts into a bridge.yaml that exists, as text: the user's comments and order stay.

Apart because it edits: it finds places by the positions of the parsed documents, inserts whole lines, and
gives nothing back unless the result loads.
"""

from __future__ import annotations

from pathlib import Path

from bridge.config.document import Document, parse
from bridge.config.load import build
from bridge.config.problem import InvalidConfig
from bridge.errors import ConfigError

_SECTIONS = ("connections", "events", "pipelines", "tests")


def add_to(text: str, addition: str, file: str) -> str:
    """`text` (a bridge.yaml) with what `addition` (another) has beside it.

    A connection of the same name and type is used as it is. ConfigError: an event or a pipeline of that name
    is there already, a section stands in { } or [ ], or the result would not load.
    """
    new = parse(addition, {}, file="recipe", directory=Path())
    result = text if text.endswith("\n") else text + "\n"
    for section in _SECTIONS:
        here = parse(result, {}, file=file, directory=Path())
        for lines in _parts(here, new, addition.splitlines(), section):
            here = parse(result, {}, file=file, directory=Path())
            result = _insert(result, here, section, lines)
    document = parse(result, {}, file=file, directory=Path())
    build(document, offline=True)
    if document.problems:
        raise InvalidConfig(f"{file} with the recipe", document.problems)
    return result


def _parts(here: Document, new: Document, lines: list[str], section: str) -> list[list[str]]:
    """The lines of each entry of `section` that `here` has not."""
    entries = new.tree.get(section) or {}
    existing = here.tree.get(section) or {}
    if isinstance(entries, list):
        starts = [new.values[(section, index)].line - 1 for index in range(len(entries))]
        return [_block(lines, start) for start in starts]
    parts = []
    for name, value in entries.items():
        if name in existing:
            if section == "connections" and existing[name].get("type") == value.get("type"):
                continue
            place = here.position((section, name), key=True)
            raise ConfigError(
                f"{here.file}:{place.line}:{place.column}: {section}.{name} is there already",
                hint="rename or remove it, or copy what you need from `bridge recipe show`",
            )
        parts.append(_block(lines, new.keys[(section, name)].line - 1))
    return parts


def _block(lines: list[str], start: int) -> list[str]:
    """The line at `start` and those further in below it, without their common indent."""
    indent = _indent(lines[start])
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > indent):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    return [line[indent:] for line in lines[start:end]]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _insert(text: str, here: Document, section: str, part: list[str]) -> str:
    lines = text.splitlines()
    if section not in here.tree:
        body = [f"  {line}" if line else "" for line in part]
        return "\n".join([*lines, "", f"{section}:", *body]) + "\n"
    head = here.keys[(section,)].line - 1
    first = here.values[(section,)].line - 1
    if first == head:
        raise ConfigError(
            f"{here.file}:{head + 1}: `{section}` stands in one line",
            hint="put each entry of it on a line of its own, below the key",
        )
    indent = _indent(lines[first])
    end = first
    for number in range(first, len(lines)):
        line = lines[number]
        if line.strip() and not line.lstrip().startswith("#"):
            if _indent(line) < indent or (indent == 0 and not line.startswith("-") and _indent(line) == 0):
                break
            end = number
    body = [" " * indent + line if line else "" for line in part]
    return "\n".join([*lines[: end + 1], *body, *lines[end + 1 :]]) + "\n"
