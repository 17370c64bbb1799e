"""What several commands take: `-c/--config` with the way from that file to a Config, points in time, and
payloads.

A time is ISO 8601 with time zone, or so long ago (`24h`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.env_file import use_env_file
from bridge.errors import ConfigError

_FILES_SECONDS = 5.0
"""How long a start waits for a file that is being replaced. What is wrong for good is told after it."""


class Moment(click.ParamType[datetime] if TYPE_CHECKING else click.ParamType):  # type: ignore[misc]
    """2026-01-31T12:00:00Z, 2026-01-31, or a duration ago such as 90m or 7d. UTC without a zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from bridge.quantity import parse_duration  # noqa: PLC0415  (pydantic: `--help` needs none)

        if isinstance(value, datetime):
            return value
        try:
            return datetime.now(UTC) - parse_duration(value)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 24h",
                param,
                ctx,
            )
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


if TYPE_CHECKING:
    from bridge.config.model import Config

_F = TypeVar("_F", bound=Callable[..., Any])


def config_option(command: _F) -> _F:
    """Add `-c/--config` (environment: BRIDGE_CONFIG) as the parameter `config_path: Path`, and `--env-file`, whose
    variables are set when the command begins."""
    command = click.option(
        "--env-file",
        type=click.Path(path_type=Path),
        envvar="BRIDGE_ENV_FILE",
        show_envvar=True,
        callback=use_env_file,
        expose_value=False,
        is_eager=True,
        help="Take variables from this file of NAME=VALUE lines, such as the unit's EnvironmentFile.",
    )(command)
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path, readable=False),  # what cannot be read is said with its fix
        envvar="BRIDGE_CONFIG",
        show_envvar=True,
        default="bridge.yaml",
        show_default=True,
        help="The configuration file.",
    )(command)


def of_source(label: str) -> str:
    """Before what a line tells; label: StreamSpec.source_label."""
    return f"source {label}: " if label else ""


def source_option(command: _F) -> _F:
    """Add `--source NAME`, which read_config() obeys: the configuration for that source alone."""

    def chosen(context: click.Context, _option: click.Parameter, name: str | None) -> None:
        context.meta[_SOURCE] = name

    return click.option(
        "--source",
        metavar="NAME",
        callback=chosen,
        expose_value=False,
        help="Of several sources, only this one.",
    )(command)


_SOURCE = "bridge.source"


def _names_of_rules(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    if given:
        from bridge.config.allow import RULES  # noqa: PLC0415
        from bridge.operate.names import check_name  # noqa: PLC0415

        for one in given:
            check_name("finding", one, RULES)
    return given


def allow_lint_option(command: _F) -> _F:
    """Add `--allow-lint NAME` as the parameter `allow_lint: tuple[str, ...]`."""
    return click.option(
        "--allow-lint",
        "allow_lint",
        multiple=True,
        metavar="NAME",
        callback=_names_of_rules,
        help="Allow findings of this name, as `bridge lint` prints it in brackets. Repeatable.",
    )(command)


def read_config(path: Path, *, offline: bool = False) -> Config:
    """The configuration in `path`, with `${VAR}` from the environment.

    If it has an error, or a variable is not set here, the configuration of the bridge that runs with this file, which
    is said on standard error. offline: the command connects to nothing, so the reference to a variable that is not set
    is kept as written, and no bridge is asked. Raises ConfigError (exit code 2) with every problem of the file at once;
    CannotConnect (3) if only values are missing here, and no running bridge has them.
    """
    from bridge.config.load import load  # noqa: PLC0415  (pydantic: `--help` and `schema source` need none)

    if offline:
        return load(path, os.environ, offline=True)
    try:
        config = load(path, os.environ)
    except ConfigError as error:
        from bridge.cli.running import borrow  # noqa: PLC0415  only where it is needed

        config = borrow(path, error, unset_only=_unset_only(path))
    if config.original.files:
        from bridge.cli.running import follow_logins  # noqa: PLC0415  as above

        follow_logins(path)
    context = click.get_current_context(silent=True)
    name = context.meta.get(_SOURCE) if context is not None else None
    if name is None:
        return config
    from bridge.config.several import one_source  # noqa: PLC0415  as above

    return one_source(config, name)


def read_one(path: Path) -> Config:
    """As read_config(), for a command that works on one source: `--source` says which, where there are several."""
    from bridge.config.several import one_source  # noqa: PLC0415  as in read_config

    return one_source(read_config(path))


def _unset_only(path: Path) -> bool:
    from bridge.config.load import load  # noqa: PLC0415  as above

    try:
        load(path, os.environ, offline=True)
    except ConfigError:
        return False
    return True


def read_checked(path: Path, allow: Collection[str] = ()) -> Config:
    """The configuration to run: as read_config(), and without an error of lint. Its warnings are logged.

    allow: names of findings. Raises ConfigError with every error of the file at once.
    """
    from bridge.config.lint import checked  # noqa: PLC0415  as in read_config
    from bridge.log import Log  # noqa: PLC0415

    config, warnings = checked(path, os.environ, allow)
    log = Log("bridge.config")
    for one in warnings:
        log.warning("lint", finding=one.text(str(path)), name=one.name)
    return config


log_level_option = click.option(
    "--log-level",
    default="info",
    envvar="BRIDGE_LOG_LEVEL",
    show_default=True,
    help="debug, info, warning or error; environment variable BRIDGE_LOG_LEVEL.",
)

allow_storm_option = click.option(
    "--allow-storm",
    is_flag=True,
    help="Keep writing dead letters even when most events of a destination fail.",
)

streams_option = click.option(
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME",
    help="Run only this stream of the file. Repeatable.",
)


def require_log(config: Config) -> Config:
    """For what only makes sense with a log. Raises ConfigError without one."""
    if config.scale is None or config.scale.log is None:
        raise ConfigError(
            "scale.log is not set: without a log, `bridge run` reads and applies",
            hint="scale: { log: bus }   connections: { bus: { type: nats, servers: [nats://localhost:4222] } }",
        )
    return config


def read_to_start(path: Path, allow: Collection[str] = ()) -> Config:
    """As read_checked(). Files of secrets that are away or empty are waited for: somebody may be replacing them, and
    systemd does not start a unit again that ended with exit code 2."""
    from bridge.config.substitution import files_away  # noqa: PLC0415  as in read_config
    from bridge.log import Log  # noqa: PLC0415

    end = time.monotonic() + _FILES_SECONDS
    said = False
    while True:
        try:
            return read_checked(path, allow)
        except ConfigError:
            away = files_away(path.read_text(errors="replace"), path.parent) if path.is_file() else []
            if not away or time.monotonic() > end:
                raise
        if not said:
            Log("bridge.config").warning("waiting for files of secrets", files=away)
            said = True
        time.sleep(0.1)


def parse_payload(text: str) -> dict[str, Any]:
    """The payload with exact numbers. Raises a usage error with the position, never the text."""
    try:
        document = json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError as error:
        raise click.BadParameter(
            f"not valid JSON: {error.msg} at line {error.lineno} column {error.colno}", param_hint="JSON"
        ) from None
    except (RecursionError, ValueError):
        raise click.BadParameter("nested too deeply, or a number is too long", param_hint="JSON") from None
    if not isinstance(document, dict):
        raise click.BadParameter('must be an object such as {"name": "value"}', param_hint="JSON")
    return document
