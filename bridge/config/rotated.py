"""Secrets that change in their files (`${file:...}`) while a configuration is in use.

Databases have a way of their own: their connections keep what works until the server refuses it (postgres/login.py).
For everything else (tokens, signing secrets and passwords of sinks, api_keys and webhook secrets of the ingress), what
stands in the file is valid as soon as it stands there: whoever rotates one issues the new one first.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from bridge.config.connection import PostgresConnection
from bridge.config.load import again
from bridge.config.model import Config
from bridge.config.several import source_sections
from bridge.config.substitution import BadReference, Outside


def rotated(config: Config) -> Config | None:
    """The configuration as the files with its secrets make it now, from the text and variables that it was made of:
    what bridge.yaml says by now is not read. Its databases' connection strings stay, and so does the value of a file
    that is away, or empty, for a moment. None: nothing has changed. Raises ConfigError if it cannot be used."""
    made_of = config.original
    outside = Outside({}, Path(made_of.file).parent)
    contents = dict(made_of.files)
    for name in contents:
        with contextlib.suppress(BadReference):
            contents[name] = outside.file(name)
    if contents == made_of.files:
        return None
    fresh = again(made_of, {**os.environ, **made_of.variables}, contents)
    for name, connection in config.connections.items():
        new = fresh.connections[name]
        if isinstance(connection, PostgresConnection) and isinstance(new, PostgresConnection):
            new.__dict__["dsn"] = connection.dsn  # frozen for everybody else
    new_sources = source_sections(fresh)
    for path, section in source_sections(config).items():
        new_sources[path].__dict__["dsn"] = section.dsn
    return fresh
