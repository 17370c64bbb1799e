"""A recipe's parts into a bridge.yaml that exists, as text: the user's comments and order stay.

Apart because it edits: it finds places by the positions of the parsed documents, inserts whole lines, and
gives nothing back unless the result loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bridge.config.document import Document, parse
from bridge.config.load import build
from bridge.config.problem import InvalidConfig
from bridge.errors import ConfigError

_SECTIONS = ("connections", "events", "pipelines", "tests")


def add_to(text: str, addition: str, file: str, environ: Mapping[str, str]) -> str:
    """`text` (a bridge.yaml) with what `addition` (another) has beside it; its variables stay as written.

    environ: for the look at the result, which a variable may decide (`listen: ${ADDRESS}`). A connection of the
    same name and type is used as it is. ConfigError: an event or a pipeline of that name is there already, a
    section stands in { } or [ ], or the result would not load.
    """
    new = parse(addition, {}, file="recipe", directory=Path())
    here = parse(text, {}, file=file, directory=Path())
    lines = text.splitlines()
    end: list[str] = []
    inserts: list[tuple[int, list[str]]] = []
    for section in _SECTIONS:
        part = [line for each in _parts(here, new, addition.splitlines(), section) for line in each]
        if part and section not in here.tree:
            end += ["", f"{section}:", *_indented(part, 2)]
        elif part:
            inserts.append(_place(lines, here, section, part))
    for after, part in sorted(inserts, reverse=True):  # from below, so that the places above stay right
        lines[after:after] = part
    result = "\n".join([*lines, *end]) + "\n"
    document = parse(result, environ, file=file, directory=Path(file).parent)
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


def _indented(part: list[str], indent: int) -> list[str]:
    return [" " * indent + line if line else "" for line in part]


def _place(lines: list[str], here: Document, section: str, part: list[str]) -> tuple[int, list[str]]:
    """Before which line `part` goes, at the end of its section, and `part` as far in as its neighbours."""
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
    return end + 1, _indented(part, indent)
