"""`bridge init`: the first files."""

from __future__ import annotations

import json
from pathlib import Path

import rich_click as click

from bridge.config.recipe import STARTER
from bridge.config.recipe import recipe as recipe_of
from bridge.config.schema import config_json_schema
from bridge.errors import BridgeError

SCHEMA_FILE = "bridge.schema.json"
EDITORS_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
"""A relative path is one from the file, so that it works offline."""

_TARGET_HEAD = """\
-- 1. The ledger, in the same database:   bridge schema target | psql "$WAREHOUSE_DSN"
-- 2. The table below:                    psql "$WAREHOUSE_DSN" -f {file}

"""


class FilesInTheWay(BridgeError):
    """init does not overwrite files."""

    reason = "files_in_the_way"


@click.command(panel="Set up")
@click.option("--recipe", "name", metavar="NAME", help="Start from this recipe (bridge recipe list).")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path, file_okay=False))
def init(name: str | None, force: bool, directory: Path) -> None:
    """Write bridge.yaml, .env.example and the SQL to run to DIR (default: the current directory)."""
    chosen = recipe_of(name or STARTER)
    contents = {
        "bridge.yaml": EDITORS_LINE + chosen.text("bridge.yaml"),
        SCHEMA_FILE: json.dumps(config_json_schema(), indent=1, ensure_ascii=False) + "\n",
        ".env.example": chosen.env_example(),
        "target.sql": _TARGET_HEAD.format(file="target.sql") + chosen.text("target.sql"),
    }
    if chosen.text("source.sql"):
        contents["source.sql"] = chosen.text("source.sql")
    in_the_way = [file for file in contents if (directory / file).exists()]
    if in_the_way and not force:
        raise FilesInTheWay(
            f"{', '.join(in_the_way)} in {directory} would be overwritten",
            hint="use another DIR, or --force to overwrite",
        )
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in contents.items():
        (directory / file).write_text(text, encoding="utf-8")
        click.echo(f"wrote {directory / file}")
    click.echo("\nNext:")
    if directory != Path():
        click.echo(f"  cd {directory}")
    click.echo("  cp .env.example .env && $EDITOR .env && set -a && . ./.env && set +a")
    click.echo("  bridge lint && bridge test")
    click.echo("  bridge install                                    # the outbox, in the source")
    if "source.sql" in contents:
        click.echo('  psql "$SOURCE_DSN" -f source.sql                  # an example table to enrich from')
    click.echo('  bridge schema target | psql "$WAREHOUSE_DSN"      # the ledger, run by you')
    click.echo('  psql "$WAREHOUSE_DSN" -f target.sql               # the table, run by you')
    click.echo("  bridge doctor && bridge run")
