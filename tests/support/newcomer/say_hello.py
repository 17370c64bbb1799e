"""`bridge say-hello`."""

from __future__ import annotations

import rich_click as click


@click.command(panel="Run and watch")
@click.argument("name")
def say_hello(name: str) -> None:
    """Greet somebody."""
    click.echo(f"hello {name}")
