"""`bridge emit`: insert one event by hand, to try a pipeline or to repair something."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import rich_click as click

from bridge.cli.options import config_option, parse_payload, read_one, source_option
from bridge.config.model import Config
from bridge.errors import BridgeError
from bridge.producer import strict_json


class ContractBroken(BridgeError):
    """The event breaks its contract."""

    reason = "contract"
    hint = "correct the payload (bridge schema event TYPE shows the contract), or insert it with --force"


@click.command(panel="Run and watch")
@config_option
@source_option
@click.argument("event_type", metavar="TYPE")
@click.argument("payload", metavar="JSON")
@click.option(
    "--idempotency-key",
    metavar="K",
    help="If this type already has an event with this key, insert nothing.",
)
@click.option("--key", metavar="K", help="Events with the same key stay in order.")
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Say on standard error what became of it, at most this long; 0: do not wait.",
)
@click.option("--force", is_flag=True, help="Insert it even if it breaks its contract.")
def emit(
    *,
    config_path: Path,
    event_type: str,
    payload: str,
    idempotency_key: str | None,
    key: str | None,
    wait: float,
    force: bool,
) -> None:
    """Insert one event into the outbox and print its id. JSON is an object, or - to read standard input."""
    config = read_one(config_path)
    document = parse_payload(sys.stdin.read() if payload == "-" else payload)
    broken = contract_broken(config, event_type, document)
    if broken and not force:
        raise ContractBroken(f"{event_type} was not inserted, because it breaks its contract: {broken}")
    if broken:
        click.echo(f"warning: {event_type} breaks its contract: {broken}", err=True)
    nowhere = leads_nowhere(config, event_type)
    if nowhere:
        click.echo(f"warning: {nowhere}", err=True)
    put(config, event_type, document, idempotency_key=idempotency_key, key=key, wait=wait)


def contract_broken(config: Config, event_type: str, document: dict[str, Any]) -> str:
    """How the event breaks its contract in bridge.yaml, with the field; empty: it does not."""
    from bridge.config.specs import contract_specs  # noqa: PLC0415  (loads pydantic)
    from bridge.planning.contract import Contract  # noqa: PLC0415  (loads orjson)

    spec = contract_specs(config).get(event_type)
    try:
        payload = strict_json(document).encode()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    failure = spec and Contract(spec).violation(document, payload)
    return failure.cause if failure else ""


def leads_nowhere(config: Config, event_type: str) -> str:
    """A warning if no pipeline takes the type, with the nearest type; empty: one does, or it is ignored on purpose."""
    from bridge.planning.taken import did_you_mean  # noqa: PLC0415
    from bridge.plans import types_taken  # noqa: PLC0415  (loads psycopg)

    taken = types_taken(config)
    if not taken.unmatched(event_type):
        return ""
    return "; ".join(filter(None, (f"no pipeline takes {event_type}", did_you_mean(taken.near(event_type)))))


def put(
    config: Config,
    event_type: str,
    document: dict[str, Any],
    *,
    idempotency_key: str | None,
    key: str | None,
    wait: float,
) -> None:
    """Emit in its own transaction and print the id; then what became of it within `wait` seconds."""
    from bridge import producer  # noqa: PLC0415  (loads psycopg)
    from bridge.cli import emitted  # noqa: PLC0415
    from bridge.operate.connect import connect_source, need_own_outbox  # noqa: PLC0415

    need_own_outbox(config, command="emit")
    with connect_source(config, command="emit", grant="outbox_producer") as connection:
        first = None
        if idempotency_key is not None:
            [first] = connection.execute(
                "select outbox.first_id(%s, %s)", [event_type, idempotency_key]
            ).fetchone() or [None]
        try:
            event_id = producer.emit(
                connection, event_type, document, idempotency_key=idempotency_key, key=key
            )
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from None
        click.echo(f"{event_id}  (inserted earlier with this idempotency key)" if first else str(event_id))
        if wait:
            for line in emitted.outcome(config, connection, str(event_id), wait):
                click.echo(line, err=True)
