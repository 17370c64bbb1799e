"""What `${VAR}`, `${VAR:-default}`, `${VAR:?message}` and `${file:/path}` stand for.

This alone touches secrets: what it reads goes into the value and into no message. An `Outside` remembers which
variables and files were asked for, so that the same configuration can be made again without them: by a command that
has neither (config/original.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
    """The variable or file does not exist on this machine, or the file has nothing in it (yet); it may exist on the
    machine that runs the bridge."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(slots=True)
class Outside:
    """What a configuration takes from the machine it is read on.

    environ: the variables. directory: the base of relative `${file:...}` paths (the configuration's directory).
    contents: of files, by the path as it is written; other files are read. variables, files: what was asked
    for so far, and was there.
    """

    environ: Mapping[str, str]
    directory: Path
    contents: Mapping[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def variable(self, name: str) -> str | None:
        """The value, or None."""
        found = self.environ.get(name)
        if found is not None:
            self.variables[name] = found
        return found

    def file(self, path: str) -> str:
        """The text without its last line break. Raises Unset, also if nothing is in it, or BadReference if it is no
        text."""
        known = self.contents.get(path)
        self.files[path] = found = _read(self.directory / path) if known is None else known
        return found


def in_files(text: str) -> bool:
    """Whether a file has a part of this value."""
    return any(match["file"] for match in _REFERENCE.finditer(text))


def files_away(text: str, directory: Path) -> list[str]:
    """Paths of `${file:...}` references in this text that cannot be read now, or have nothing in them."""
    outside = Outside({}, directory)
    away = []
    for match in _REFERENCE.finditer(text):
        try:
            if match["file"]:
                outside.file(match["file"])
        except Unset as unset:
            away.append(unset.name)
    return away


def substitute(text: str, outside: Outside, put: dict[str, str] | None = None) -> str:
    """`text` with every reference replaced; replacements are not substituted again.

    put: takes each replacement, with its reference. Trailing line breaks of a file are removed. An empty variable
    counts as unset for `:-` and `:?`, as in a shell.
    Raises Unset for a missing variable or file, BadReference for an invalid reference.
    """

    def value(match: re.Match[str]) -> str:
        if match["broken"]:
            raise BadReference(
                "has a ${ that is not a reference: write ${NAME}, ${NAME:-default}, ${file:/path}"
            )
        if match["file"]:
            return outside.file(match["file"])
        name = match["name"]
        if name is None:
            return match[0]
        rest = match["rest"] or ""
        if "${" in rest:
            raise BadReference(f"${{{name}:...}} contains another reference: references do not nest")
        found = outside.variable(name)
        if match["how"] and not found:
            if match["how"] == "-":
                return rest
            raise Unset(name, f"{name} is not set: {rest or 'it is required'}")
        if found is None:
            fix = f"set it in the environment, or write ${{{name}:-default}}"
            raise Unset(name, f"{name} is not set: {fix}")
        return found

    def told(match: re.Match[str]) -> str:
        replacement = value(match)
        if put is not None and replacement:
            put[replacement] = match[0]
        return replacement

    return _REFERENCE.sub(told, text)


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
    text = text.rstrip("\r\n")
    if not text:  # it is being written, and what is made with no secret would be refused, or answered 404
        raise Unset(str(path), f"{path} is empty")
    return text
