"""Bring a stream to a common position, so that its rows can be divided into other partitions.

Partitions have floors of their own. When all of a target's stand at one snapshot, with what they applied beyond it
listed, anything that divides the same rows another way can go on from there: the position is a snapshot, not an LSN,
and so does not depend on who reads what (docs/guarantees.md, "Frames over a log").
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from bridge.errors import Halt, Retry
from bridge.protocol import requests as to
from bridge.protocol.chain import covers
from bridge.protocol.facts import Goal, Mode
from bridge.protocol.preflight import (
    StreamSettings,
    check_identity,
    check_not_pruned,
    check_registration,
    facts,
    first_look,
    judge,
)
from bridge.protocol.requests import Request, ask
from bridge.protocol.session import Life


def to_barrier(settings: StreamSettings, barrier: Goal) -> Generator[Request[Any], Any, None]:
    """One session of a stream that ends with the barrier as its floor, in mode poll: without a slot or a chain.

    Whoever asks for it has fenced the stream before the barrier's snapshot was taken, and keeps bridges from it
    (SourceFacts.moving). Raises Retry where one has come between: then the barrier must be taken anew.
    """
    target = yield from ask(to.ReadTarget())
    registration = yield from ask(to.ReadRegistration())
    check_registration(registration, target)
    source = yield from ask(first_look(settings, target))
    check_identity(settings.stream, target, source, registration)
    ledger = yield from ask(to.Fence(settings.session, source.identity, create=False, since=None))
    if ledger is None:
        raise Halt(
            f"stream {settings.stream} is registered at the source, but this target has no ledger row for it",
            reason="ledger_missing",
            hint="restore the ledger with the target; then run this again",
        )
    registration = yield from ask(to.ReadRegistration())
    source = yield from ask(facts(settings, ledger))
    judgement = judge(ledger, source, registration, slot_wanted=False, has_xid=True)
    yield from ask(to.Save(ledger, judgement.ledger, forget_above=judgement.forget_above))
    life = Life(settings, judgement.ledger, target, registration)
    yield from life.register()
    check_not_pruned(life.ledger, registration, (yield from ask(to.ReadPruned())))
    if (goal := life.ledger.next) is not None:
        yield from life.finish(goal, Mode.POLL)
    if not covers(barrier.snapshot, life.ledger.floor):
        raise Retry(f"a bridge was at work on {settings.stream} meanwhile", reason="barrier_passed")
    if (incarnation := life.ledger.incarnation) and not life.shared:
        yield from life.save(replace(life.ledger, mode=Mode.POLL))
        yield from ask(to.DropSlot(settings.slot_name(incarnation)))
    yield from life.register(barrier.lsn)
    yield from life.finish(barrier, Mode.POLL)
