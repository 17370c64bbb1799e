"""`bridge scale plan`: what the file would run over its log, and what that costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.options import config_option, read_config

if TYPE_CHECKING:
    from bridge.config.model import Config

_RELAY_SESSIONS = 2  # the slot's and one to look
_PARTITION_SESSIONS = {"source": 3, "target": 2}  # look, listen, enrich; work, catalog
_PROCESS_SESSIONS = {"source": 3, "target": 4}  # backlog and upkeep; those, claims and the dispatcher's


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(config_path: Path, *, as_json: bool) -> None:
    """Say what bridge.yaml would run: relays, partitions, connections, the log's room. Asks no server."""
    told = plan_of(read_config(config_path))
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for line in _lines(told):
        click.echo(line)


def plan_of(config: Config) -> dict[str, Any]:
    """As JSON values."""
    from bridge.plans import relay_plans, stream_plans  # noqa: PLC0415  (loads psycopg)

    plans, relays = stream_plans(config), relay_plans(config)
    partitions = sum(one.partitions for one in plans)
    sources, targets = {one.source_dsn for one in plans}, {one.target_dsn for one in plans}
    connections = {
        "source": partitions * _PARTITION_SESSIONS["source"]
        + len(relays) * _RELAY_SESSIONS
        + len(sources) * _PROCESS_SESSIONS["source"],
        "target": partitions * _PARTITION_SESSIONS["target"] + len(targets) * _PROCESS_SESSIONS["target"],
    }
    return {
        "log": config.scale.log if config.scale is not None else None,
        "relays": [
            {
                "relay": one.relay,
                "source": one.source,
                "replicas": one.bus.replicas,
                "partitions": one.partitions,
                "log_limit_bytes": one.max_log_bytes,
                "max_retained_wal_bytes": one.max_retained_wal,
            }
            for one in relays
        ],
        "targets": [
            {"stream": one.stream, "connection": one.connection, "source": one.source, "rows": list(one.rows)}
            for one in plans
        ],
        "connections": connections,
    }


def _lines(told: dict[str, Any]) -> Iterator[str]:
    from bridge.cli.status import size  # noqa: PLC0415

    if told["log"] is None:
        yield "this file has no log: every stream reads a slot of its own (scale.log, docs/scale-out.md)"
        for one in told["targets"]:
            yield f"  stream {one['stream']} reads {one['source']}, applies to {one['connection']}"
        return
    for one in told["relays"]:
        copies = "one copy" if one["replicas"] == 1 else f"{one['replicas']} copies"
        yield f"relay {one['relay']} reads {one['source']} once, into log {told['log']}"
        yield (
            f"  stream {one['relay']} of the log: {one['partitions']} subjects, at most "
            f"{size(one['log_limit_bytes'])}, {copies} of it"
        )
        yield f"  its slot retains at most {size(one['max_retained_wal_bytes'])} of WAL (source.max_retained_wal)"
    for one in told["targets"]:
        rows = one["rows"]
        yield f"target {one['connection']}, of {one['source']}: {len(rows)} partitions, {rows[0]} ... {rows[-1]}"
    most = told["connections"]
    yield (
        f"connections at most, all processes together: {most['source']} at the sources, {most['target']} at the "
        "targets"
    )
    yield "  each worker beside the first adds up to 4 at each target and 3 at each source"
    yield "  a second relay stands by with one"
