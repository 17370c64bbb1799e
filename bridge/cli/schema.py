"""`bridge schema`: print SQL and JSON Schema. Connects to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option, read_config
from bridge.errors import ConfigError


@click.group(panel="Set up")
def schema() -> None:
    """Print SQL (source, target, recipe, table), JSON Schema (config, event) or NATS permissions (log)."""


@schema.command()
@click.option(
    "--publication", default="outbox_bridge", show_default=True, help="The configuration's source.slot."
)
@click.option(
    "--after", default=0, metavar="VERSION", help="Leave out migrations up to and including this version."
)
@click.option("--notify", is_flag=True, help="Also print the trigger that wakes a polling bridge.")
def source(publication: str, after: int, notify: bool) -> None:
    """Print the outbox, its publication and roles, for psql. `bridge install` applies the same SQL."""
    from bridge.postgres.schema import source_sql  # noqa: PLC0415  (loads psycopg)

    click.echo(source_sql(publication, after, notify=notify), nl=False)


@schema.command()
@click.option(
    "--after", default=0, metavar="VERSION", help="Leave out migrations up to and including this version."
)
def target(after: int) -> None:
    """Print the ledger, for you to run in the target database with psql. The bridge never runs it."""
    from bridge.postgres.schema import target_sql  # noqa: PLC0415  (loads psycopg)

    click.echo(target_sql(after), nl=False)


@schema.command()
@config_option
def log(config_path: Path) -> None:
    """Print the NATS permissions that relay and worker need, for the server's file. `bridge run` needs both."""
    from bridge.bus.permissions import relay_permissions, worker_permissions  # noqa: PLC0415
    from bridge.cli.options import require_log  # noqa: PLC0415
    from bridge.plans import relay_plans  # noqa: PLC0415  (loads psycopg)

    relays = relay_plans(require_log(read_config(config_path, offline=True)))
    if not relays:
        raise ConfigError("no source is read by a relay", hint="source.capture: slot, or auto")
    settings, names = relays[0].bus, [one.relay for one in relays]
    for user, found in (
        ("relay", relay_permissions(settings, names)),
        ("worker", worker_permissions(settings, names)),
    ):
        click.echo(f"# {user}")
        click.echo("permissions: {")
        for line in found.lines():
            click.echo(line)
        click.echo("}")


@schema.command()
@click.argument("name")
@click.option(
    "--source",
    "of_source",
    is_flag=True,
    help="Print an example of the table that the recipe looks up in, instead.",
)
def recipe(name: str, of_source: bool) -> None:
    """Print the target tables of recipe NAME, for you to run."""
    from bridge.config.recipe import recipes  # noqa: PLC0415  (loads pydantic)
    from bridge.problem import nearest  # noqa: PLC0415  (as below)

    file = "source.sql" if of_source else "target.sql"
    texts = {one.name: text for one in recipes() if (text := one.text(file))}
    if name not in texts:
        what = "that looks anything up" if of_source else "with tables of its own"
        hint = nearest(name, texts) or f"one of: {', '.join(texts)}"
        raise ConfigError(f"there is no recipe {name!r} {what}", hint=hint)
    click.echo(texts[name], nl=False)


@schema.command()
@config_option
@click.option("--role", default="outbox_bridge", show_default=True, help="The bridge's role, for the grants.")
@click.argument("destination", metavar="[PIPELINE[/DESTINATION]]", required=False)
def table(config_path: Path, role: str, destination: str | None) -> None:
    """Print a CREATE TABLE and the grants for each mapping in bridge.yaml, for you to read and run.

    Types follow from the contracts; a column that they do not tell is text, with a comment. `bridge doctor` also asks
    the servers what enrichments return.
    """
    from bridge.config.specs import contract_specs, pipeline_specs  # noqa: PLC0415  (loads pydantic)
    from bridge.planning.spec import TableSpec  # noqa: PLC0415
    from bridge.planning.suggested_table import contracts_of, quoted, statements, suggested_columns  # noqa: PLC0415
    from bridge.problem import suggestion  # noqa: PLC0415

    configuration = read_config(config_path, offline=True)
    contracts = contract_specs(configuration)
    found = {
        f"{pipeline.name}/{name}": "\n".join(
            statements(
                spec,
                suggested_columns(spec, contracts_of(pipeline, contracts), {}),
                quoted(role),
                lines=True,
            )
        )
        for pipeline in pipeline_specs(configuration)
        for name, spec in pipeline.destinations.items()
        if isinstance(spec, TableSpec) and destination in (None, pipeline.name, f"{pipeline.name}/{name}")
    }
    if not found:
        names = [
            f"{pipeline.name}/{name}"
            for pipeline in pipeline_specs(configuration)
            for name, spec in pipeline.destinations.items()
            if isinstance(spec, TableSpec)
        ]
        raise ConfigError("there is no such table destination", hint=suggestion(destination or "", names))
    for name, text in found.items():
        click.echo(f"-- {name}\n{text}\n")


@schema.command()
def config() -> None:
    """Print the JSON Schema of bridge.yaml, for editors."""
    from bridge.config.schema import config_json_schema  # noqa: PLC0415  (loads pydantic)

    click.echo(json.dumps(config_json_schema(), indent=2, ensure_ascii=False))


@schema.command()
@config_option
@click.argument("event_type", metavar="TYPE", required=False)
@click.option(
    "--typescript", is_flag=True, help="Print TypeScript declarations instead; without TYPE, of all types."
)
@click.option(
    "--module", default="outbox-bridge", show_default=True, help="The name your code imports the SDK by."
)
def event(config_path: Path, event_type: str | None, typescript: bool, module: str) -> None:
    """Print the JSON Schema of an event type's payload, from its contract in bridge.yaml."""
    from bridge.config.schema import (  # noqa: PLC0415  (loads pydantic)
        event_contract,
        event_json_schema,
        typescript_declarations,
    )
    from bridge.config.specs import contract_specs  # noqa: PLC0415

    if event_type is None and not typescript:
        raise click.UsageError("give an event type, or --typescript for the declarations of all types")
    config = read_config(config_path, offline=True)
    if typescript:
        contracts = (
            contract_specs(config).values() if event_type is None else [event_contract(config, event_type)]
        )
        click.echo(typescript_declarations(contracts, module), nl=False)
        return
    found = event_json_schema(config, str(event_type))
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))
