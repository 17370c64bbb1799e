"""Makes the connection strings, and the logins to NATS, that have parts from files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bridge.config.connection import Libpq, PostgresConnection
from bridge.config.document import Document
from bridge.config.from_files import FromFiles
from bridge.config.model import Config
from bridge.config.nats import NatsConnection
from bridge.config.several import source_sections
from bridge.config.substitution import Outside, substitute
from bridge.problem import KeyPath

_LOGIN = ("user", "password", "token")


def follow_files(document: Document, config: Config) -> None:
    """Let each connection string that a file has a part of be read again (by postgres/login.py, once it is refused)."""
    sections: dict[KeyPath, Libpq] = {**source_sections(config)}
    for name, connection in config.connections.items():
        if isinstance(connection, PostgresConnection):
            sections["connections", name] = connection
    for path, section in sections.items():
        texts = {str(at[-1]): text for at, text in document.in_files.items() if at[:-1] == path}
        if texts and section.dsn:
            followed = FromFiles(section.dsn)
            followed.recipe = (
                document.file,
                *map(str, path),
                *(f"{name}={text}" for name, text in texts.items()),
            )
            followed.reread = _reader(document, path, texts)
            section.__dict__["dsn"] = followed  # frozen for everybody else
    for name, connection in config.connections.items():
        if isinstance(connection, NatsConnection):
            _follow_login(document, ("connections", name), connection)


def _follow_login(document: Document, path: KeyPath, connection: NatsConnection) -> None:
    """Let each part of a login to NATS be read again (by bus/client.py, at each login)."""
    for at, text in document.in_files.items():
        key = str(at[-1])
        value = getattr(connection, key, None) if at[:-1] == path and key in _LOGIN else None
        if value is not None:
            followed = FromFiles(value)
            followed.recipe = (document.file, *map(str, at))
            followed.reread = partial(_again, document, text)
            connection.__dict__[key] = followed  # frozen for everybody else


def _again(document: Document, text: str) -> str:
    return substitute(text, Outside(document.outside.environ, document.outside.directory))


def _reader(document: Document, path: KeyPath, texts: dict[str, str]) -> Callable[[], str]:
    tree = document.tree
    for step in path:
        tree = tree[step]
    beside = {name: value for name, value in tree.items() if name in Libpq.model_fields}

    def reread() -> str:
        # Without `contents`: what was handed over may be what the server has refused.
        outside = Outside(document.outside.environ, document.outside.directory)
        fresh = {name: substitute(text, outside) for name, text in texts.items()}
        return Libpq.model_validate({**beside, **fresh}).dsn

    return reread
