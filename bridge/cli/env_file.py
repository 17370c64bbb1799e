"""`--env-file`: variables from a file as systemd's EnvironmentFile and Docker's env-file have it."""

from __future__ import annotations

import os
from pathlib import Path

import rich_click as click


def use_env_file(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Set the variables of the file for this process; they go before those of the shell. Raises a usage error."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except PermissionError:
        raise click.BadParameter(f"{path} cannot be read by this user: run the command with sudo") from None
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise click.BadParameter(f"{path} cannot be read: {said}") from None
    os.environ.update(variables(text))
    return path


def variables(text: str) -> dict[str, str]:
    """NAME=VALUE lines; `export` before it, and quotes around the value, are removed. Lines that begin with # or ; are
    comments (systemd.exec(5), EnvironmentFile=). Nothing in a value is substituted. Raises a usage error, without
    values."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.replace("\\\n", "").splitlines(), 1):
        words = line.strip()
        if not words or words[0] in "#;":
            continue
        name, equals, value = words.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"line {number} is not NAME=VALUE")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            quote, value = value[0], value[1:-1]
            if quote == '"':
                for letter in '"$`\\':
                    value = value.replace(f"\\{letter}", letter)
        if "\0" in value:
            raise click.BadParameter(f"line {number} has a NUL, which no variable can have")
        found[name] = value
    return found
