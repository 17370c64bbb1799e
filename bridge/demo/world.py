"""The throw-away world around a bridge: two servers, the customer's tables, and a Slack-like receiver.

The customer owns the tables, runs the printed SQL and gives the bridge its role: everything that the product never
does itself. The tests and the benchmark play the same customer (tests/support/world.py, bench/servers.py).
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql

from bridge.config.recipe import source_variable, with_sources
from bridge.demo.process import CONFIG
from bridge.demo.servers import Cluster, Workspace
from bridge.postgres.schema import source_sql, target_sql

WITH_SLACK = CONFIG.with_name("with_slack.yaml")

Connection = psycopg.Connection[tuple[Any, ...]]

CRM = """
create schema crm;
create table crm.customer (
    customer_id text primary key,
    mrr         numeric(12,2) not null,
    csm         text not null,
    renewal     date not null
);
insert into crm.customer
select
    'cus_' || n, (n % 97) * 10 + 0.50,
    (array['ada', 'grace', 'edsger', 'barbara'])[1 + n % 4], date '2027-01-01' + n
from generate_series(1, 500) as n;
grant usage on schema crm to outbox_bridge;
grant select on crm.customer to outbox_bridge;
"""

USAGE_LIMITS = """
create schema events;
create table events.usage_limits (
    event_id        uuid primary key,
    customer_id     text not null,
    metric          text,
    "limit"         numeric,
    used            numeric,
    plan            text,
    mrr             numeric(12,2),
    csm             text,
    renewal         date,
    ratio           double precision,
    payload         jsonb not null,
    idempotency_key text,
    occurred_at     timestamptz
);
"""

TARGET_GRANTS = """
revoke create on schema public from public;
grant usage on schema bridge, events to outbox_bridge;
grant select, insert, update, delete on all tables in schema bridge to outbox_bridge;
grant select, insert, update on all tables in schema events to outbox_bridge;
"""


def make_roles(connection: Connection, password: str) -> None:
    """`outbox_bridge`, and `app`, which may only put events in. Roles belong to the whole server: it may have them."""
    for name, attributes in (("outbox_bridge", "login replication"), ("app", "login")):
        if connection.execute("select to_regrole(%s)", [name]).fetchone() == (None,):
            statement = sql.SQL(f"create role {{}} {attributes} password {{}}")
            connection.execute(statement.format(sql.Identifier(name), password))


def make_source(connection: Connection, publication: str = "outbox_bridge") -> None:
    """The outbox as `bridge schema source` prints it, and customers to enrich with."""
    connection.execute(source_sql(publication).encode())
    connection.execute("grant outbox_producer to app")
    connection.execute(CRM)


def make_target(connection: Connection) -> None:
    """The ledger as `bridge schema target` prints it, and a table to fill."""
    connection.execute(target_sql().encode())
    connection.execute(USAGE_LIMITS)
    connection.execute(TARGET_GRANTS)


class World:
    """An application's database `app` and a `warehouse`, each on a server of its own. With `sources`, a database of
    the application for each of these names, and a column `region` that says which one a row is from."""

    settings: Mapping[str, str | int] = {"track_commit_timestamp": "on", "log_checkpoints": "off"}

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self.workspace = Workspace()
        self.databases = {name: f"app_{name}" for name in sources} or {"": "app"}
        self.password = secrets.token_hex(16)
        self.source = self._server("app", *self.databases.values())
        self.target = self._server("warehouse", "warehouse")
        for name, dsn in self.source_dsns.items():
            with psycopg.connect(dsn, autocommit=True) as connection:
                make_source(connection, f"outbox_bridge_{name}" if name else "outbox_bridge")
        with psycopg.connect(self.target_dsn, autocommit=True) as connection:
            make_target(connection)
            if sources:
                connection.execute("alter table events.usage_limits add column region text")

    def _server(self, name: str, *databases: str) -> Cluster:
        cluster = Cluster(self.workspace, name, fsync=True, password=self.password, settings=self.settings)
        cluster.init().start()
        for database in databases:
            cluster.execute(f"create database {database}")
            with psycopg.connect(cluster.dsn(database), autocommit=True) as connection:
                make_roles(connection, self.password)
        return cluster

    @property
    def source_dsns(self) -> dict[str, str]:
        """As the owner, by the source's name; "": there is one, and it needs none."""
        return {name: self.source.dsn(database) for name, database in self.databases.items()}

    @property
    def source_dsn(self) -> str:
        """As the owner; of several, the first."""
        return next(iter(self.source_dsns.values()))

    @property
    def target_dsn(self) -> str:
        """As the owner."""
        return self.target.dsn("warehouse")

    @property
    def producer_dsns(self) -> list[str]:
        """As the application, of each source."""
        return [
            self.source.dsn(database, user="app", application_name="demo producer")
            for database in self.databases.values()
        ]

    @property
    def bridge_environment(self) -> dict[str, str]:
        """What the configuration refers to: the DSNs as the bridge's role, which may create nothing."""
        sources = {
            source_variable(name) if name else "SOURCE_DSN": self.source.dsn(database, user="outbox_bridge")
            for name, database in self.databases.items()
        }
        return {**sources, "WAREHOUSE_DSN": self.target.dsn("warehouse", user="outbox_bridge")}

    def configuration(self) -> Path:
        """with_slack.yaml; of several sources the same, with `sources:` in place of `source:`."""
        if "" in self.databases:
            return WITH_SLACK
        column = "          event_id: $meta.id\n"
        text = with_sources(WITH_SLACK.read_text(), [*self.databases])
        path = self.workspace.root / "bridge.yaml"
        path.write_text(text.replace(column, f"{column}          region: $meta.source\n"))
        return path

    def close(self) -> None:
        self.workspace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Message:
    """id: the Idempotency-Key it came with, the same at every attempt."""

    id: str
    channel: str
    text: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """The received messages, for the events that should each make one."""

    expected: int
    missing: int
    messages: int
    again: int  # messages whose id had come before
    channels: int
    sample: str


class Slack:
    """A Slack-like receiver: `chat.postMessage` on localhost, which answers ok and records messages. It is a sink: a
    repeated message is allowed, a missing message is an error."""

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
                """Do not print the web server's log."""

        return Handler

    def answer(self, path: str, authorization: str, body: bytes, headers: Any) -> dict[str, Any]:
        """Like Slack's Web API: errors in a 200 answer."""
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
    def environment(self) -> dict[str, str]:
        """What with_slack.yaml refers to."""
        return {"SLACK_TOKEN": self.token, "SLACK_API_URL": self.api_url}

    @property
    def messages(self) -> list[Message]:
        """All received messages, in order."""
        with self._lock:
            return list(self._messages)

    def delivered(self, event_ids: Collection[str]) -> Delivered:
        """The messages of these events; a message's text ends with its event's id."""
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

    def __enter__(self) -> Slack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
