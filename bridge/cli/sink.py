"""`bridge sink`: pause and resume a destination that is no table."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.options import config_option, read_config
from bridge.errors import ConfigError
from bridge.problem import suggestion

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.dispatch.schedule import DispatchSpec

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(panel="Run and watch")
def sink() -> None:
    """Pause and resume destinations that are no tables."""


def _destination(command: _F) -> _F:
    """The destination, and the pipeline where several have one of this name."""
    for option in (
        click.option("--pipeline", metavar="P", help="Only that of this pipeline."),
        click.argument("destination"),
    ):
        command = option(command)
    return command


@sink.command("pause")
@_destination
@click.option("--reason", metavar="TEXT", help="Why; `bridge status` and the log show it.")
@config_option
def pause_sink(config_path: Path, destination: str, pipeline: str | None, reason: str | None) -> None:
    """Send nothing to DESTINATION until `bridge sink resume`.

    Messages wait; they still become dead letters at max_age. Tables are not affected. It outlasts a restart.
    """
    from bridge.cli.connect import connect_dispatch  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.sink_pause import pause  # noqa: PLC0415

    by = f"{getpass.getuser()}@{socket.gethostname()}"
    for plan, lane in chosen(read_config(config_path), destination, pipeline):
        with connect_dispatch(plan, "sink pause") as connection:
            pause(connection, plan.stream, lane, by, reason)
        click.echo(f"{lane[0]} -> {lane[1]}: paused. bridge sink resume {lane[1]} sends what waits")


@sink.command("resume")
@_destination
@config_option
def resume_sink(config_path: Path, destination: str, pipeline: str | None) -> None:
    """Send to DESTINATION again, first what waits."""
    from bridge.cli.connect import connect_dispatch  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.sink_pause import resume  # noqa: PLC0415

    for plan, lane in chosen(read_config(config_path), destination, pipeline):
        with connect_dispatch(plan, "sink resume") as connection:
            was = resume(connection, plan.stream, lane)
        click.echo(f"{lane[0]} -> {lane[1]}: {'resumed' if was else 'was not paused'}")


def chosen(
    config: Config, destination: str, pipeline: str | None
) -> list[tuple[DispatchSpec, tuple[str, str]]]:
    """The dispatch plan and (pipeline, destination) of each sink of this name. Raises ConfigError if there is none."""
    from bridge.plans import dispatch_plans  # noqa: PLC0415  (compiles the pipelines)

    lanes = [(plan, lane.name) for plan in dispatch_plans(config) for lane in plan.lanes]
    found = [one for one in lanes if one[1][1] == destination and pipeline in (None, one[1][0])]
    if not found:
        where = "" if pipeline is None else f" in pipeline {pipeline}"
        known = sorted({name for _, (_, name) in lanes})
        raise ConfigError(
            f"there is no sink {destination}{where}",
            hint=suggestion(destination, known)
            if known
            else "no pipeline has a destination that is not a table",
        )
    return found
