"""`bridge init`: the first files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import rich_click as click

from bridge.config.own_event import field_of, own_event, usual_table
from bridge.config.recipe import STARTER, env_example, source_variable, with_sources
from bridge.config.recipe import recipe as recipe_of
from bridge.config.schema import config_json_schema
from bridge.errors import BridgeError, ConfigError

SCHEMA_FILE = "bridge.schema.json"
EDITORS_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
"""A relative path is one from the file, so that it works offline."""

_TARGET_HEAD = """\
-- 1. The ledger, in the same database:   bridge schema target | psql "$WAREHOUSE_DSN"
-- 2. The table below:                    psql "$WAREHOUSE_DSN" -f {file}

"""


_OWN_HEAD = (
    "-- Run in the target database, as the owner of the table. The bridge itself never runs DDL here.\n"
)


class FilesInTheWay(BridgeError):
    """init does not overwrite files."""

    reason = "files_in_the_way"


@click.command(panel="Set up")
@click.option("--recipe", "name", metavar="NAME", help="Start from this recipe (bridge recipe list).")
@click.option("--event", metavar="TYPE", help="Start from an event of your own: its type.")
@click.option("--field", "fields", multiple=True, metavar="NAME:TYPE", help="A field of it; may be repeated.")
@click.option("--table", metavar="SCHEMA.TABLE", help="The table to write it to.")
@click.option(
    "--source", "sources", multiple=True, metavar="NAME", help="A source; repeat it for several in one file."
)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path, file_okay=False))
def init(
    *,
    name: str | None,
    event: str | None,
    fields: tuple[str, ...],
    table: str | None,
    sources: tuple[str, ...],
    force: bool,
    directory: Path,
) -> None:
    """Write bridge.yaml, .env.example and the SQL to run to DIR (default: the current directory).

    With --event, --field and --table: for an event of your own. Without --recipe and --event it asks for one, on a
    terminal; otherwise it writes an example.
    """
    if name and (event or fields or table):
        raise click.UsageError("--recipe has an event of its own: leave --event, --field and --table out")
    if event is None and (fields or table):
        raise click.UsageError("--field and --table belong to an event of your own: give --event TYPE")
    if not name and event is None and sys.stdin.isatty() and sys.stdout.isatty():
        event, fields, table = _asked()
    chosen = recipe_of(name or STARTER)
    yaml, ddl = chosen.text("bridge.yaml"), chosen.text("target.sql")
    if event is not None:
        yaml, made = own_event(event, [field_of(one) for one in fields], table or usual_table(event))
        ddl = f"{_OWN_HEAD}{made}"
    if sources:
        yaml = with_sources(yaml, sources)
    contents = {
        "bridge.yaml": EDITORS_LINE + yaml,
        SCHEMA_FILE: json.dumps(config_json_schema(), indent=1, ensure_ascii=False) + "\n",
        ".env.example": env_example(yaml),
        "target.sql": _TARGET_HEAD.format(file="target.sql") + ddl,
    }
    if chosen.text("source.sql") and event is None:
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
    where = "each source" if sources else "the source"
    click.echo(f"  bridge install                                    # the outbox, in {where}")
    if "source.sql" in contents:
        for variable in map(source_variable, sources) if sources else ["SOURCE_DSN"]:
            line = f'  psql "${variable}" -f source.sql'
            click.echo(f"{line:<52}# an example table to enrich from")
    click.echo('  bridge schema target | psql "$WAREHOUSE_DSN"      # the ledger, run by you')
    click.echo('  psql "$WAREHOUSE_DSN" -f target.sql               # the table, run by you')
    click.echo("  bridge doctor && bridge run")


def _asked() -> tuple[str | None, tuple[str, ...], str | None]:
    """Event, fields and table, from the terminal; no event: the example is wanted."""
    event = click.prompt(
        "The type of your event, such as order.placed (Enter: an example)", default="", show_default=False
    ).strip()
    if not event:
        return None, (), None
    fields: list[str] = []
    while True:
        text = click.prompt(
            "A field, such as customer_id:string or plan:string? (Enter: no more)",
            default="",
            show_default=False,
        ).strip()
        if not text and fields:
            break
        try:
            field_of(text)
        except ConfigError as error:
            click.echo(str(error), err=True)
        else:
            fields.append(text)
    return event, tuple(fields), click.prompt("The table", default=usual_table(event))
