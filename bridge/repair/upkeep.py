"""The daemon's background work: retry parked dead letters, end messages of destinations that are gone, prune the
outbox, add up its counts of repeats, date the streams that it has. It has its own thread and connections, so that it
never delays a stream.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import psycopg

from bridge.errors import BridgeError
from bridge.log import Log
from bridge.postgres.connect import connect
from bridge.postgres.outbox import Outbox, fold
from bridge.postgres.profiles import CATALOG, UPKEEP
from bridge.postgres.safe_error import safe_message
from bridge.postgres.served import DATED_SECONDS, date_ledger, date_registration
from bridge.postgres.stranded import NO_DESTINATION
from bridge.postgres.target import Refused
from bridge.postgres.whose import Owned
from bridge.repair.dead import retry_due
from bridge.repair.prune import prune
from bridge.repair.stranded import age
from bridge.stream.spec import StreamSpec

RETRY_SECONDS = 3.0
PRUNE_SECONDS = 60.0
STRANDED_SECONDS = 15.0


class Upkeep:
    """plans: returns the current plans, so that a reload takes effect at once. Times in seconds."""

    def __init__(
        self,
        plans: Callable[[], Sequence[StreamSpec]],
        owned: Owned,
        *,
        retry_every: float = RETRY_SECONDS,
        prune_every: float = PRUNE_SECONDS,
    ) -> None:
        self._plans = plans
        self._owned = owned
        self._stopping = threading.Event()
        self._log = Log("bridge.upkeep")
        self._troubles: dict[str, str] = {}
        self._retry_every = retry_every
        self._prune_every = prune_every
        self._prune_at = time.monotonic() + prune_every
        self._age_at: dict[str, float] = {}
        self._date_at: dict[str, float] = {}
        self.thread = threading.Thread(target=self._body, name="upkeep", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ask it to stop; it first finishes the current prune batch or dead letter."""
        self._stopping.set()

    def _body(self) -> None:
        while not self._stopping.wait(self._retry_every):
            plans = self._plans()
            for plan in plans:
                self._guarded(f"dead letters of {plan.stream}", self._retry, plan)
                if time.monotonic() >= self._age_at.get(plan.stream, 0.0):
                    self._age_at[plan.stream] = time.monotonic() + STRANDED_SECONDS
                    self._guarded(f"stranded messages of {plan.stream}", self._age, plan)
                if time.monotonic() >= self._date_at.get(plan.stream, 0.0):
                    self._date_at[plan.stream] = time.monotonic() + DATED_SECONDS
                    self._guarded(f"the registration of {plan.stream}", self._date, plan)
            if plans and time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + self._prune_every
                for plan in {plan.source: plan for plan in plans}.values():
                    self._guarded(f"pruning of {plan.source}", self._prune, plan)

    def _guarded(self, what: str, work: Callable[[StreamSpec], None], plan: StreamSpec) -> None:
        """Log a fault only when it changes; the streams report the same faults."""
        try:
            work(plan)
        except (BridgeError, psycopg.Error) as error:
            trouble = safe_message(error)
        except Refused as refused:
            trouble = safe_message(refused.error)
        except Exception as error:
            trouble = f"a defect in the bridge: {type(error).__name__}"
        else:
            trouble = ""
        if trouble and trouble != self._troubles.get(what):
            self._log.warning("upkeep failed", what=what, message=trouble)
        self._troubles[what] = trouble

    def _retry(self, plan: StreamSpec) -> None:
        if not self._owned(plan.stream, plan.source_dsn, plan.target_dsn):
            return
        outcomes = retry_due(plan)
        for result in ("applied", "filtered", "failed", "refused"):
            letters = sum(one.result == result for one in outcomes)
            if letters:
                self._log.info(
                    "parked dead letters retried", stream=plan.stream, result=result, letters=letters
                )

    def _age(self, plan: StreamSpec) -> None:
        if not self._owned(plan.stream, plan.source_dsn, plan.target_dsn):
            return
        died, soonest = age(plan)
        for one, count in died:
            self._log.warning(
                "dead letters",
                stream=plan.stream,
                pipeline=one.pipeline,
                destination=one.destination,
                code=NO_DESTINATION,
                letters=count,
            )
        if soonest is not None:
            self._age_at[plan.stream] = time.monotonic() + min(STRANDED_SECONDS, soonest)

    def _date(self, plan: StreamSpec) -> None:
        """Whatever the stream does: it is not left behind as long as a bridge has it."""
        if not self._owned(plan.stream, plan.source_dsn, plan.target_dsn):
            self._date_at.pop(plan.stream)  # it may be made at any moment
            return
        with connect(plan.source_dsn, UPKEEP, "upkeep") as source:
            date_registration(source, plan.stream)
        with connect(
            plan.target_dsn, CATALOG, "bridge upkeep", where=f"the target of stream {plan.stream}"
        ) as target:
            date_ledger(target, plan.stream)

    def _prune(self, plan: StreamSpec) -> None:
        if plan.outbox != Outbox():
            return  # an outbox of the customer's own is theirs to prune
        with connect(plan.source_dsn, UPKEEP, "prune") as source:
            pruned = prune(source, plan.retention, go_on=lambda: not self._stopping.is_set())
            fold(source, go_on=lambda: not self._stopping.is_set())
        if pruned.deleted or pruned.emptied:
            self._log.info("pruned", deleted=pruned.deleted, emptied=pruned.emptied, stopped=pruned.stopped)
