"""The `bridge` command. A command is a module here, imported only when it is called, so that start is fast. Its
`panel` is the part of `bridge --help` that it stands in.
"""

from __future__ import annotations

import gc
import importlib
import sys

import rich_click as click

from bridge import __version__
from bridge.discover import modules_of
from bridge.errors import BridgeError, CannotConnect, ConfigError

_BESIDE = (
    *("emitted", "env_file", "operator", "options", "repartition", "running"),
    *("sink_change", "sink_list", "sink_move", "sink_samples", "sink_search", "waiting"),
    *("scale_lines", "scale_plan", "scale_status"),
)
COMMANDS = {name.replace("_", "-"): name for name in modules_of(__name__, but=_BESIDE)}
"""Command -> its module in this package, in which a function of the same name is the command."""


_LOADED = 200_000
"""More objects than any command loads: none of them is garbage, and to look was a tenth of a start."""


class LazyGroup(click.RichGroup):
    """Finds a command by name and imports only its module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[name]}")
        command: click.Command = getattr(module, COMMANDS[name])
        return command


@click.group(cls=LazyGroup)
@click.version_option(__version__)
@click.command_panel("Set up")
@click.command_panel("Check")
@click.command_panel("Run and watch")
@click.command_panel("Repair")
def cli() -> None:
    """Postgres outbox to your tables, exactly once."""


def main() -> None:
    """Entry point. Exit codes: 1 findings or failure, 2 usage or configuration, 3 cannot connect."""
    gc.set_threshold(_LOADED)
    try:
        cli()
    except CannotConnect as error:
        click.echo(f"bridge: {error}", err=True)
        sys.exit(3)
    except ConfigError as error:
        click.echo(f"bridge: {error}", err=True)
        sys.exit(2)
    except BridgeError as error:
        click.echo(f"bridge: {error}", err=True)
        sys.exit(1)
