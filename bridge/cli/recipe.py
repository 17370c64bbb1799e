"""`bridge recipe`: ready-made configurations to show, and to add to your own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option
from bridge.config.recipe import add_to, recipes, recipes_page
from bridge.config.recipe import recipe as recipe_of
from bridge.errors import ConfigError


@click.group()
def recipe() -> None:
    """Ready-made configurations: an event, its pipeline, its table and its tests."""


@recipe.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.option("--markdown", is_flag=True, help="Print a page of all recipes: docs/recipes.md.")
def list_recipes(as_json: bool, markdown: bool) -> None:
    """List the recipes."""
    if markdown:
        click.echo(recipes_page(), nl=False)
        return
    found = recipes()
    if as_json:
        click.echo(json.dumps([{"name": one.name, **one.about.model_dump()} for one in found], indent=2))
        return
    width = max(len(one.name) for one in found)
    for one in found:
        click.echo(f"{one.name:<{width}}  {one.about.category:<7}  {one.about.summary}")


@recipe.command()
@click.argument("name")
def show(name: str) -> None:
    """Print recipe NAME: its configuration, its SQL and its sample events."""
    one = recipe_of(name)
    about = one.about
    click.echo(f"# {about.title} ({about.category}): {about.summary}")
    click.echo(f"# event: {about.event}   idempotency key: {about.idempotency_key}")
    if about.note:
        click.echo(f"# {about.note}")
    for file in ("bridge.yaml", "target.sql", "source.sql", "samples.json"):
        text = one.text(file)
        if text:
            click.echo(f"\n# ---- {file}\n{text}", nl=False)


@recipe.command()
@click.argument("name")
@config_option
@click.option("--dry-run", is_flag=True, help="Print the file instead of writing it.")
def add(name: str, config_path: Path, dry_run: bool) -> None:
    """Add recipe NAME to the configuration. Comments and order of the file are kept."""
    one = recipe_of(name)
    try:
        text = config_path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{config_path} cannot be read: {error.strerror}", hint=f"bridge init --recipe {name}"
        ) from None
    result = add_to(text, one.text("bridge.yaml"), str(config_path), os.environ)
    if dry_run:
        click.echo(result, nl=False)
        return
    draft = config_path.with_name(f".{config_path.name}.new")
    draft.write_text(result, encoding="utf-8")
    draft.chmod(config_path.stat().st_mode & 0o777)
    os.replace(draft, config_path)
    click.echo(f"Added {name} to {config_path}. Next:")
    click.echo(f'  bridge schema recipe {name} | psql "$WAREHOUSE_DSN"            # its table, run by you')
    if one.text("source.sql"):
        click.echo(
            f'  bridge schema recipe {name} --source | psql "$SOURCE_DSN"   # what it looks up, if you have none'
        )
    click.echo(f"  bridge lint -c {config_path} && bridge test -c {config_path}")
