"""Events for the outbox: a backlog made as fast as the server can, or a steady trickle.

Apart from the drains because both sides of a comparison drain the very same backlog.
"""

from __future__ import annotations

import time
from uuid import UUID

import psycopg

from bench.servers import Servers

# jsonb prints about 350 bytes of it.
_PAYLOAD = """jsonb_build_object('customer_id', 'cus_' || (1 + n % 500), 'metric',
    (array['seats', 'api-calls', 'storage'])[1 + n % 3], 'limit', 100000, 'used', 90000 + n % 20000, 'plan', 'pro',
    'region', 'eu-central-1', 'workspace', 'ws_' || n % 9973, 'tags', jsonb_build_array('billing', 'limit'),
    'note', repeat('n', 150))"""

_INSERT = f"insert into outbox.event (type, payload) select 'usage.limit_reached', {_PAYLOAD} from"


def produce(servers: Servers, events: int, rows: int) -> UUID:
    """`events` events in transactions of `rows`, one after the other; the last one's id. The producer alone
    runs with synchronous_commit off: it is not what is measured."""
    with psycopg.connect(servers.source_dsn, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute(
            f"""do $$ begin
                for start in 1 .. {events} by {rows} loop
                    {_INSERT} generate_series(start, least(start + {rows} - 1, {events})) as n;
                    commit;
                end loop;
            end $$""".encode()
        )
    servers.source.execute("checkpoint")
    return last_id(servers)


def last_id(servers: Servers) -> UUID:
    """Of the youngest event."""
    found: UUID = servers.on_source("select id from outbox.event order by xid desc, seq desc limit 1")[0][0]
    return found


def payload_size(servers: Servers) -> int:
    """Average bytes of a payload's text."""
    rows = servers.on_source(
        "select avg(length(payload::text))::int from (select payload from outbox.event limit 1000) as sample"
    )
    return int(rows[0][0])


def forget(servers: Servers) -> None:
    """Empty the outbox but for the last event, which is the bridge's witness."""
    with psycopg.connect(servers.source_dsn, autocommit=True) as connection:
        connection.execute("delete from outbox.event where id <> %s", [last_id(servers)])
        connection.execute("vacuum outbox.event")


def trickle(servers: Servers, rate: float, seconds: float) -> int:
    """One event a durable commit, `rate` a second, evenly; how many."""
    count = int(rate * seconds)
    with psycopg.connect(servers.source_dsn, autocommit=True) as connection:
        statement = _INSERT.replace("%", "%%") + " generate_series(%s::int, %s::int) as n"
        began = time.monotonic()
        for n in range(count):
            time.sleep(max(0.0, began + n / rate - time.monotonic()))
            connection.execute(statement.encode(), [n, n])
    return count
