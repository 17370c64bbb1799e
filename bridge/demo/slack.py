"""A Slack to send to: `chat.postMessage` on localhost, which says ok and remembers.

Apart from the world's servers because it is a sink and not a target: what comes twice is no fault of the bridge, what
does not come is one.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Collection
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """id: the Idempotency-Key it came with, the same at every attempt."""

    id: str
    channel: str
    text: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came, for the events that should make a message each."""

    expected: int
    missing: int
    messages: int
    again: int  # messages whose id had come before
    channels: int
    sample: str


class Slack:
    """A workspace that takes one token."""

    def __init__(self) -> None:
        self.token = f"demo-{secrets.token_hex(8)}"
        self._messages: list[Message] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.api_url = f"http://127.0.0.1:{self._server.server_address[1]}/api"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        slack = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                said = slack.answer(self.path, self.headers.get("authorization", ""), body, self.headers)
                answer = json.dumps(said).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                """The demo's screen is not a web server's log."""

        return Handler

    def answer(self, path: str, authorization: str, body: bytes, headers: Any) -> dict[str, Any]:
        """As Slack's Web API: errors in a 200."""
        if path != "/api/chat.postMessage":
            return {"ok": False, "error": "unknown_method"}
        if authorization != f"Bearer {self.token}":
            return {"ok": False, "error": "invalid_auth"}
        said = json.loads(body)
        message = Message(headers.get("idempotency-key", ""), said.get("channel", ""), said.get("text", ""))
        with self._lock:
            self._messages.append(message)
        return {"ok": True}

    @property
    def messages(self) -> list[Message]:
        """Everything that came, in order."""
        with self._lock:
            return list(self._messages)

    def delivered(self, event_ids: Collection[str]) -> Delivered:
        """What came of these events; a message's text ends with its event's id."""
        messages = self.messages
        told = {message.text.rpartition(" ")[2] for message in messages}
        return Delivered(
            expected=len(event_ids),
            missing=len(set(event_ids) - told),
            messages=len(messages),
            again=len(messages) - len({message.id for message in messages}),
            channels=len({message.channel for message in messages}),
            sample=messages[0].text if messages else "",
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
