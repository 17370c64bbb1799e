"""A refused login is recognized in any language. Logins at servers: tests/security/test_rotation.py."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from bridge.errors import CannotConnect
from bridge.postgres.connect import connect, connect_pq
from bridge.postgres.login import login_of
from bridge.postgres.profiles import COMMAND, STREAM

_NEEDS_PASSWORD = b"R" + struct.pack("!II", 8, 3)  # AuthenticationCleartextPassword
_OPENERS: list[Callable[[str], Any]] = [
    lambda dsn: connect(dsn, COMMAND, "test"),
    lambda dsn: connect_pq(dsn, STREAM, "test", replication="database"),
]


def _refusal(code: str, severity: str, message: str) -> bytes:
    """ErrorResponse, as a server with lc_messages of another language sends it."""
    fields = [f"S{severity}", "VFATAL", f"C{code}", f"M{message}", ""]
    body = b"".join(field.encode() + b"\0" for field in fields)
    return b"E" + struct.pack("!I", len(body) + 4) + body


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[bytes]]]:
    """Refuses with the parameter's bytes, in Postgres's protocol. (dsn, what each connection began with)"""
    asks, answer = request.param
    began: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            while True:
                try:
                    link, _ = listening.accept()
                except OSError:
                    return
                with closing(link):
                    began.append(link.recv(4096))
                    if asks:
                        link.sendall(_NEEDS_PASSWORD)
                        link.recv(4096)
                    link.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        port = listening.getsockname()[1]
        yield (
            f"host=127.0.0.1 port={port} user=u password=p dbname=d sslmode=disable gssencmode=disable",
            began,
        )
        listening.shutdown(socket.SHUT_RDWR)


_WRONG = _refusal("28P01", "SCHWERWIEGEND", "Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen")
_NO_LOGIN = _refusal("28000", "ВАЖНО", 'для роли "u" вход запрещён')
_STARTING = _refusal("57P03", "致命错误", "数据库系统启动中")


@pytest.mark.parametrize("opener", _OPENERS)
@pytest.mark.parametrize("server", [(True, _WRONG), (True, _NO_LOGIN)], indirect=True)
def test_a_refused_login_is_one_for_all_in_every_language(
    server: tuple[str, list[bytes]], opener: Callable[[str], Any]
) -> None:
    dsn, began = server
    said = set()
    for _ in range(20):
        with pytest.raises(CannotConnect) as caught:
            opener(dsn)
        said.add(str(caught.value))
    assert len(began) < 5
    assert len(said) == 1  # the server's words, told to whoever waits


_NO_REPLICATION = _refusal("42501", "SCHWERWIEGEND", "keine Berechtigung, um WAL-Sender zu starten")
_NO_SLOTS = _refusal(
    "53300", "FATAL", 'number of requested standby connections exceeds "max_wal_senders" (currently 0)'
)


@pytest.mark.parametrize("opener", _OPENERS)
@pytest.mark.parametrize(
    "server", [(False, _STARTING), (True, _NO_REPLICATION), (True, _NO_SLOTS)], indirect=True
)
def test_what_is_no_refusal_of_a_login_is_tried_by_each_connection(
    server: tuple[str, list[bytes]], opener: Callable[[str], Any]
) -> None:
    dsn, began = server
    for _ in range(6):
        with pytest.raises(CannotConnect):
            opener(dsn)
    assert len(began) == 6
    assert login_of(dsn).refused is None
