"""What is wrong with a plan and does not stop its stream: a role with more privileges than the bridge needs, rows of an
own outbox that may cost themselves.

`strict` refuses such a role, so it is asked for before anything else. Otherwise a thread tells the log a moment after
the start: no event waits for what only an operator reads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing

import psycopg

from bridge.errors import BridgeError, Halt
from bridge.planning.spec import TableSpec
from bridge.postgres.catalog import excess_powers
from bridge.postgres.connect import connect
from bridge.postgres.own_outbox import OutboxFinding, outbox_findings
from bridge.postgres.profiles import SOURCE
from bridge.stream.spec import StreamSpec, Watcher
from bridge.stream.target_tables import connect_catalog

_AFTER_SECONDS = 1.0
_AGAIN_SECONDS = 30.0  # after a server that did not answer


def refuse_powers(plan: StreamSpec) -> None:
    """Raise Halt if the roles may do more than the bridge needs. For `strict`."""
    powers, _ = _found(plan)
    if powers:
        raise Halt(
            f"strict: {'; '.join(powers)}",
            reason="role_too_powerful",
            hint="connect as a role with exactly the printed grants: bridge schema source, bridge schema target",
        )


def tell_later(plan: StreamSpec, watcher: Watcher, ended: threading.Event) -> None:
    """Tell the watcher, from a thread of its own, unless it ends before."""

    def body() -> None:
        wait = _AFTER_SECONDS
        while not ended.wait(wait):
            try:
                powers, doubts = _found(plan)
            except (psycopg.Error, BridgeError):  # the stream says what is wrong with its servers
                wait = _AGAIN_SECONDS
                continue
            for power in powers:
                watcher.log("the role has more privileges than the bridge needs", what=power)
            for doubt in doubts:
                watcher.log("rows of the outbox may cost themselves", what=doubt.message, fix=doubt.fix)
            return

    threading.Thread(target=body, name=f"doubts {plan.stream}", daemon=True).start()


def _found(plan: StreamSpec) -> tuple[Sequence[str], Sequence[OutboxFinding]]:
    """The powers of the roles that are not needed, and the outbox's warnings."""
    tables = [
        (spec.schema, spec.table)
        for pipeline in plan.pipelines
        for spec in pipeline.destinations.values()
        if isinstance(spec, TableSpec) and spec.connection == plan.connection
    ]
    with closing(connect_catalog(plan)) as target:
        powers = [f"on the target, {power}" for power in excess_powers(target, tables)]
    with closing(connect(plan.source_dsn, SOURCE, f"check/{plan.stream}")) as source:
        outbox = (plan.outbox.schema, plan.outbox.table)
        powers += [f"on the source, {power}" for power in excess_powers(source, [outbox])]
        publication = None if plan.capture == "poll" else plan.publication
        doubts = [one for one in outbox_findings(source, plan.outbox, publication) if one.level == "warn"]
    return powers, doubts
