"""A relay and the partitions of a target, where there is a log: registry, ledger and slot compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import psycopg

from bridge.doctor import slot
from bridge.doctor.check import Check, ok
from bridge.postgres.partitions import registered_rows
from bridge.postgres.progress import here, registered
from bridge.postgres.relay import read_relay
from bridge.stream.spec import RelaySpec, StreamSpec

_REPARTITION = "bridge scale repartition"


def partitions(
    source: psycopg.Connection, target: psycopg.Connection, plan: StreamSpec, ledger: Sequence[str]
) -> Iterator[Check]:
    """Do source and target know the same partitions, and those that the file says? ledger: the target's rows."""
    known = set(registered_rows(source, plan.stream))
    wanted = set(plan.rows)
    if others := sorted({*ledger, *known} - wanted):
        yield Check(
            "error",
            "source",
            "partitions_differ",
            f"stream {plan.stream} is divided into {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}, and "
            f"the file says {plan.partitions} partitions",
            _REPARTITION,
            "command",
        )
        return
    if not known and not ledger:
        yield from slot.registry(source, target, plan, None)  # new, or renamed
        return
    there = here(target)
    for row in plan.rows:
        found = registered(source, row)
        if found is None:
            continue
        if (found["target_system"], found["target_database"]) != there or row not in ledger:
            yield from slot.registry(source, target, replace(plan, stream=row), {} if row in ledger else None)
            return
    begun = len(known & wanted)
    yield ok(
        "source", "registry", f"stream {plan.stream}: {begun} of {plan.partitions} partitions are registered"
    )


def relay(source: psycopg.Connection, spec: RelaySpec, plan: StreamSpec) -> Iterator[Check]:
    """Its row, and its slot. plan: one of the streams that it serves."""
    known = read_relay(source, spec.relay)
    if known is None or not known.incarnation:
        yield ok("source", "relay", f"{spec.relay} has not begun: bridge relay")
        return
    if known.partitions != spec.partitions:
        yield Check(
            "error",
            "source",
            "partitions_differ",
            f"relay {spec.relay} divides into {known.partitions} partitions, and the file says {spec.partitions}",
            _REPARTITION,
            "command",
        )
    else:
        yield ok(
            "source", "relay", f"{spec.relay}: {known.partitions} partitions, incarnation {known.incarnation}"
        )
    yield from slot.slot(source, replace(plan, stream=spec.relay), f"{spec.relay}_{known.incarnation}")
