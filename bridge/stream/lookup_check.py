"""A reload's new plan, before it replaces the old one: do its lookups have the columns that it reads of them?

A session asks the same when it begins, and halts. Asked here, the old plan goes on instead, as with whatever else a
reload refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from threading import Thread
from time import monotonic

import psycopg

from bridge.errors import BridgeError, ConfigError, Halt
from bridge.postgres.entities import Enricher
from bridge.stream.spec import StreamSpec
from bridge.stream.target_tables import connect_catalog, examine_target

PATIENCE_SECONDS = 2.0
"""For all servers together. One that does not answer by then keeps no reload waiting: the session asks it again."""


def require_columns(plans: Sequence[StreamSpec]) -> None:
    """Raises ConfigError if a lookup does not have a column that its pipeline reads of it. What else a server says, the
    plan's session tells."""
    end = monotonic() + PATIENCE_SECONDS
    found: list[Halt] = []
    threads = [
        Thread(target=_ask, args=[plan, found.append], name=f"check {plan.stream}", daemon=True)
        for plan in plans
        if any(step.lookup is not None for pipeline in plan.pipelines for step in pipeline.steps)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - monotonic()))
    for halt in found:
        raise ConfigError(str(halt.args[0]), reason=halt.reason, hint=halt.hint)


def _ask(plan: StreamSpec, tell: Callable[[Halt], None]) -> None:
    try:
        with connect_catalog(plan) as target:
            planner, _ = examine_target(plan, target)
        with closing(Enricher(plan.dsns, plan.stream)) as enricher:
            enricher.begin_check(planner.lookups())
            enricher.checked(PATIENCE_SECONDS)
    except Halt as halt:
        if halt.reason == "lookup_column":
            tell(halt)
    except (BridgeError, psycopg.Error, OSError):
        return
