"""Protocols that are wrong in one way each. The model must catch every one, or its silence means nothing.

A mutant replaces functions of the core (or, for the row lock and the fence, of the simulated target) while it
is applied. FOCUS names the acts that must happen often for a mutant to show itself soon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from bridge.protocol import events, preflight, requests, session
from bridge.protocol.events import ZERO, Lsn, Snapshot
from tests.model import faults
from tests.model import target as target_module
from tests.model.simulation import Simulation
from tests.model.target import Target

EVERYTHING = Snapshot(10**9, 10**9)
Life = session.Life
Patch = tuple[Any, str, Any]
MUTANTS: dict[str, Callable[[], list[Patch]]] = {}


def mutant(function: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
    MUTANTS[function.__name__] = function
    return function


@contextmanager
def applied(name: str, mutants: dict[str, Callable[[], list[Patch]]] = MUTANTS) -> Iterator[None]:
    patches = [patch.object(*each) for each in mutants[name]()]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()


def answering(generator: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Run a part of the protocol with some answers changed: change(request, answer)."""
    answer = None
    while True:
        try:
            request = generator.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = change(request, (yield request))


def judging(change: Callable[[Any, Any], Any]) -> Patch:
    """judge() with other facts: change(ledger, source) -> source."""
    judge = session.judge
    return (
        session,
        "judge",
        lambda ledger, source, registration, **more: judge(
            ledger, change(ledger, source), registration, **more
        ),
    )


# --- acknowledging ----------------------------------------------------------------------------------


@mutant
def confirms_what_it_received() -> list[Patch]:
    return [(Life, "confirmable", lambda self, verified: verified)]


@mutant
def confirms_before_the_commit() -> list[Patch]:
    take = Life.take

    def early(self: Any, batch: Any, *, inside: bool) -> Any:
        answer = yield from take(self, batch, inside=inside)
        if batch.events and batch.whole:
            yield from session.ask(requests.Confirm(batch.end_lsn))
        return answer

    return [(Life, "take", early)]


@mutant
def takes_commit_lsn_for_end_lsn() -> list[Patch]:
    take = Life.take

    def early(self: Any, batch: Any, *, inside: bool) -> Any:
        moved = replace(batch, end_lsn=Lsn(batch.end_lsn - 16)) if batch.whole and batch.events else batch
        return (yield from take(self, moved, inside=inside))

    return [(Life, "take", early)]


def _same_publication(self: Any, request: Any, answer: Any) -> Any:
    if isinstance(request, requests.Observe) and answer.publication is not None:
        return replace(answer, publication=self.ledger.publication)
    return answer


@mutant
def idles_without_a_publication_check() -> list[Patch]:
    look = Life.look_at_source
    return [
        (
            Life,
            "look_at_source",
            lambda self, at: answering(look(self, at), lambda r, a: _same_publication(self, r, a)),
        )
    ]


@mutant
def checks_that_the_publication_exists() -> list[Patch]:
    return [
        *idles_without_a_publication_check(),
        judging(
            lambda ledger, source: replace(
                source, publication=source.publication and (ledger.publication or source.publication)
            )
        ),
    ]


# --- two sources with one name ----------------------------------------------------------------------


def _without_looking() -> Patch:
    return session, "check_identity", lambda *_: None


def _without_comparing() -> Patch:
    return target_module, "of_source", lambda *_: True


@mutant
def compares_the_source_after_the_fence() -> list[Patch]:
    return [_without_looking(), _without_comparing()]


@mutant
def compares_the_source_before_the_fence_alone() -> list[Patch]:
    return [_without_comparing()]


@mutant
def stands_by_behind_another_source() -> list[Patch]:
    return [_without_looking()]


@mutant
def compares_the_cluster_alone() -> list[Patch]:
    def belongs(ledger: Any, source: Any) -> bool:
        return ledger.system_identifier in (None, source.system)

    return [(preflight, "belongs", belongs), (target_module, "of_source", belongs)]


# --- the ledger -------------------------------------------------------------------------------------


@mutant
def writes_the_ledger_in_its_own_transaction() -> list[Patch]:
    def apply(self: Any, batch: Any, after: Any, *, list_as: Any = None, thin: Any = None) -> Any:
        yield from session.ask(requests.Prepare(batch))
        yield from self.settle()
        yield from session.ask(requests.Apply(batch, self.ledger, self.ledger))
        if batch.whole:
            yield from session.ask(requests.Settle())
            yield from self.save(after, thin=thin)

    return [(Life, "apply", apply)]


@mutant
def fences_nobody() -> list[Patch]:
    def token(row: Any) -> Any:
        return row.applied_lsn, row.next.seq if row.next else 0, row.floor_lsn

    return [(target_module, "_token", token)]


@mutant
def fences_by_epoch_alone() -> list[Patch]:
    def token(row: Any) -> Any:
        return row.epoch, row.applied_lsn, row.next.seq if row.next else 0, row.floor_lsn

    return [(target_module, "_token", token)]


@mutant
def knows_its_place_in_the_stream_only() -> list[Patch]:
    """A target restored under an open session that polls: only the floor tells."""

    def token(row: Any) -> Any:
        return row.epoch, row.session, row.applied_lsn, row.next.seq if row.next else 0

    return [(target_module, "_token", token)]


@mutant
def does_not_wait_for_the_row() -> list[Patch]:
    def no_lock(self: Target, sent: Any) -> bool:
        sent.state = "locked" if target_module.same_row(self.ledger, sent.apply.before) else "fenced"
        return True

    def commit(self: Target, sent: Any) -> None:
        self.lock = sent
        Target_commit(self, sent)

    Target_commit = Target.commit
    return [
        (Target, "take_lock", no_lock),
        (Target, "commit", commit),
        (Simulation, "free_row", lambda self: None),
    ]


@mutant
def empties_applied() -> list[Patch]:
    save, apply = Life.save, Life.apply

    def empty(function: Any) -> Any:
        def emptied(self: Any, *arguments: Any, thin: Any = None, **more: Any) -> Any:
            yield from function(self, *arguments, thin=thin and EVERYTHING, **more)

        return emptied

    return [(Life, "save", empty(save)), (Life, "apply", empty(apply))]


@mutant
def skips_nothing_that_is_listed() -> list[Patch]:
    return [(events.Done, "has", lambda self, event: self.floor.shows(int(event.xid)))]


@mutant
def takes_a_part_of_a_transaction_for_the_whole() -> list[Patch]:
    """`applied` without seqs: the publication was altered in the middle, or a poll was cut off there."""

    def has(self: Any, event: Any) -> bool:
        return self.floor.shows(int(event.xid)) or int(event.xid) in self.listed

    return [(events.Done, "has", has)]


@mutant
def polls_unlisted_while_a_slot_is_made() -> list[Patch]:
    poll_once = Life.poll_once

    def unlisted(self: Any, mode: Any, *, listing: bool = False) -> Any:
        return poll_once(self, mode, listing=False)

    return [(Life, "poll_once", unlisted)]


# --- floors and goals -------------------------------------------------------------------------------


@mutant
def raises_the_floor_before_l_was_received() -> list[Patch]:
    look = Life.look_at_source

    def hasty(self: Any, at: Any) -> Any:
        if at.candidate is not None:
            at.candidate = replace(at.candidate, insert_lsn=ZERO)
        yield from look(self, at)

    return [(Life, "look_at_source", hasty)]


@mutant
def abandons_a_goal_half_read() -> list[Patch]:
    catch_up = Life.catch_up

    def abandon(self: Any, source: Any, reason: str) -> Any:
        if self.ledger.next is not None:
            yield from self.save(replace(self.ledger, next=None))
        yield from catch_up(self, source, reason)

    return [(Life, "catch_up", abandon)]


@mutant
def reads_a_goal_that_shows_a_running_xid() -> list[Patch]:
    def ask(request: Any) -> Any:
        if isinstance(request, requests.StillRunning):
            return False
        return (yield request)

    return [(session, "ask", ask)]


@mutant
def keeps_the_greater_of_two_positions() -> list[Patch]:
    raised, judge = session._raised, session.judge

    def greater(now: Any, goal: Any, mode: Any) -> Any:
        after = raised(now, goal, mode)
        return replace(
            after,
            applied_lsn=max(now.applied_lsn, after.applied_lsn),
            safe_lsn=max(now.safe_lsn, after.safe_lsn),
        )

    def kept(ledger: Any, source: Any, registration: Any, **more: Any) -> Any:
        judgement = judge(ledger, source, registration, **more)
        if judgement.forget_above is None:
            return judgement
        same = replace(judgement.ledger, applied_lsn=ledger.applied_lsn, safe_lsn=ledger.safe_lsn)
        return replace(judgement, ledger=same)

    return [(session, "_raised", greater), (session, "judge", kept)]


@mutant
def does_not_forget_a_lost_tail() -> list[Patch]:
    judge = session.judge
    return [
        (
            session,
            "judge",
            lambda *facts, **more: replace(judge(*facts, **more), forget_above=None),
        )
    ]


# --- preflight --------------------------------------------------------------------------------------


@mutant
def asks_for_no_witness() -> list[Patch]:
    return [judging(lambda ledger, source: replace(source, witness_present=True))]


@mutant
def applies_before_the_stream_has_brought_the_witness() -> list[Patch]:
    return [(session, "find_witness", lambda batch, ledger: True)]


@mutant
def trusts_a_source_that_forgot_what_it_registered() -> list[Patch]:
    return [(preflight, "_in_registry", lambda ledger, registration: None)]


@mutant
def judges_by_positions_only() -> list[Patch]:
    return [*asks_for_no_witness(), *trusts_a_source_that_forgot_what_it_registered()]


@mutant
def does_not_look_at_the_end_of_the_wal() -> list[Patch]:
    """Alone it hides behind the witness and the registry, which see all that it would."""
    return [
        judging(lambda ledger, source: replace(source, flush_lsn=Lsn(10**12), witness_present=True)),
        *trusts_a_source_that_forgot_what_it_registered(),
    ]


def _slot_where_we_left_it(ledger: Any, source: Any) -> Any:
    if source.slot is None:
        return source
    goal = ledger.next.lsn if ledger.next and ledger.next.from_slot else ledger.safe_lsn
    return replace(
        source,
        slot=replace(source.slot, confirmed_flush=min(source.slot.confirmed_flush, goal, ledger.safe_lsn)),
    )


def _stream_from_any_slot() -> Patch:
    stream = Life.stream

    def change(self: Any, request: Any, answer: Any) -> Any:
        if isinstance(request, requests.ReadSource) and answer.slot is not None:
            return replace(answer, slot=replace(answer.slot, confirmed_flush=ZERO))
        return answer

    return (
        Life,
        "stream",
        lambda self, *facts, **more: answering(stream(self, *facts, **more), lambda r, a: change(self, r, a)),
    )


@mutant
def does_not_compare_slot_and_ledger() -> list[Patch]:
    return [judging(_slot_where_we_left_it), _stream_from_any_slot()]


@mutant
def does_not_look_again_when_it_holds_the_slot() -> list[Patch]:
    return [_stream_from_any_slot()]


@mutant
def reads_the_table_below_what_was_pruned() -> list[Patch]:
    def nothing(*facts: Any) -> None:
        return None

    return [(preflight, "check_not_pruned", nothing), (session, "check_not_pruned", nothing)]


@mutant
def looks_at_prune_only_before_it_registers() -> list[Patch]:
    return [(session, "check_not_pruned", lambda *facts: None)]


@mutant
def lets_prune_follow_a_floor_that_may_go_back() -> list[Patch]:
    never = property(lambda self: None, lambda self, value: None)
    return [
        (session, "Life", type("Life", (Life,), {"held": never})),
        (session, "intersection", lambda snapshots: snapshots[0]),
    ]


@mutant
def registers_a_polled_floor_over_the_goal_of_a_slot() -> list[Patch]:
    return [(session, "intersection", lambda snapshots: snapshots[0])]


@mutant
def lets_a_session_register_that_another_took_over_from() -> list[Patch]:
    def register(self: Simulation, bridge: Any, request: Any) -> None:
        registered = self.registration
        holder = registered.session if registered else None
        return do_Register(self, bridge, replace(request, holder=holder))

    do_Register = Simulation.do_Register
    return [(Simulation, "do_Register", register)]


# --- rows with other xids ----------------------------------------------------------------------------


@mutant
def passes_over_what_is_not_its_transactions_own() -> list[Patch]:
    return [(session, "check_strays", lambda strays, done, *, may_move: None)]


@mutant
def takes_a_moved_row_for_an_event() -> list[Patch]:
    """As a decoder that does not compare a row with its transaction."""

    def believe(self: Any, batch: Any, *, partitioned: bool) -> Any:
        batch.events += [row._replace(xid=row.xid or b"1") for row in batch.strays]
        batch.xids += [int(row.xid or 1) for row in batch.strays]
        batch.end_lsns += [batch.end_lsn] * len(batch.strays)
        yield from self.settle()

    return [(Life, "judge_strays", believe), (events.Done, "without", lambda self, batch: batch)]


@mutant
def passes_over_every_stray_of_a_partitioned_outbox() -> list[Patch]:
    check = session.check_strays

    def careless(strays: Any, done: Any, *, may_move: bool) -> None:
        if not may_move:
            check(strays, done, may_move=may_move)

    return [(session, "check_strays", careless)]


@mutant
def reads_a_table_that_has_strangers() -> list[Patch]:
    def missing(self: Any, request: Any) -> Any:
        rows = yield from session.ask(request)
        return replace(rows, more=False) if rows.foreign else rows

    return [(Life, "missing", missing)]


FOCUS: dict[str, tuple[faults.Act, ...]] = {
    "passes_over_what_is_not_its_transactions_own": (faults.stranger,),
    "takes_a_moved_row_for_an_event": (faults.move_row,),
    "passes_over_every_stray_of_a_partitioned_outbox": (faults.stranger,),
    "reads_a_table_that_has_strangers": (faults.stranger, faults.drop_slot),
    "takes_commit_lsn_for_end_lsn": (faults.crash_bridge,),
    "idles_without_a_publication_check": (faults.off_and_on,),
    "checks_that_the_publication_exists": (faults.off_and_on,),
    "fences_by_epoch_alone": (faults.copy_target, faults.restore_target),
    "knows_its_place_in_the_stream_only": (faults.copy_target, faults.restore_target),
    "skips_nothing_that_is_listed": (faults.slot_behind_a_poll,),
    "reads_a_goal_that_shows_a_running_xid": (faults.slot_ahead_of_visibility,),
    "keeps_the_greater_of_two_positions": (faults.lagging_promotion,),
    "does_not_forget_a_lost_tail": (faults.lagging_promotion,),
    "asks_for_no_witness": (faults.copy_source, faults.restore_source),
    "applies_before_the_stream_has_brought_the_witness": (
        faults.copy_source,
        faults.restore_source,
        faults.delete_the_witness,
    ),
    "trusts_a_source_that_forgot_what_it_registered": (faults.copy_source, faults.restore_source),
    "judges_by_positions_only": (faults.copy_source, faults.restore_source),
    "does_not_look_at_the_end_of_the_wal": (faults.copy_source, faults.restore_source),
    "does_not_compare_slot_and_ledger": (faults.advance_slot, faults.crash_bridge),
    "does_not_look_again_when_it_holds_the_slot": (faults.advance_slot, faults.recreate_slot),
    "reads_the_table_below_what_was_pruned": (faults.copy_target, faults.restore_target, faults.prune),
    "looks_at_prune_only_before_it_registers": (
        faults.copy_target,
        faults.restore_target,
        faults.prune_at_a_start,
    ),
    "takes_a_part_of_a_transaction_for_the_whole": (faults.alter_amid_a_transaction,),
    "lets_a_session_register_that_another_took_over_from": (
        faults.copy_target,
        faults.late_registration,
        faults.prune,
    ),
    "registers_a_polled_floor_over_the_goal_of_a_slot": (
        faults.slot_behind_a_poll,
        faults.prune,
        faults.crash_bridge,
    ),
    "lets_prune_follow_a_floor_that_may_go_back": (
        faults.slot_behind_a_poll,
        faults.prune,
        faults.crash_bridge,
    ),
}
