"""`bridge recover`: the choices that only a person can make."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option, read_config
from bridge.errors import BridgeError, ConfigError


@click.command()
@config_option
@click.option("--stream", help="The stream; needed when the configuration has several targets.")
@click.option("--accept-source", is_flag=True, help="Begin anew with the source as it is now (see --since).")
@click.option("--accept-target", is_flag=True, help="This copy is the target now; its ledger is right.")
@click.option("--accept-gap", is_flag=True, help="Go on without the rows that were pruned too early.")
@click.option("--restart-stream", is_flag=True, help="The ledger is lost: make the next start a first one.")
@click.option(
    "--since",
    default="now",
    show_default=True,
    help="With --accept-source: `now`, `earliest`, or a timestamp with time zone.",
)
def recover(
    *,
    config_path: Path,
    stream: str | None,
    accept_source: bool,
    accept_target: bool,
    accept_gap: bool,
    restart_stream: bool,
    since: str,
) -> None:
    """Decide how a halted stream goes on. The bridge never does this by itself; stop it first.

    \b
    halted reason            what happened                              choices
    source_behind,           the source is an older copy, or another    --accept-source --since TIME
    history_diverged,        one: events that the target has are gone   (now: what the outbox holds counts as
    other_system             or xids are used again                     applied; earliest: all of it again)
    other_target             the target was restored elsewhere          --accept-target
    outbox_pruned            rows were pruned that this target never    --accept-gap (they are lost; the rest
                             saw, because it was restored too old       is caught up)
    ledger_missing           the ledger is gone from the target         restore it, or --restart-stream
    no_catch_up              a slot was lost and the outbox has no xid  --accept-source --since now

    `bridge prove` shows what differs, before and after.
    """
    import psycopg  # noqa: PLC0415  `bridge --help` must not import everything

    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.postgres import recover as choices  # noqa: PLC0415

    if accept_source + accept_target + accept_gap + restart_stream != 1:
        raise ConfigError("name exactly one choice", hint="bridge recover --help explains each")
    plans = stream_plans(read_config(config_path))
    chosen = [plan for plan in plans if stream in (None, plan.stream)]
    if len(chosen) != 1:
        known = ", ".join(plan.stream for plan in plans)
        raise ConfigError("which stream?", hint=f"--stream with one of: {known}")
    plan = chosen[0]
    with (
        psycopg.connect(plan.source_dsn, autocommit=True) as source,
        psycopg.connect(plan.target_dsn, autocommit=True) as target,
    ):
        if accept_source:
            when = {"now": "infinity", "earliest": None}.get(since, since)
            done = choices.accept_source(source, target, plan.stream, when)
            said = f"{plan.stream} begins anew with this source, from {since}"
        elif accept_target:
            done = choices.accept_target(source, target, plan.stream) is not None
            said = f"{plan.stream} is now registered for this target"
        elif accept_gap:
            done = choices.accept_gap(source, target, plan.stream) is not None
            said = f"{plan.stream} goes on without the rows that were pruned"
        else:
            done = choices.restart_stream(source, plan.stream)
            said = f"{plan.stream} starts at {plan.since or 'the earliest row'} when the bridge runs next"
    if not done:
        raise BridgeError(f"nothing to do: stream {plan.stream} is not known there")
    click.echo(said)
