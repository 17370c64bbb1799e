"""`${VAR}`, `${VAR:-default}`, `${VAR:?message}` and `${file:/path}` in one text.

Apart because it alone touches secrets: what it reads goes into the value and into no message.
`$event.x`, `$$` and `${{ ... }}` (a dollar before a template) are none of its business and stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    """A reference that cannot be read, or names what is not there. The text holds no values."""


class Unset(BadReference):
    """The variable or file is not there on this machine; it may be on the one that runs the bridge."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def substitute(text: str, environ: Mapping[str, str], directory: Path) -> str:
    """`text` with every reference replaced. What comes in is not looked at again.

    directory: where relative `${file:...}` paths start (the configuration's own). A file loses its trailing
    line breaks. An empty variable counts as unset for `:-` and `:?`, as in a shell.
    Raises Unset for what is not there, BadReference for what cannot be read.
    """

    def value(match: re.Match[str]) -> str:
        if match["broken"]:
            raise BadReference(
                "has a ${ that is no reference: write ${NAME}, ${NAME:-default}, ${file:/path}"
            )
        if match["file"]:
            return _read(directory / match["file"])
        name = match["name"]
        if name is None:
            return match[0]
        rest = match["rest"] or ""
        if "${" in rest:
            raise BadReference(f"${{{name}:...}} holds another reference: references do not nest")
        found = environ.get(name)
        if match["how"] and not found:
            if match["how"] == "-":
                return rest
            raise Unset(name, f"{name} is not set: {rest or 'it is required'}")
        if found is None:
            mend = f"set it in the environment, or write ${{{name}:-default}}"
            raise Unset(name, f"{name} is not set: {mend}")
        return found

    return _REFERENCE.sub(value, text)


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
        raise BadReference(f"{path} is no secret of one MiB or less")
    return text.rstrip("\r\n")
