"""`bridge sink move`: messages of a destination that has another name now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.operator import operator
from bridge.cli.options import config_option, read_config, source_option
from bridge.errors import BridgeError, ConfigError
from bridge.operate.queue import Ledger, Selection, check_place, ledgers
from bridge.operate.sinks import chosen, named

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.dispatch.schedule import LaneSpec


@click.command("move")
@config_option
@source_option
@click.argument("old", metavar="[PIPELINE/]OLD")
@click.argument("new", metavar="[PIPELINE/]NEW")
@click.option("--reason", metavar="TEXT", help="Why; it is kept with each message.")
@click.option("--dry-run", is_flag=True, help="Show what would happen, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def move_sink(
    config_path: Path, old: str, new: str, *, reason: str | None, dry_run: bool, as_json: bool
) -> None:
    """Give OLD's unsent messages and open dead letters to NEW, after a rename.

    OLD is not in the configuration any more; NEW is. Each message goes as it was rendered, with the id that it had. One
    whose event has a message at NEW already is discarded.
    """
    from bridge.postgres.queued import Search, need_history  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.sink_pause import carry  # noqa: PLC0415
    from bridge.repair.stranded import Moved, Place, move  # noqa: PLC0415

    config = read_config(config_path)
    lane, new_home = _new(config, new)
    told, known = Moved(), False
    with ledgers(config, "sink move", writes=True) as every:
        homes = {one.plan.stream: one for one in every}
        for one in every:
            if one.plan.source not in new_home:
                continue  # the pipeline of NEW does not read this source
            home = homes[new_home[one.plan.source]]
            for unit in _units(one, *named(old, None)):
                if unit == lane.name and one is home:
                    continue
                if unit in one.lanes:
                    raise ConfigError(
                        f"{'/'.join(unit)} is in the configuration: its messages are sent there",
                        hint="rename it in bridge.yaml first; to give its messages up: bridge sink discard",
                    )
                known = True
                need_history(one.connection, "sink move")
                need_history(home.connection, "sink move")
                if not dry_run:
                    before, after = (one.plan.stream, unit), (home.plan.stream, lane.name)
                    for part, said in carry(one.connection, before, home.connection, after):
                        resume = f"bridge sink resume {'/'.join(lane.name)} {part}".rstrip()
                        click.echo(
                            f"{'/'.join(unit)} was paused by {said}: {'/'.join(lane.name)} is paused now, {resume}",
                            err=True,
                        )
                told.add(
                    move(
                        Place(one.connection, one.plan.owner, unit),
                        Place(home.connection, home.plan.owner, lane.name),
                        lane,
                        by=operator().who,
                        reason=reason,
                        dry_run=dry_run,
                    )
                )
        if not known:
            check_place(every, Selection(Search(*named(old, None))))
    if as_json:
        from dataclasses import asdict  # noqa: PLC0415

        click.echo(json.dumps({"dry_run": dry_run, **asdict(told)}, indent=2))
    else:
        for line in _moved(told, "/".join(lane.name), dry_run=dry_run):
            click.echo(line)
    if told.unfit:
        raise BridgeError(
            f"{sum(told.unfit.values())} messages do not fit {'/'.join(lane.name)}, and stay where they are",
            hint="discard them (bridge sink discard), and send their events again with bridge replay",
        )


def _new(config: Config, name: str) -> tuple[LaneSpec, dict[str, str]]:
    """The sink of this name, and by source the stream whose ledger has its messages."""
    pipeline, destination = named(name, None)
    places = chosen(config, destination, pipeline)
    lanes = {lane.name: lane for _, lane in places}
    if len(lanes) > 1:
        names = ", ".join(map("/".join, lanes))
        raise click.UsageError(f"several pipelines have a sink {destination}: NEW is one of {names}")
    return places[0][1], {spec.source: spec.stream for spec, _ in places}


def _units(one: Ledger, pipeline: str | None, destination: str) -> list[tuple[str, str]]:
    """Of this name, those that the ledger has unsent messages or dead letters of, or that a person has paused."""
    from bridge.postgres.sink_pause import holds, paused  # noqa: PLC0415  as above

    stream = one.plan.stream
    rows = one.connection.execute(
        "select distinct pipeline, destination from bridge.delivery where stream = %s and destination = %s"
        " and state in ('pending', 'dead')",
        [stream, destination],
    )
    units = {(row[0], row[1]) for row in rows} | set(paused(one.connection, stream))
    units |= {each.unit for each in holds(one.connection, stream)}
    return sorted(unit for unit in units if unit[1] == destination and pipeline in (None, unit[0]))


def _moved(told: Any, name: str, *, dry_run: bool) -> Iterator[str]:
    would = "would be " if dry_run else ""
    yield f"{told.waiting} messages {would}moved to {name}"
    if told.letters:
        yield f"{told.letters} open dead letters {would}moved to {name}: bridge dead retry --cause CODE sends them"
    if told.already:
        yield f"{told.already} {would}discarded: their event has a message at {name} already"
    if told.claimed:
        yield (
            f"{told.claimed} are being sent by a bridge with the old configuration: reload it, and run this again"
            f"; if it was killed, they are free in {told.claimed_seconds} s"
        )
    for why, count in told.unfit.items():
        yield f"{count} do not fit {name}: {why}"
