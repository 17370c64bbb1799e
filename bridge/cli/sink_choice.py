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
        where = "" if pipeline is None else f" in pipeline {pipeline}"
        known = sorted({lane.destination for _, lane in every})
        raise ConfigError(
            f"there is no sink {destination or ''}{where}",
            hint=suggestion(destination or "", known)
            if known
            else "no pipeline has a destination that is not a table",
        )
    return found
