"""PgBouncer in front of a server, as a customer runs it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bridge.demo.binaries import server_identity
from tests.support.debian import tool
from tests.support.servers import free_port


class PgBouncer:
    """One pooler; `dsn(...)` leads through it. Ends with close()."""

    def __init__(self, directory: Path, server: str, mode: str, **settings: Any) -> None:
        """server: a DSN whose host and port it forwards to. mode: session, transaction or statement."""
        identity = server_identity()  # it refuses root
        program, environment = tool(
            "pgbouncer", "pgbouncer", "libevent-2.1-7", "libc-ares2", identity=identity
        )
        known = conninfo_to_dict(server)
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        users = directory / "users.txt"
        users.write_text("".join(f'"{name}" ""\n' for name in ("postgres", "outbox_bridge", "app")))
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "pool_mode": mode,
            "default_pool_size": 20,
            "max_client_conn": 200,
            **settings,
        }
        config = directory / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={known['host']} port={known['port']}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        for path in (directory, users, config):
            identity.own(path)
        self.log = directory / "pgbouncer.log"
        arguments = identity.popen(Path("/")) | {"env": environment}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([program, str(config)], stdout=log, stderr=log, **arguments)
        self._wait(self.dsn(server))

    def dsn(self, server: str) -> str:
        """The same database and user, through the pooler."""
        return make_conninfo(server, host="127.0.0.1", port=self.port)

    def _wait(self, dsn: str) -> None:
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(dsn, connect_timeout=2).close()
                return
            assert time.monotonic() < end, self.log.read_text()
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
