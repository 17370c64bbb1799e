"""`bridge rename-stream`: a stream goes on under another name."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option, read_config
from bridge.errors import ConfigError
from bridge.problem import suggestion


@click.command("rename-stream", panel="Repair")
@config_option
@click.argument("old")
@click.argument("new")
def rename_stream(config_path: Path, old: str, new: str) -> None:
    """Let stream OLD go on as NEW, after a connection or source.slot was renamed in bridge.yaml.

    A stream is called <source.slot>_<connection>. Under a new name it would be a new stream, and apply everything in
    the outbox again: the bridge halts with stream_renamed instead. Stop the bridge, rename in bridge.yaml, run this,
    start the bridge. Nothing is lost and nothing is applied twice. Dead letters and messages that wait go along.
    """
    config = read_config(config_path)
    from bridge.config.several import one_source  # noqa: PLC0415
    from bridge.operate.connect import connect_ledger, connect_source, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.operate.names import check_name  # noqa: PLC0415
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.postgres.parts import group_of  # noqa: PLC0415
    from bridge.postgres.progress import ledger_streams, registered_streams  # noqa: PLC0415
    from bridge.repair.rename import rename_partitions  # noqa: PLC0415
    from bridge.repair.rename import rename_stream as renamed  # noqa: PLC0415

    old, new = group_of(old), group_of(new)  # a partition halts with its own name
    plans = {plan.stream: plan for plan in stream_plans(config)}
    if new not in plans:
        raise ConfigError(
            f"this configuration has no stream {new}",
            hint=f"{suggestion(new, plans)}; or rename the connection in bridge.yaml first",
        )
    if old in plans:
        raise ConfigError(f"stream {old} is still in this configuration", hint="rename it there first")
    plan = plans[new]
    with (
        connect_source(
            one_source(config, plan.source), command="rename-stream", grant="outbox_bridge", writes=True
        ) as source,
        connect_ledger(plan, "rename-stream", writes=True) as target,
        target_errors("rename-stream"),
    ):
        known = {*registered_streams(source), *ledger_streams(target)}
        if known and not known & {new, *plan.rows}:
            check_name("stream", old, {group_of(one) for one in known} - plans.keys())
        slot = None
        if plan.partitions:
            rename_partitions(source, target, old, new, plan.partitions)
        else:
            slot = renamed(source, target, old, new, copy=not plan.failover)
    click.echo(
        f"{old} is {new} now, " + (f"with slot {slot}" if slot else "and catches up from the table first")
    )
