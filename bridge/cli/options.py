"""What several commands take: `-c/--config`, and the way from that file to a Config."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from bridge.config.model import Config

_F = TypeVar("_F", bound=Callable[..., Any])


def config_option(command: _F) -> _F:
    """Add `-c/--config` (environment: BRIDGE_CONFIG) as the parameter `config_path: Path`."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        envvar="BRIDGE_CONFIG",
        show_envvar=True,
        default="bridge.yaml",
        show_default=True,
        help="The configuration file.",
    )(command)


def read_config(path: Path, *, offline: bool = False) -> Config:
    """The configuration in `path`, with `${VAR}` from the process's environment.

    offline: the command connects to nothing, so a variable that is not set is left as it is written.
    Raises ConfigError (exit code 2) with every problem of the file at once.
    """
    from bridge.config.load import load  # noqa: PLC0415  (pydantic: `--help` and `schema source` need none)

    return load(path, os.environ, offline=offline)
