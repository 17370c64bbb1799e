"""A proxy that speaks TLS to a client and plain to a server, and packs what it forwards into full records.

PostgreSQL up to 16 sends records of 8 KiB at most, which libpq always takes whole. Newer ones, and other
servers of the protocol, send 16 KiB: half of a record can stay inside OpenSSL, where poll() does not see it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from pathlib import Path

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_RECORD = 16384


class RecordProxy:
    """Listens on 127.0.0.1:`port`. Gathers what the server says for a moment, so that records are full."""

    def __init__(self, certificate: Path, key: Path, host: str, port: int) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._server = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self.full_records = 0
        self.pieces: list[int] = []  # of the next answer: so many bytes each, as one record, when asked for
        self._next = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def next_piece(self) -> None:
        """Let the next of `pieces` go."""
        self._next.release()

    def await_next(self) -> None:
        self._next.acquire()

    def close(self) -> None:
        self._next.release(1000)
        for each in [self._listening, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.append(client)
        with contextlib.suppress(OSError, ssl.SSLError):
            if client.recv(8, socket.MSG_WAITALL) != _SSL_REQUEST:
                client.close()  # only TLS comes through here
                return
            client.sendall(b"S")
            server = socket.create_connection(self._server)
            self._open.append(server)
            _Link(self, self._context, client, server).run()


class _Link:
    """One connection. The TLS state is one object for both directions, so a lock guards it; nobody waits in it."""

    def __init__(
        self, proxy: RecordProxy, context: ssl.SSLContext, client: socket.socket, server: socket.socket
    ) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_side=True)
        self._lock = threading.Lock()

    def run(self) -> None:
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                self._send()
                self._arrived.write(self._client.recv(65536))
        self._send()
        threading.Thread(target=self._answers, daemon=True).start()
        self._questions()

    def _send(self) -> None:
        if self._leaving.pending:
            self._client.sendall(self._leaving.read())

    def _questions(self) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while True:
                with self._lock, contextlib.suppress(ssl.SSLWantReadError):
                    while plain := self._tls.read(65536):
                        self._server.sendall(plain)
                data = self._client.recv(65536)
                if not data:
                    break
                with self._lock:
                    self._arrived.write(data)
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def _answers(self) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            self._server.settimeout(None)
            while data := self._server.recv(65536):
                self._server.settimeout(0.005)  # gather: what follows at once belongs into the same record
                with contextlib.suppress(TimeoutError):
                    while len(data) < 4 * _RECORD and (more := self._server.recv(65536)):
                        data += more
                self._server.settimeout(None)
                while self._proxy.pieces:
                    data = self._one_piece(data)
                with self._lock:
                    for at in range(0, len(data), _RECORD):
                        self._tls.write(data[at : at + _RECORD])
                        self._proxy.full_records += len(data) - at >= _RECORD
                    self._send()
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def _one_piece(self, data: bytes) -> bytes:
        """One record of exactly this size; what is left of the answer."""
        size = self._proxy.pieces.pop(0)
        while len(data) < size:
            data += self._server.recv(65536)
        self._proxy.await_next()
        with self._lock:
            self._tls.write(data[:size])
            self._send()
        return data[size:]
