"""The daemon's background work: retry parked dead letters, end messages of destinations that are gone, prune the
outbox, add up its counts of repeats, date the streams that it has. It has its own threads and connections, so that it
never delays a stream: one thread for the sources, and one look at a time at each target, over a connection that is
kept. So the streams of one target wait for no other target.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import psycopg

from bridge.config.several import one_a_source
from bridge.errors import BridgeError
from bridge.log import Log
from bridge.postgres.connect import connect
from bridge.postgres.dead_letters import due
from bridge.postgres.outbox import Outbox, fold
from bridge.postgres.profiles import CATALOG, UPKEEP
from bridge.postgres.safe_error import safe_message
from bridge.postgres.served import DATED_SECONDS, date_ledger, date_registration
from bridge.postgres.stranded import NO_DESTINATION, find
from bridge.postgres.target import Refused
from bridge.postgres.versions import halt, newer
from bridge.postgres.whose import Owned
from bridge.repair.dead import retry_parked
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
        self._date_at: dict[tuple[str, str], float] = {}  # by side and stream
        self._looks: dict[str, threading.Thread] = {}  # by target, each the last one
        self._targets: dict[str, psycopg.Connection] = {}  # used by its look alone
        self._newer: dict[str, bool] = {}  # by target: did its last look find a ledger of a newer release?
        self.thread = threading.Thread(target=self._body, name="upkeep", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ask it to stop; it first finishes the current prune batch or dead letter."""
        self._stopping.set()

    def _body(self) -> None:
        while not self._stopping.wait(self._retry_every):
            plans = self._plans()
            self._look_at_targets(plans)
            for plan in one_a_source(plans):
                streams = [
                    one for one in plans if one.source == plan.source and self._is_due(one.source, one)
                ]
                if streams:
                    self._guarded(
                        f"the registrations of {plan.source}",
                        partial(self._date_registrations, streams),
                        plan,
                    )
            if (
                plans
                and time.monotonic() >= self._prune_at
                and all(p.target_dsn in self._newer for p in plans)
            ):
                self._prune_at = time.monotonic() + self._prune_every
                for plan in one_a_source(plans):
                    if not any(self._newer[one.target_dsn] for one in plans if one.source == plan.source):
                        self._guarded(f"pruning of {plan.source}", self._prune, plan)
        for look in self._looks.values():
            look.join()
        for connection in self._targets.values():
            connection.close()

    def _look_at_targets(self, plans: Sequence[StreamSpec]) -> None:
        """Begin a look at each target whose last one has ended."""
        by_target: dict[str, list[StreamSpec]] = {}
        for plan in plans:
            by_target.setdefault(plan.target_dsn, []).append(plan)
        for dsn in [dsn for dsn, look in self._looks.items() if not look.is_alive()]:
            self._looks.pop(dsn)
            if dsn not in by_target and (unused := self._targets.pop(dsn, None)) is not None:
                unused.close()
        for dsn, streams in by_target.items():
            if dsn not in self._looks:
                name = f"upkeep {streams[0].connection}"
                self._looks[dsn] = threading.Thread(target=self._look, args=[streams], name=name, daemon=True)
                self._looks[dsn].start()

    def _look(self, plans: Sequence[StreamSpec]) -> None:
        """At one target, for all of its streams."""
        known = {plan.stream: plan for plan in plans}
        parked: dict[str, list[str]] = {}

        def ask(_: StreamSpec) -> None:
            connection = self._target(plans[0])
            if (found := newer(connection, "target")) is not None:
                self._newer[plans[0].target_dsn] = True
                raise halt(found)
            self._newer[plans[0].target_dsn] = False
            parked.update(due(connection, known))

        asked = self._guarded(f"the ledger of {plans[0].connection}", ask, plans[0])
        self._newer.setdefault(
            plans[0].target_dsn, False
        )  # one that is away keeps no source from being pruned
        if not asked:
            return
        for stream, ids in parked.items():
            self._guarded(f"dead letters of {stream}", partial(self._retry, ids), known[stream])
        for plan in plans:
            if time.monotonic() >= self._age_at.get(plan.stream, 0.0):
                self._age_at[plan.stream] = time.monotonic() + STRANDED_SECONDS
                self._guarded(f"stranded messages of {plan.stream}", self._age, plan)
            if self._is_due(plan.target_dsn, plan):
                self._guarded(f"the ledger row of {plan.stream}", self._date_ledger, plan)

    def _target(self, plan: StreamSpec) -> psycopg.Connection:
        """The connection to the plan's target, made anew where it was lost."""
        known = self._targets.get(plan.target_dsn)
        if known is None or known.broken or known.closed:
            self._targets.pop(plan.target_dsn, None)
            known = connect(plan.target_dsn, CATALOG, f"bridge-dead/{plan.connection}")
            self._targets[plan.target_dsn] = known
        return known

    def _guarded(self, what: str, work: Callable[[StreamSpec], None], plan: StreamSpec) -> bool:
        """Log a fault only when it changes; the streams report the same faults. True: there was none."""
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
        return not trouble

    def _retry(self, ids: Sequence[str], plan: StreamSpec) -> None:
        if not self._owned(plan.stream, plan.source_dsn, plan.target_dsn):
            return
        outcomes = retry_parked(plan, ids)
        for result in ("applied", "filtered", "failed", "refused"):
            letters = sum(one.result == result for one in outcomes)
            if letters:
                self._log.info(
                    "parked dead letters retried", stream=plan.stream, result=result, letters=letters
                )

    def _age(self, plan: StreamSpec) -> None:
        if not find(self._target(plan), plan.stream, plan.sinks):
            return  # a source that does not answer is not asked for nothing: the others' letters would wait
        if not self._owned(plan.stream, plan.source_dsn, plan.target_dsn):
            return
        died, soonest = age(self._target(plan), plan)
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

    def _is_due(self, side: str, plan: StreamSpec) -> bool:
        """Is the stream to be dated again on this side? Whatever it does: it is not left behind as long as a bridge has
        it."""
        if time.monotonic() < self._date_at.get((side, plan.stream), 0.0):
            return False
        try:
            ours = self._owned(plan.stream, plan.source_dsn, plan.target_dsn)
        except (BridgeError, psycopg.Error):
            return False  # the stream reports it
        if ours:
            self._date_at[side, plan.stream] = time.monotonic() + DATED_SECONDS
        return ours

    def _date_registrations(self, streams: Sequence[StreamSpec], plan: StreamSpec) -> None:
        with connect(plan.source_dsn, UPKEEP, "upkeep") as source:
            for row in (row for one in streams for row in one.rows):
                date_registration(source, row)

    def _date_ledger(self, plan: StreamSpec) -> None:
        for row in plan.rows:
            date_ledger(self._target(plan), row)

    def _prune(self, plan: StreamSpec) -> None:
        if plan.outbox != Outbox():
            return  # an outbox of the customer's own is theirs to prune
        with connect(plan.source_dsn, UPKEEP, "prune") as source:
            pruned = prune(source, plan.retention, go_on=lambda: not self._stopping.is_set())
            fold(source, go_on=lambda: not self._stopping.is_set())
        if pruned.deleted or pruned.emptied:
            self._log.info("pruned", deleted=pruned.deleted, emptied=pruned.emptied, stopped=pruned.stopped)
