"""The `bridge` command. Each command's module is imported only when it is called, so that start is fast."""

from __future__ import annotations

import importlib
import sys

import rich_click as click

from bridge import __version__
from bridge.errors import BridgeError, CannotConnect, ConfigError

COMMANDS = {
    "demo": "bridge.cli.demo:demo",
    "init": "bridge.cli.init:init",
    "install": "bridge.cli.install:install",
    "schema": "bridge.cli.schema:schema",
    "doctor": "bridge.cli.doctor:doctor",
    "lint": "bridge.cli.lint:lint",
    "test": "bridge.cli.test:test",
    "run": "bridge.cli.run:run",
    "status": "bridge.cli.status:status",
    "top": "bridge.cli.top:top",
    "tail": "bridge.cli.tail:tail",
    "explain": "bridge.cli.explain:explain",
    "emit": "bridge.cli.emit:emit",
    "dead": "bridge.cli.dead:dead",
    "prune": "bridge.cli.prune:prune",
    "recover": "bridge.cli.recover:recover",
    "prove": "bridge.cli.prove:prove",
    "replay": "bridge.cli.replay:replay",
    "recipe": "bridge.cli.recipe:recipe",
}


class LazyGroup(click.RichGroup):
    """Finds a command by name and imports only its module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=LazyGroup)
@click.version_option(__version__)
def cli() -> None:
    """Postgres outbox to your tables, exactly once."""


def main() -> None:
    """Entry point. Exit codes: 1 findings or failure, 2 usage or configuration, 3 cannot connect."""
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
