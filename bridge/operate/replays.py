"""A replay that a person asks for: one destination written again, with its row in the audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.operate.audit import Actor, need_audit, record

if TYPE_CHECKING:
    from datetime import datetime

    from bridge.config.model import Config
    from bridge.repair.replay import Replayed


@dataclass(frozen=True, slots=True)
class ReplayOrder:
    """destination: PIPELINE/NAME, or NAME where one has it. name: of the replay; a sink gets an event once a name."""

    destination: str
    since: datetime
    until: datetime | None = None
    name: str = ""
    dry_run: bool = False
    deliver: bool = False
    force: bool = False


def run_replay(
    config: Config, asked: ReplayOrder, actor: Actor, told: Callable[[Replayed], None] = lambda _: None
) -> tuple[tuple[str, str], Replayed]:
    """The (pipeline, destination), and what was done. told: as replay()'s. Raises BridgeError."""
    import psycopg  # noqa: PLC0415  `bridge --help` must not import everything

    from bridge.errors import BridgeError, CannotConnect  # noqa: PLC0415
    from bridge.operate.connect import connect_ledger  # noqa: PLC0415
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.postgres.safe_error import safe_message  # noqa: PLC0415
    from bridge.repair.history import Order, find  # noqa: PLC0415
    from bridge.repair.replay import replay  # noqa: PLC0415

    plan, pipeline, spec = find(stream_plans(config), asked.destination)
    times = f"{asked.since.isoformat()}/{asked.until.isoformat() if asked.until else ''}"
    order = Order(pipeline, spec, asked.since, asked.until, name=asked.name or times, dry_run=asked.dry_run)
    subject = {"destination": "/".join(order.unit), "times": times, "dry_run": asked.dry_run}
    with connect_ledger(plan, "replay", writes=True) as ledger:  # one of a newer release is refused
        need_audit(ledger, actor, "replay")
        record(ledger, actor, "replay", plan.stream, subject=subject, result="begun")
    try:
        done = replay(plan, order, force=asked.force, deliver=asked.deliver, told=told)
    except psycopg.Error as error:
        said = f"the replay ended early: {safe_message(error)}"
        if error.sqlstate is None:
            raise CannotConnect(
                said, hint="run it again; where that goes on, bridge doctor looks at each connection"
            ) from None
        raise BridgeError(f"{said} (SQLSTATE {error.sqlstate})", hint="run it again") from None
    with connect_ledger(plan, "replay", writes=True) as ledger:
        result = f"{done.read} read, {done.written} written, {done.failed} failed"
        record(ledger, actor, "replay", plan.stream, subject=subject, result=result)
    return order.unit, done


def lines(unit: tuple[str, str], done: Replayed, *, dry_run: bool) -> list[str]:
    """What was done, as text; what failed is in `done.failures`."""
    would = "would be " if dry_run else ""
    told = [f"{done.read} events read, {done.written} {would}written to {'/'.join(unit)}"]
    if done.elsewhere:
        told.append(f"{done.elsewhere} do not go here, because of a filter or branch")
    if done.emptied:
        told.append(f"{done.emptied} were emptied by prune and skipped")
    return [*told, *(f"note: {note}" for note in done.notes)]
