"""`bridge recover`: the choices that only a person can make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.options import Moment, config_option, read_config
from bridge.errors import BridgeError, ConfigError

if TYPE_CHECKING:
    from bridge.stream.spec import StreamSpec


class Beginning(Moment):
    """`now`, `earliest`, or a moment."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in ("now", "earliest") else super().convert(value, param, ctx)


@click.command()
@config_option
@click.option("--stream", help="The stream; needed when the configuration has several targets.")
@click.option("--accept-source", is_flag=True, help="Begin anew with the source as it is now (see --since).")
@click.option("--accept-target", is_flag=True, help="This copy is the target now; its ledger is right.")
@click.option("--accept-gap", is_flag=True, help="Go on without the rows that were pruned too early.")
@click.option("--restart-stream", is_flag=True, help="The ledger is lost: make the next start a first one.")
@click.option(
    "--since",
    type=Beginning(),
    default="now",
    show_default=True,
    help="With --accept-source: `now`, `earliest`, a time, or a duration ago such as 24h.",
)
def recover(
    *,
    config_path: Path,
    stream: str | None,
    accept_source: bool,
    accept_target: bool,
    accept_gap: bool,
    restart_stream: bool,
    since: str | datetime,
) -> None:
    """Decide how a halted stream goes on. The bridge never does this by itself; stop it first.

    `bridge status` names the reason of the halt; `bridge prove` shows what differs, before and after.

    \b
    --accept-source   for source_behind, history_diverged, other_system:
      the source is an older copy, or another cluster. The stream begins anew
      with it; what the target has stays.
      --since now       what occurred before this command counts as applied
      --since TIME      events that occurred from then on are applied, also those
                        that the target has already
      --since earliest  everything that the outbox holds is applied, again
      Again is harmless for an upsert by the event's id, and doubles the rows of a
      table without a key. With --since now also for no_catch_up: a new slot is
      made, and events that the lost one held back do not come.
    \b
    --accept-target   for other_target:
      the target was moved, or restored elsewhere. Its ledger says what is
      applied, the rest is caught up. Nothing is lost or doubled, if no bridge
      writes to the old one any more.
    \b
    --accept-gap      for outbox_pruned:
      the target was restored from a backup older than source.retention. What
      was pruned since is lost to it; the rest is caught up.
    \b
    --restart-stream  for ledger_missing:
      the ledger is gone and no backup has it. The next start is a first one:
      source.start says from where; `earliest` applies again all that the outbox
      holds.
    """
    if accept_source + accept_target + accept_gap + restart_stream != 1:
        raise ConfigError("name exactly one choice", hint="bridge recover --help explains each")
    config = read_config(config_path)
    from bridge.cli.connect import connect_ledger, connect_source  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.repair import recover as choices  # noqa: PLC0415

    plan = _chosen(stream_plans(config), stream)
    lacking = {"earliest": "xid", "now": None}.get(str(since), "occurred_at")
    if accept_source and since != "now" and not {"xid", lacking} <= plan.outbox.columns.keys():
        raise ConfigError(
            f"source.columns names no {lacking if plan.outbox.has_xid else 'xid'}, so this outbox can only begin now",
            hint="bridge recover --accept-source --since now",
        )
    with (
        connect_source(config, command="recover", grant="outbox_bridge") as source,
        connect_ledger(plan, "recover") as target,
        _refusals(),
    ):
        choices.check_stopped(target, plan.stream)
        if accept_source:
            first = {"now": choices.now(source), "earliest": None}.get(str(since), str(since))
            done = choices.accept_source(source, target, plan.stream, first)
            said = f"{plan.stream} begins anew with this source, from {since}"
        elif accept_target:
            done = choices.accept_target(source, target, plan.stream)
            said = f"{plan.stream} is now registered for this target"
        elif accept_gap:
            done = choices.accept_gap(source, target, plan.stream)
            said = f"{plan.stream} goes on without the rows that were pruned"
        else:
            done = choices.restart_stream(source, target, plan.stream)
            begin = {"infinity": "what comes from then on", None: "the earliest row"}.get(
                plan.since, plan.since
            )
            said = f"{plan.stream} starts with {begin} when the bridge runs next"
    if not done:
        raise BridgeError(
            f"nothing to do: stream {plan.stream} is not halted for that (or not known there)",
            hint="bridge status names the reason; bridge recover --help the choice that goes with it",
        )
    click.echo(said)


def _chosen(plans: list[StreamSpec], stream: str | None) -> StreamSpec:
    found = [plan for plan in plans if stream in (None, plan.stream)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(plan.stream for plan in plans)
    said = f"there is no stream {stream}" if stream else "there are several streams"
    raise ConfigError(said, hint=f"--stream with one of: {known}")


@contextmanager
def _refusals() -> Iterator[None]:
    """A statement that a server refuses, told without values of rows."""
    import psycopg  # noqa: PLC0415  `bridge --help` must not import everything

    from bridge.postgres.safe_error import safe_message  # noqa: PLC0415

    try:
        yield
    except psycopg.Error as error:
        raise BridgeError(
            f"`bridge recover` was refused: {safe_message(error)} (SQLSTATE {error.sqlstate})",
            hint="bridge doctor names what is missing on which server; then run it again",
        ) from None
