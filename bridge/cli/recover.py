"""`bridge recover`: the decisions that only a person can make."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.options import Moment, config_option, read_config
from bridge.errors import BridgeError, ConfigError
from bridge.problem import nearest

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.stream.spec import StreamSpec


class Beginning(Moment):
    """`now`, `earliest`, or a time."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in ("now", "earliest") else super().convert(value, param, ctx)


@click.command(panel="Repair")
@config_option
@click.option("--stream", help="The stream; needed when the configuration has several targets.")
@click.option("--accept-source", is_flag=True, help="Start again with the source as it is now (see --since).")
@click.option("--accept-target", is_flag=True, help="This copy is the target now; its ledger is right.")
@click.option("--accept-gap", is_flag=True, help="Continue without the rows that were pruned too early.")
@click.option(
    "--adopt-outbox", is_flag=True, help="Apply what was not applied of a moved or altered outbox, once."
)
@click.option("--restart-stream", is_flag=True, help="The ledger is lost: make the next start a first start.")
@click.option(
    "--since",
    type=Beginning(),
    default="now",
    show_default=True,
    help="With --accept-source: `now`, `earliest`, a time, or a duration ago such as 24h.",
)
@click.option(
    "--old-source", metavar="DSN", help="With --adopt-outbox: the source that the stream read before."
)
@click.option("--dry-run", is_flag=True, help="With --adopt-outbox: show the plan, change nothing.")
def recover(
    *,
    config_path: Path,
    stream: str | None,
    accept_source: bool,
    accept_target: bool,
    accept_gap: bool,
    adopt_outbox: bool,
    restart_stream: bool,
    since: str | datetime,
    old_source: str | None,
    dry_run: bool,
) -> None:
    """Decide how a halted stream continues. The bridge never decides this itself; stop it first.

    `bridge status` shows the reason of the halt; `bridge prove` shows the differences, before and after.

    \b
    --accept-source   for source_behind, history_diverged, promotion_diverged,
      witness_missing, other_system:
      the source is an older copy, or another cluster. The stream starts again
      with it; what the target has stays.
      --since now       events that occurred before this command count as applied
      --since TIME      events that occurred since then are applied, including
                        those that the target already has
      --since earliest  everything in the outbox is applied, again
      Applying an event again is harmless for an upsert by the event's id, and
      duplicates the rows of a table without a key. With --since now also for
      no_catch_up: a new slot is created, and the events that only the lost slot
      had are not delivered.
    \b
    --accept-target   for other_target:
      the target was moved, or restored elsewhere. Its ledger says what is
      applied; the rest is caught up. Nothing is lost or duplicated if no bridge
      writes to the old target any more.
    \b
    --accept-gap      for outbox_pruned:
      the target was restored from a backup older than source.retention. This
      target never gets the events pruned since; the rest is caught up.
    \b
    --adopt-outbox    for other_system, foreign_xids:
      the outbox was moved to another cluster (dump and restore, pg_upgrade), its
      rows came by native replication, or its column xid was added or changed.
      Every row is placed, the plan is shown, and what was not applied is applied,
      once. --old-source: needed where the rows were replicated, so that this
      cluster gave them its own xids. Without --stream: for every stream.
    \b
    --restart-stream  for ledger_missing:
      the ledger is lost and no backup has it. The next start is a first start:
      source.start says from where; `earliest` applies everything in the outbox
      again.
    """
    if accept_source + accept_target + accept_gap + adopt_outbox + restart_stream != 1:
        raise ConfigError("give exactly one decision", hint="bridge recover --help explains each")
    if (old_source or dry_run) and not adopt_outbox:
        raise ConfigError("--old-source and --dry-run belong to --adopt-outbox", hint="bridge recover --help")
    config = read_config(config_path)
    if adopt_outbox:
        _adopt(config, stream, old_source, dry_run=dry_run)
        return
    from bridge.config.several import one_source  # noqa: PLC0415
    from bridge.operate.connect import connect_ledger, connect_source  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.postgres.versions import refuse_older  # noqa: PLC0415
    from bridge.postgres.whose import another  # noqa: PLC0415
    from bridge.repair import recover as choices  # noqa: PLC0415

    plan = _chosen(stream_plans(config), stream)
    lacking = {"earliest": "xid", "now": None}.get(str(since), "occurred_at")
    if accept_source and since != "now" and not {"xid", lacking} <= plan.outbox.columns.keys():
        raise ConfigError(
            f"source.columns has no {lacking if plan.outbox.has_xid else 'xid'}, so this outbox "
            "can only start from now",
            hint="bridge recover --accept-source --since now",
        )
    with (
        connect_source(
            one_source(config, plan.source), command="recover", grant="outbox_bridge", writes=True
        ) as source,
        connect_ledger(plan, "recover", writes=True, whose=False) as target,
        _refusals(),
    ):
        refuse_older(target)
        if (found := another(source, target, plan.stream, moved=True)) is not None:
            raise found
        for row in plan.rows:
            choices.check_stopped(target, row)
        if accept_source:
            first = {"now": choices.now(source), "earliest": None}.get(str(since), str(since))
            each = [choices.accept_source(source, target, row, first) for row in plan.rows]
            said = f"{plan.stream} starts again with this source, from {since}"
        elif accept_target:
            each = [choices.accept_target(source, target, row) for row in plan.rows]
            said = f"{plan.stream} is now registered for this target"
        elif accept_gap:
            each = [choices.accept_gap(source, target, row) for row in plan.rows]
            said = f"{plan.stream} continues without the rows that were pruned"
        else:
            each = [choices.restart_stream(source, target, row) for row in plan.rows]
            begin = {"infinity": "events from then on", None: "the earliest row"}.get(plan.since, plan.since)
            said = f"{plan.stream} starts with {begin} at the next start of the bridge"
    if not any(each):
        raise BridgeError(
            f"nothing to do: stream {plan.stream} is not halted for this reason, or does not exist there",
            hint="bridge status shows the reason; bridge recover --help shows the decision for each reason",
        )
    click.echo(said)


def _adopt(config: Config, stream: str | None, old_source: str | None, *, dry_run: bool) -> None:
    """Survey every stream first: carrying out the first changes what the outbox says of itself."""
    from bridge.config.several import one_source  # noqa: PLC0415
    from bridge.operate.connect import connect_ledger, connect_source  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.postgres.connect import connect  # noqa: PLC0415
    from bridge.postgres.profiles import COMMAND  # noqa: PLC0415
    from bridge.postgres.versions import refuse_older  # noqa: PLC0415
    from bridge.postgres.whose import another  # noqa: PLC0415
    from bridge.repair.adopt import Adopter  # noqa: PLC0415

    plans = stream_plans(config)
    chosen = plans if stream is None else [_chosen(plans, stream)]
    with ExitStack() as stack:
        one = one_source(config, chosen[0].source if stream else None)
        source = stack.enter_context(
            connect_source(one, command="recover", grant="outbox_bridge", writes=True)
        )
        stack.enter_context(_refusals())
        old = None
        if old_source is not None:
            old = stack.enter_context(connect(old_source, COMMAND, "recover", where="the old source"))
        work = []
        for plan in chosen:
            target = stack.enter_context(connect_ledger(plan, "recover", writes=True, whose=False))
            refuse_older(target)
            if (found := another(source, target, plan.stream, moved=True, old=old)) is not None:
                raise found
            for each in plan.each():
                adopter = Adopter(each, source, target, old)
                work.append((adopter, adopter.survey()))
        for _, adoption in work:
            for line in adoption.lines():
                click.echo(line)
        if dry_run:
            return
        if sys.stdin.isatty():
            click.confirm("Carry it out?", abort=True)
        for adopter, adoption in work:
            adopter.carry_out(adoption)
            click.echo(
                f"{adoption.stream} goes on with {adoption.missing} events at the next start of the bridge"
            )
        if work and (statement := work[0][0].settle_xids()):  # one outbox for all
            click.echo(f"before the next move, as the outbox's owner:\n{statement};")


def _chosen(plans: list[StreamSpec], stream: str | None) -> StreamSpec:
    found = [plan for plan in plans if stream in (None, plan.stream)]
    if len(found) == 1:
        return found[0]
    known = [plan.stream for plan in plans]
    said = f"there is no stream {stream}" if stream else "there are several streams"
    hint = nearest(stream or "", known) or f"--stream with one of: {', '.join(known)}"
    raise ConfigError(said, hint=hint)


@contextmanager
def _refusals() -> Iterator[None]:
    """Report a refused statement without row values."""
    import psycopg  # noqa: PLC0415  `bridge --help` must not import everything

    from bridge.postgres.safe_error import safe_message  # noqa: PLC0415

    try:
        yield
    except psycopg.Error as error:
        raise BridgeError(
            f"`bridge recover` was refused: {safe_message(error)} (SQLSTATE {error.sqlstate})",
            hint="bridge doctor shows what is missing on which server; then run it again",
        ) from None
