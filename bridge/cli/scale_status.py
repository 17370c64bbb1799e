"""`bridge scale status`: relays, the log, partitions and who applies them, as the servers tell it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.options import config_option, read_config, require_log

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.stream.spec import RelaySpec, StreamSpec

_SECONDS = 5.0


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(config_path: Path, *, as_json: bool) -> None:
    """Show relays, the log, each partition, its lag and the worker that applies it, of all machines. Exit code 1 if
    something is not being done.

    Asks the servers, not the bridges: wherever these run.
    """
    told = scale_of(require_log(read_config(config_path)))
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        for line in _lines(told):
            click.echo(line)
    sys.exit(1 if told["problems"] else 0)


def scale_of(config: Config) -> dict[str, Any]:
    """As JSON values. Raises CannotConnect where a database does not answer; of the log, that is a problem in it."""
    from bridge.cli.status import relay_of, shared_of  # noqa: PLC0415
    from bridge.plans import relay_plans, stream_plans  # noqa: PLC0415  (loads psycopg)

    plans, problems = stream_plans(config), list[dict[str, str]]()
    relays = []
    for one in relay_plans(config):
        told = relay_of(one)
        told["relay"] |= _log(one, problems)
        relays.append(told)
        _judge_relay(one, told, problems)
    shared = shared_of(plans)
    workers = {one["member"]: one for one in shared["members"]}
    claims = {row: one for one in workers.values() for row in one["streams"]}
    lags = {row: lag for one in relays for row, lag in one["relay"]["lag_bytes"].items()}
    targets = [_target(plan, claims, lags, problems) for plan in plans]
    return {"relays": relays, "targets": targets, "workers": list(workers.values()), "problems": problems}


def _log(relay: RelaySpec, problems: list[dict[str, str]]) -> dict[str, Any]:
    from bridge.bus.connection import Bus  # noqa: PLC0415  loads nats-py
    from bridge.bus.journal import Journal  # noqa: PLC0415
    from bridge.errors import BridgeError  # noqa: PLC0415

    with closing(Bus(relay.bus, "outbox_bridge scale status")) as bus:
        try:
            bus.connect(_SECONDS)
            held, most = Journal(bus, relay.relay, lambda: None).size().result(_SECONDS)
        except BridgeError as error:
            problems.append(_problem(relay.relay, error.reason, str(error.args[0]), error.hint))
            return {}
        except TimeoutError:
            problems.append(
                _problem(relay.relay, "bus_away", "the log does not answer", "nats server report jetstream")
            )
            return {}
    return {"log_bytes": held, "log_limit_bytes": most if most > 0 else None}


def _judge_relay(relay: RelaySpec, told: dict[str, Any], problems: list[dict[str, str]]) -> None:
    has = told["relay"]["partitions"]
    if has is not None and has != relay.partitions:
        said = f"it divides into {has} partitions, and scale.partitions is {relay.partitions}"
        problems.append(_problem(relay.relay, "partitions_differ", said, "bridge scale repartition"))
    if told["phase"] != "streaming":
        problems.append(_problem(relay.relay, "relay_away", "nobody reads its slot", "bridge relay"))


def _problem(where: str, reason: str, message: str, hint: str) -> dict[str, str]:
    return {"where": where, "reason": reason, "message": message, "hint": hint}


def _target(
    plan: StreamSpec, claims: dict[str, Any], lags: dict[str, int | None], problems: list[dict[str, str]]
) -> dict[str, Any]:
    from bridge.operate.connect import connect_ledger, target_errors  # noqa: PLC0415
    from bridge.postgres import progress  # noqa: PLC0415
    from bridge.postgres.partitions import ledger_rows  # noqa: PLC0415

    with target_errors("scale status"), connect_ledger(plan, "scale status", whose=False) as target:
        rows = {row: progress.checkpoint(target, row) for row in plan.rows}
        there = ledger_rows(target, plan.stream)
    if others := sorted(set(there) - set(plan.rows)):
        said = f"its ledger is divided in another way: {', '.join(others)}"
        problems.append(_problem(plan.stream, "partitions_differ", said, "bridge scale repartition"))
    problems += [
        _problem(row, "unclaimed", "nobody applies it", "bridge worker")
        for row in plan.rows
        if row not in claims
    ]
    return {
        "stream": plan.stream,
        "connection": plan.connection,
        "source": plan.source,
        "partitions": [
            {
                "row": row,
                "mode": found["mode"] if found else None,
                "applied_lsn": found["applied_lsn"] if found else None,
                "lag_bytes": lags.get(row),
                "worker": {key: claims[row][key] for key in ("member", "host", "pid")}
                if row in claims
                else None,
            }
            for row, found in rows.items()
        ],
    }


def _lines(told: dict[str, Any]) -> Iterator[str]:
    from bridge.cli.scale_lines import relay_lines  # noqa: PLC0415
    from bridge.cli.status import size  # noqa: PLC0415

    for relay in told["relays"]:
        yield from relay_lines(relay)
        slot = relay["slot"]
        if slot.get("name"):
            yield f"  slot {slot['name']}: retains {size(slot.get('retained_wal_bytes'))} of WAL"
    for one in told["targets"]:
        parts = one["partitions"]
        yield f"target {one['connection']}, stream {one['stream']}: {len(parts)} partitions"
        for part in parts:
            name = part["row"].removeprefix(f"{one['stream']}.")
            lag = "reads the table" if part["lag_bytes"] is None else f"{size(part['lag_bytes'])} behind"
            who = part["worker"]
            by = f"{who['host'] or who['member']}, pid {who['pid']}" if who else "nobody applies it"
            yield f"  {name}: {part['mode'] or 'has not begun'}, {lag}, {by}"
    for problem in told["problems"]:
        if problem["reason"] == "unclaimed":
            continue  # it stands at its partition
        yield f"{problem['where']}: {problem['reason']}  {problem['message']}"
        yield f"  fix: {problem['hint']}"
    free = [problem["where"] for problem in told["problems"] if problem["reason"] == "unclaimed"]
    if free:
        yield f"nobody applies {', '.join(free)}"
        yield "  fix: bridge worker"
