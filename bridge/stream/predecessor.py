"""The bridge for which this one stands by: is its session still at the target? Asked often, because it costs nothing.

Whether the stream may be taken, only a whole session finds out (protocol/preflight.py, stand_by). This says when to try
at once: as soon as a session that was there has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import LiteralString

import psycopg

from bridge.errors import BridgeError
from bridge.postgres.connect import connect
from bridge.postgres.profiles import CATALOG, working
from bridge.stream.spec import StreamSpec

_ASK_SECONDS = 0.1

_THERE: LiteralString = """
    select exists (select from pg_catalog.pg_stat_activity where starts_with(application_name, %s)
        and usename = current_user and pid <> pg_backend_pid() and datname = current_database())"""


def await_end(
    plan: StreamSpec, seconds: float, sleep: Callable[[float], bool], begun: Callable[[], None]
) -> None:
    """Until a session that is there now has ended, for at most so long. sleep: returns whether to give up. begun:
    called once it is known whether one is there."""
    end, was_there = time.monotonic() + seconds, False
    try:
        with closing(connect(plan.target_dsn, CATALOG, f"bridge-check/{plan.stream}")) as target:
            while target.execute(_THERE, [working(plan.stream)]).fetchone() == (True,):
                begun()
                was_there = True
                left = end - time.monotonic()
                if left <= 0 or sleep(min(left, _ASK_SECONDS)):
                    return
    except (psycopg.Error, BridgeError):
        pass  # the next session tells
    if not was_there:
        begun()
        sleep(max(0.0, end - time.monotonic()))
