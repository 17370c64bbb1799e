"""`bridge decommission`: a stream ends for good."""

from __future__ import annotations

import sys
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
    from bridge.repair.decommission import Choice, Remains

_CHOICE: click.Choice[Choice] = click.Choice(["discard", "keep"])


@click.command(panel="Repair")
@config_option
@source_option
@click.argument("stream")
@click.option("--target", "dsn", help="The DSN of its target, if no connection of bridge.yaml leads there.")
@click.option(
    "--target-gone", is_flag=True, help="Its target cannot be asked: end what the source has of the stream."
)
@click.option("--source-gone", is_flag=True, help="Its source is not this one, and does not exist any more.")
@click.option("--messages", type=_CHOICE, help="What becomes of its unsent messages.")
@click.option("--dead-letters", "letters", type=_CHOICE, help="What becomes of its open dead letters.")
@click.option("--yes", is_flag=True, help="Do it. Without this, and not at a terminal, nothing is changed.")
def decommission(
    config_path: Path,
    stream: str,
    dsn: str | None,
    messages: Choice | None,
    letters: Choice | None,
    *,
    target_gone: bool,
    source_gone: bool,
    yes: bool,
) -> None:
    """End STREAM for good: drop its slot, its registration and its ledger.

    For a connection that was taken out of bridge.yaml, or a bridge that is not coming back. Its slot would retain WAL
    until the source's disk is full, and its registration would keep events from being pruned. Shows first what there is
    of the stream and what is given up with it: events that it has not applied. The rows of the target's own tables
    stay. Refused while a bridge has the stream.

    What becomes of messages that were not sent and of open dead letters is yours to say: `discard` gives them up, with
    `keep` they stay in the target, for a stream of this name that is made again.

    A stream of another source is refused: run it with that source's configuration. Where that source is gone for good,
    --source-gone ends what the target has of it.
    """
    config = read_one(config_path)
    from bridge.operate.connect import connect_source, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import outbox_of, relay_plans, stream_plans  # noqa: PLC0415
    from bridge.postgres.parts import group_of  # noqa: PLC0415
    from bridge.postgres.progress import ledger_streams, registered_streams  # noqa: PLC0415
    from bridge.repair.decommission import check_unused, idle_relays, remains  # noqa: PLC0415
    from bridge.repair.decommission import decommission as end  # noqa: PLC0415

    if target_gone and (dsn or source_gone):
        raise ConfigError("--target-gone asks no target", hint="leave out --target and --source-gone")
    stream = group_of(stream)  # one partition alone does not end
    streams = {plan.stream for plan in stream_plans(config)}
    relays = {plan.relay for plan in relay_plans(config)}
    with (
        connect_source(config, command="decommission", grant="outbox_bridge", writes=True) as source,
        _target(config, source, stream, dsn, gone=target_gone) as target,
        target_errors("decommission"),
    ):
        _check_whose(source, target, stream, source_gone=source_gone)
        if stream in streams and not source_gone:
            raise ConfigError(
                f"stream {stream} is in this configuration: the bridge would make it anew, from source.start",
                hint="take its connection out of bridge.yaml first",
            )
        found = remains(source, target, outbox_of(config), stream)
        if source_gone:
            found = replace(found, pending=None, slots=())  # what this source has is none of it
        if found.nothing or stream in {
            relay for relay, _, _ in idle_relays(source, config.source.slot, relays)
        }:
            if _end_relays(config, source, relays, yes=yes, only=stream):
                return
            here = {*registered_streams(source), *(ledger_streams(target) if target is not None else ())}
            here = set(map(group_of, here))
            raise ConfigError(
                f"there is no stream {stream}: not in the registry, no slot, no ledger that bridge.yaml leads to",
                hint=suggestion(stream, here - streams),
            )
        check_unused(None if source_gone else source, target, stream)
        for line in _lines(found):
            click.echo(line)
        asks = not yes and sys.stdin.isatty()
        messages = _chosen(messages, found.messages, "unsent messages", asks=asks)
        letters = _chosen(letters, found.letters, "open dead letters", asks=asks)
        if asks:
            yes = click.confirm("End it?")
        if not yes:
            click.echo("nothing was changed; to do it: the same with --yes")
            return
        if messages is None or letters is None:
            raise _undecided(found, messages, letters)
        check_unused(None if source_gone else source, target, stream, watch=found.lately)
        end(source, target, found, messages=messages, letters=letters)
        click.echo(f"stream {stream} has ended")
        _end_relays(config, source, relays, yes=True)


def _end_relays(
    config: Config, source: psycopg.Connection[Any], known: set[str], *, yes: bool, only: str | None = None
) -> bool:
    """End relays that serve no stream any more. known: those of the configuration. only: no other than this. False:
    there is none."""
    from bridge.repair.decommission import end_relay, idle_relays  # noqa: PLC0415  (loads psycopg)

    found = [one for one in idle_relays(source, config.source.slot, known) if only in (None, one[0])]
    for relay, slot, active in found:
        if active:
            raise BridgeError(
                f"relay {relay} serves no stream any more, and its slot {slot} is being read: it was left as it is",
                hint=f"stop bridge relay, then: bridge decommission {relay}",
            )
        if not yes:
            click.echo(f"relay {relay} serves no stream: its slot {slot} would be dropped")
            click.echo("nothing was changed; to do it: the same with --yes")
            continue
        end_relay(source, relay, slot)
        click.echo(f"relay {relay} has ended")
        click.echo(f"  its frames are in the log until you remove them: nats stream rm {relay}")
    return bool(found)


def _check_whose(
    source: psycopg.Connection[Any],
    target: psycopg.Connection[Any] | None,
    stream: str,
    *,
    source_gone: bool,
) -> None:
    """Raise BridgeError for a stream of another source; ConfigError for --source-gone where it is this one's."""
    from bridge.postgres.whose import another  # noqa: PLC0415  (loads psycopg)

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


def _chosen(given: Choice | None, waiting: int | None, what: str, *, asks: bool) -> Choice | None:
    """None: a person has to say it, and was not asked."""
    if given is not None or not waiting:
        return given or "discard"
    if not asks:
        return None
    answer: Choice = click.prompt(f"{waiting} {what}", type=_CHOICE)
    return answer


def _undecided(found: Remains, messages: Choice | None, letters: Choice | None) -> BridgeError:
    waiting = [
        *([f"{found.messages} unsent messages"] if messages is None else []),
        *([f"{found.letters} open dead letters"] if letters is None else []),
    ]
    options = [
        *(["--messages discard"] if messages is None else []),
        *(["--dead-letters discard"] if letters is None else []),
    ]
    return BridgeError(
        f"{' and '.join(waiting)} would be given up: nothing was changed",
        reason="waiting",
        hint=f"to give them up: the same with {' '.join(options)}; to leave them in the target: keep, not discard",
    )


@contextmanager
def _target(
    config: Config, source: psycopg.Connection[Any], stream: str, dsn: str | None, *, gone: bool
) -> Iterator[psycopg.Connection[Any] | None]:
    """The target that the stream is registered for, among the configuration's connections; None: not one of them, or
    gone. Raises CannotConnect where it may be one that does not answer."""
    from bridge.postgres.connect import connect  # noqa: PLC0415
    from bridge.postgres.parts import OF  # noqa: PLC0415
    from bridge.postgres.profiles import CATALOG  # noqa: PLC0415
    from bridge.postgres.progress import here  # noqa: PLC0415
    from bridge.postgres.versions import refuse_newer  # noqa: PLC0415

    row = source.execute(
        f"select target_system, target_database from outbox.stream where {OF} limit 1", {"stream": stream}
    ).fetchone()
    silent: CannotConnect | None = None
    for candidate in () if gone else [dsn] if dsn else _places(config):
        try:
            link = connect(candidate, CATALOG, "bridge decommission", where="the target")
        except CannotConnect as error:
            silent = error
            continue
        with link:
            has = link.execute("select to_regclass('bridge.checkpoint') is not null").fetchone()
            if has == (True,) and row in (None, here(link)) and (row is not None or _knows(link, stream)):
                refuse_newer(link, "target")
                yield link
                return
    if silent is not None:
        raise CannotConnect(
            f"{silent.args[0]}: it may be the target of stream {stream}, so nothing was changed",
            hint=f"{silent.hint}; if its target is gone for good: bridge decommission {stream} --target-gone",
        )
    if dsn:
        raise ConfigError(
            f"stream {stream} is not registered for the database that --target names",
            hint=f"it is registered for database {row[1]} of system {row[0]}" if row else "",
        )
    yield None


def _places(config: Config) -> list[str]:
    from bridge.config.connection import PostgresConnection  # noqa: PLC0415

    known = [each.dsn for each in config.connections.values() if isinstance(each, PostgresConnection)]
    return list(dict.fromkeys([*known, config.source.dsn]))


def _knows(link: psycopg.Connection[Any], stream: str) -> bool:
    """Has it the stream's ledger, or what was kept of it?"""
    from bridge.postgres.parts import OF  # noqa: PLC0415  (loads psycopg)

    row = link.execute(
        f"select exists (select from bridge.checkpoint where {OF})"
        " or exists (select from bridge.delivery where stream = %(stream)s and state = 'pending')"
        " or exists (select from bridge.dead_letter where stream = %(stream)s and state = 'open')",
        {"stream": stream},
    ).fetchone()
    return row == (True,)


def _lines(found: Remains) -> Iterator[str]:
    if found.database:
        yield f"stream {found.stream} is registered for database {found.database}"
    for name, retained, active in found.slots:
        yield f"  slot {name} retains {retained >> 20} MiB of WAL{', and is being read' if active else ''}"
    if found.pending:
        yield f"  {found.pending} events that it has not applied are given up"
    if found.letters is None:
        yield "  its target is not asked: no connection of bridge.yaml leads there (--target DSN). What is there stays"
        return
    if found.written is not None:
        yield f"  its ledger was written {found.written:.0f} s ago"
    yield f"  {found.letters} open dead letters, {found.messages} unsent messages"
