"""`bridge emit`: put one event in by hand, to try a pipeline or to mend something."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import rich_click as click

from bridge.cli.options import config_option, read_config
from bridge.config.model import Config
from bridge.errors import BridgeError


class EmitRefused(BridgeError):
    """The event was not put in."""

    reason = "emit_refused"


@click.command()
@config_option
@click.argument("event_type", metavar="TYPE")
@click.argument("payload", metavar="JSON")
@click.option("--idempotency-key", metavar="K", help="A key used before for this type: nothing is put in.")
@click.option("--key", metavar="K", help="Events with the same key stay in order.")
def emit(
    *, config_path: Path, event_type: str, payload: str, idempotency_key: str | None, key: str | None
) -> None:
    """Put one event into the outbox and print its id. JSON is an object, or - to read standard input."""
    config = read_config(config_path)
    document = parse(sys.stdin.read() if payload == "-" else payload)
    put(config, event_type, document, idempotency_key, key)


def parse(text: str) -> dict[str, Any]:
    """The payload, numbers exact. Raises a usage error that tells the position, never the text."""
    try:
        document = json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError as error:
        raise click.BadParameter(
            f"not valid JSON: {error.msg} at line {error.lineno} column {error.colno}", param_hint="JSON"
        ) from None
    except (RecursionError, ValueError):
        raise click.BadParameter("nested too deeply, or with a number too long", param_hint="JSON") from None
    if not isinstance(document, dict):
        raise click.BadParameter('must be an object, as in {"name": "value"}', param_hint="JSON")
    return document


def put(
    config: Config, event_type: str, document: dict[str, Any], idempotency_key: str | None, key: str | None
) -> None:
    """Emit in a transaction of its own and print the id."""
    import psycopg  # noqa: PLC0415  (a third of the start-up time)

    from bridge import producer  # noqa: PLC0415
    from bridge.cli.connect import connect_source, need_own_outbox  # noqa: PLC0415

    need_own_outbox(config, command="emit")
    with connect_source(config, command="emit") as connection:
        before = None
        try:
            with connection.transaction():
                if idempotency_key is not None:
                    found = connection.execute(
                        "select outbox.first_id(%s, %s)", [event_type, idempotency_key]
                    )
                    before = found.fetchone()
                event_id = producer.emit(
                    connection, event_type, document, idempotency_key=idempotency_key, key=key
                )
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from None
        except psycopg.Error as error:
            raise EmitRefused(
                f"the source refused the event: {error.diag.message_primary or error.__class__.__name__}",
                hint=_HINTS.get(error.sqlstate or "", "bridge doctor"),
            ) from None
    duplicate = before is not None and before[0] is not None
    click.echo(f"{event_id}  (put in before with this idempotency key)" if duplicate else str(event_id))


_HINTS = {
    "42501": "grant outbox_producer to the role that source.dsn names",
    "3F000": "bridge install",
    "42883": "bridge install",
    "25006": "connect to the primary: add target_session_attrs=read-write to source.dsn",
}
