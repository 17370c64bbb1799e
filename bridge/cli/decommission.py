"""`bridge decommission`: a stream ends for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.options import config_option, read_one, source_option
from bridge.errors import BridgeError, CannotConnect, ConfigError
from bridge.problem import suggestion

if TYPE_CHECKING:
    import psycopg

    from bridge.config.model import Config
    from bridge.repair.decommission import Remains


@click.command(panel="Repair")
@config_option
@source_option
@click.argument("stream")
@click.option("--target", "dsn", help="The DSN of its target, if no connection of bridge.yaml leads there.")
@click.option("--source-gone", is_flag=True, help="Its source is not this one, and does not exist any more.")
@click.option("--yes", is_flag=True, help="Do it. Without this nothing is changed.")
def decommission(config_path: Path, stream: str, dsn: str | None, *, source_gone: bool, yes: bool) -> None:
    """End STREAM for good: drop its slot, its registration and its ledger.

    For a connection that was taken out of bridge.yaml, or a bridge that is not coming back. Its slot would retain WAL
    until the source's disk is full, and its registration would keep events from being pruned. Shows first what there is
    of the stream and what is given up with it: events that it has not applied, open dead letters, messages that were
    not sent. The rows of the target's own tables stay.

    A stream of another source is refused: run it with that source's configuration. Where that source is gone for good,
    --source-gone ends what the target has of it.
    """
    config = read_one(config_path)
    from bridge.cli.connect import connect_source, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import outbox_of, stream_plans  # noqa: PLC0415
    from bridge.postgres.progress import ledger_streams, registered_streams  # noqa: PLC0415
    from bridge.postgres.whose import another  # noqa: PLC0415
    from bridge.repair.decommission import decommission as end  # noqa: PLC0415
    from bridge.repair.decommission import remains  # noqa: PLC0415

    streams = {plan.stream for plan in stream_plans(config)}
    if stream in streams and not source_gone:
        raise ConfigError(
            f"stream {stream} is in this configuration: the bridge would make it anew, from source.start",
            hint="take its connection out of bridge.yaml first",
        )
    with (
        connect_source(config, command="decommission", grant="outbox_bridge", writes=True) as source,
        _target(config, source, stream, dsn) as target,
        target_errors("decommission"),
    ):
        halt = another(source, target, stream) if target is not None else None
        if halt is not None and not source_gone:
            raise BridgeError(
                f"{halt.args[0]}",
                reason=halt.reason,
                hint="run it with the configuration of that source; if that source is gone for good: "
                f"bridge decommission {stream} --source-gone",
            )
        if halt is None and source_gone:
            raise ConfigError(
                f"stream {stream} belongs to this source, if to any", hint="leave out --source-gone"
            )
        found = remains(source, target, outbox_of(config), stream)
        if source_gone:
            found = replace(found, pending=None, slots=())  # what this source has is none of it
        if found.nothing:
            here = {*registered_streams(source), *(ledger_streams(target) if target is not None else ())}
            raise ConfigError(
                f"there is no stream {stream}: not in the registry, no slot, no ledger that bridge.yaml leads to",
                hint=suggestion(stream, here - streams),
            )
        for line in _lines(found):
            click.echo(line)
        if not yes:
            click.echo("nothing was changed; to do it: the same with --yes")
            return
        end(source, target, found)
    click.echo(f"stream {stream} has ended")


@contextmanager
def _target(
    config: Config, source: psycopg.Connection[Any], stream: str, dsn: str | None
) -> Iterator[psycopg.Connection[Any] | None]:
    """The target that the stream is registered for, among the configuration's connections; None: not one of them."""
    from bridge.config.connection import PostgresConnection  # noqa: PLC0415
    from bridge.postgres.connect import connect  # noqa: PLC0415
    from bridge.postgres.profiles import CATALOG  # noqa: PLC0415
    from bridge.postgres.versions import refuse_newer  # noqa: PLC0415

    row = source.execute(
        "select target_system, target_database from outbox.stream where stream = %s", [stream]
    ).fetchone()
    known = [each.dsn for each in config.connections.values() if isinstance(each, PostgresConnection)]
    for candidate in [dsn] if dsn else [*known, config.source.dsn]:
        try:
            link = connect(candidate, CATALOG, "bridge decommission", where="the target")
        except CannotConnect:
            if dsn:
                raise
            continue
        with link:
            here = link.execute(
                "select (select system_identifier::text from pg_control_system()), current_database()"
            ).fetchone()
            has = link.execute("select to_regclass('bridge.checkpoint') is not null").fetchone()
            if has == (True,) and row in (None, here) and (row is not None or _knows(link, stream)):
                refuse_newer(link, "target")
                yield link
                return
    if dsn:
        raise ConfigError(
            f"stream {stream} is not registered for the database that --target names",
            hint=f"it is registered for database {row[1]} of system {row[0]}" if row else "",
        )
    yield None


def _knows(link: psycopg.Connection[Any], stream: str) -> bool:
    return link.execute("select 1 from bridge.checkpoint where stream = %s", [stream]).fetchone() is not None


def _lines(found: Remains) -> Iterator[str]:
    if found.database:
        yield f"stream {found.stream} is registered for database {found.database}"
    for name, retained, active in found.slots:
        yield f"  slot {name} retains {retained >> 20} MiB of WAL{', and is being read' if active else ''}"
    if found.pending:
        yield f"  {found.pending} events that it has not applied are given up"
    if found.letters is None:
        yield "  its target is not asked: no connection of bridge.yaml leads there (--target DSN). Its ledger stays"
        return
    yield f"  {found.letters} open dead letters are discarded, {found.messages} unsent messages are given up"
