"""The real ingress on a real socket, in a thread of the test's process; and a client that says little."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.config.load import load
from bridge.errors import BridgeError
from bridge.ingress.app import Ingress
from bridge.ingress.settings import settings_of
from bridge.observe.listen import bind
from bridge.serving import serve_ingress

KEY = "key-of-the-tests"
INSTANCE = "1-00000000000000ab"
EVENT = {"customer_id": "cus_1", "metric": "api-calls", "limit": 100000, "used": 95210, "plan": "pro"}
CONFIG = """
version: 1
source: { dsn: "${SOURCE_DSN}" }
events:
  usage.limit_reached:
    customer_id: string
    metric: { enum: [seats, api-calls, storage] }
    limit: number
    used: number
    plan: string
ingress:
  listen: 127.0.0.1:0
  api_keys: ["${KEY}", second-key]
"""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class IngressServer:
    """`with IngressServer(dsn, config_text, directory) as ingress: ingress.post(...)`"""

    dsn: str
    directory: Path
    text: str = CONFIG
    connections: int = 200
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    troubles: list[BridgeError] = field(default_factory=list)
    healthy: bool = False
    port: int = 0

    def config(self, text: str) -> Any:
        path = self.directory / "bridge.yaml"
        path.write_text(text)
        return settings_of(load(path, {"SOURCE_DSN": self.dsn, "KEY": KEY}))

    def __enter__(self) -> IngressServer:
        settings = self.config(self.text)
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(settings, started)))
        self._thread.start()
        assert started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self, settings: Any, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()

        def count(endpoint: str, code: int) -> None:
            self.counts[endpoint, code] += 1

        def failed(_: str, error: BridgeError) -> None:
            self.troubles.append(error)
            self.healthy = False

        def works(_: str) -> None:
            self.healthy = True

        self.ingress = Ingress(settings, {"source": self.dsn}, count=count, failed=failed, works=works)
        listening = bind("127.0.0.1", 0, "ingress.listen")
        self.port = listening.getsockname()[1]
        started.set()
        await serve_ingress(self.ingress, listening, self._stop, self.connections, instance=INSTANCE)

    def reload(self, text: str) -> None:
        self.ingress.reload(self.config(text))

    def post(
        self,
        path: str,
        body: bytes | Mapping[str, Any],
        *,
        key: str | None = KEY,
        method: str = "POST",
        **headers: str,
    ) -> Answer:
        """One request on a connection of its own. Header names with _ for -."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        return request(self.port, method, path, content, sent)

    def event(self, body: bytes | Mapping[str, Any] = EVENT, **more: Any) -> Answer:
        return self.post("/v1/events/usage.limit_reached", body, **more)


def request(
    port: int, method: str, path: str, body: bytes | Iterable[bytes], headers: Mapping[str, str]
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()
