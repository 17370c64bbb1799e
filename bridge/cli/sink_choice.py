"""Which sinks a command means, and who gives it."""

from __future__ import annotations

import getpass
import os
import socket
from typing import TYPE_CHECKING

from bridge.errors import ConfigError
from bridge.problem import suggestion

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.dispatch.schedule import DispatchSpec, LaneSpec


def operator() -> str:
    """Who gives the command: behind sudo the person; where the system has no name for the user, the database's."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        name = os.environ.get("PGUSER") or str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def named(text: str, pipeline: str | None) -> tuple[str | None, str]:
    """DESTINATION, or PIPELINE/DESTINATION, as (pipeline or None, destination)."""
    before, slash, after = text.partition("/")
    return (before, after) if slash else (pipeline, text)


def chosen(
    config: Config, destination: str | None, pipeline: str | None
) -> list[tuple[DispatchSpec, LaneSpec]]:
    """Each sink of this name (None: of any) with its dispatch plan. Raises ConfigError if there is none."""
    from bridge.plans import dispatch_plans  # noqa: PLC0415  (compiles the pipelines)

    every = [(plan, lane) for plan in dispatch_plans(config) for lane in plan.lanes]
    found = [
        (plan, lane)
        for plan, lane in every
        if destination in (None, lane.destination) and pipeline in (None, lane.pipeline)
    ]
    if not found:
        said = " ".join(
            filter(None, ("there is no sink", destination, pipeline and f"in pipeline {pipeline}"))
        )
        if destination is not None and (home := _subject(config, destination, pipeline)):
            raise ConfigError(
                f"{home}/{destination} is a subject of NATS: its messages are published before the event counts as "
                "applied, and none waits to be sent",
                hint="bridge doctor checks it; bridge explain EVENT shows a message; to publish no more, remove it "
                "from the configuration and reload",
            )
        if not every:
            raise ConfigError(said, hint="no pipeline has a destination that is not a table")
        pipelines = {lane.pipeline for _, lane in every if destination in (None, lane.destination)}
        if pipeline is not None and pipelines and pipeline not in pipelines:
            raise ConfigError(said, hint=suggestion(pipeline, pipelines))
        names = {lane.destination for _, lane in every if pipeline in (None, lane.pipeline)}
        known = names or {"/".join(lane.name) for _, lane in every}
        raise ConfigError(said, hint=suggestion(destination or "", known))
    return found


def _subject(config: Config, destination: str, pipeline: str | None) -> str | None:
    """The pipeline with a destination of this name that is a subject of NATS."""
    from bridge.config.destinations.subject import SubjectDestination  # noqa: PLC0415

    return next(
        (
            name
            for name, one in config.pipelines.items()
            if pipeline in (None, name) and isinstance(one.destinations.get(destination), SubjectDestination)
        ),
        None,
    )
