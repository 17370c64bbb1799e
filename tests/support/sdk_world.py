"""A real bridge with an ingress for tests that are not Python: `python -m tests.support.sdk_world`.

Prints one line of JSON (url, key, config, source_dsn) when it is ready. Each line on standard input is then a
question; `arrived` is answered with one line: the rows of the target's table, once everything is applied.
It ends with its standard input.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import customer
from tests.support.bridge_process import DEFAULT_CONFIG, BridgeProcess
from tests.support.servers import Database, Servers, create_database
from tests.support.truth import settle

KEY = "sdk-key"


def _database(servers: Servers, kind: str) -> Database:
    server = servers.private(kind)
    customer.make_roles(server)
    database = create_database(server, kind)
    with database.connect() as connection:
        (customer.make_source if kind == "source" else customer.make_target)(connection)
    return database


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until standard input ends."""
    servers = Servers()
    try:
        source, target = _database(servers, "source"), _database(servers, "target")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with tempfile.TemporaryDirectory() as directory:
            config = Path(directory) / "bridge.yaml"
            ingress = f"ingress: {{ listen: 127.0.0.1:{port}, api_keys: [{KEY}], rate_limit: 200 }}\n"
            config.write_text(DEFAULT_CONFIG.read_text() + ingress)
            bridge = BridgeProcess(
                source=source.bridge_dsn, target=target.bridge_dsn, directory=Path(directory), config=config
            )
            try:
                bridge.start().wait_ready()
                url = f"http://127.0.0.1:{port}"
                _say({"url": url, "key": KEY, "config": str(config), "source_dsn": source.bridge_dsn})
                for _ in sys.stdin:
                    settle(source.dsn, target.dsn)
                    rows = target.execute("select payload from events.usage_limits order by occurred_at")
                    _say([row[0] for row in rows])
            finally:
                bridge.close()
    finally:
        servers.close()


if __name__ == "__main__":
    main()
