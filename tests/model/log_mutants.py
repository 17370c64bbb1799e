"""Protocols over a log that are wrong in one way each, as mutants.py has them for a stream with a slot of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bridge.protocol import preflight, relay, requests, session
from bridge.protocol.chain import Chain, Verdict
from bridge.protocol.events import Lsn
from tests.model import faults, log_faults, mutants
from tests.model.log import Log
from tests.model.mutants import Patch, answering

Life, Relay = session._Life, relay._Relay
MUTANTS: dict[str, Callable[[], list[Patch]]] = {}
FOCUS: dict[str, tuple[faults.Act, ...]] = {}


def mutant(*focus: faults.Act) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    """focus: the acts that must happen often for it to show itself soon."""

    def add(function: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        MUTANTS[function.__name__], FOCUS[function.__name__] = function, focus
        return function

    return add


# --- the chain --------------------------------------------------------------------------------------


def _judging(change: Callable[[Chain, Any], Any]) -> Patch:
    """judge() with another frame."""
    judge = Chain.judge
    return Chain, "judge", lambda self, frame: judge(self, change(self, frame))


@mutant(log_faults.drop_frame)
def takes_a_frame_whatever_is_before_it() -> list[Patch]:
    return [_judging(lambda chain, frame: replace(frame, prev=min(frame.prev, chain.reached)))]


@mutant(log_faults.lose_a_part, log_faults.huge)
def takes_a_part_whatever_is_before_it() -> list[Patch]:
    def judge(self: Chain, frame: Any) -> Verdict:
        if self._open is not None and frame.commit == self._open[0]:
            return Verdict.TAKE
        return correct(self, frame)

    correct = Chain.judge
    return [(Chain, "judge", judge)]


@mutant(log_faults.repeat_frames)
def takes_a_frame_again() -> list[Patch]:
    return [(Chain, "_is_before", lambda self, frame: False)]


def _origin(chain: Chain, frame: Any, name: str) -> Any:
    return replace(frame, origin=replace(frame.origin, **{name: getattr(chain.origin, name)}))


@mutant(faults.copy_source, faults.restore_source)
def takes_frames_of_another_life() -> list[Patch]:
    return [_judging(lambda chain, frame: _origin(chain, frame, "life"))]


@mutant(log_faults.other_division)
def takes_frames_of_another_division() -> list[Patch]:
    return [_judging(lambda chain, frame: _origin(chain, frame, "partitions"))]


@mutant(log_faults.misroute)
def takes_frames_of_another_partition() -> list[Patch]:
    return [_judging(lambda chain, frame: replace(frame, partition=chain.partition))]


@mutant()
def applies_all_of_a_frame_that_overlaps() -> list[Patch]:
    return [(session, "after", lambda batch, lsn: batch)]


@mutant()
def goes_back_with_a_frame_that_overlaps() -> list[Patch]:
    """The position is the last batch's, and a batch has each transaction as often as it was read."""

    def one_by_one(batch: Any, lsn: Any) -> Any:
        gone = bisect_right(batch.end_lsns, lsn)
        rows = sum(batch.commit_rows[:gone])
        return replace(
            batch,
            events=batch.events[rows:],
            xids=batch.xids[gone:],
            end_lsns=batch.end_lsns[gone:],
            commit_rows=batch.commit_rows[gone:],
        )

    return [(session, "after", one_by_one)]


# --- a place in the chain ---------------------------------------------------------------------------


@mutant(log_faults.back_up, log_faults.restore_all)
def believes_a_look_of_another_life() -> list[Patch]:
    def look(self: Log, origin: Any, partition: int) -> Any:
        for entry in reversed(self.entries[partition]):
            if entry.frame.look and entry.frame.origin.incarnation == origin.incarnation:
                return entry.frame.look
        return None

    return [(Log, "look", look)]


@mutant()
def joins_at_a_look_that_shows_less_than_the_floor() -> list[Patch]:
    return [(session, "covers", lambda one, other: True)]


@mutant()
def polls_unlisted_while_it_joins() -> list[Patch]:
    return mutants.polls_unlisted_while_a_slot_is_made()


def _joining(change: Callable[[Any], Any]) -> Patch:
    join = Life.join

    def answer(request: Any, seen: Any) -> Any:
        return change(seen) if isinstance(request, requests.FindLook) else seen

    return Life, "join", lambda self, source: answering(join(self, source), answer)


@mutant(log_faults.source_restored_amid_a_join)
def relies_on_a_look_without_saying_so_at_the_source() -> list[Patch]:
    return [
        _joining(lambda seen: replace(seen, look=seen.look and replace(seen.look, insert_lsn=seen.look.lsn)))
    ]


@mutant(log_faults.publication_changed_under_a_relay)
def takes_todays_publication_for_the_relays() -> list[Patch]:
    join = Life.join

    def present(self: Any, source: Any) -> Any:
        def answer(request: Any, seen: Any) -> Any:
            if isinstance(request, requests.FindLook) and seen.relay is not None:
                return replace(seen, relay=replace(seen.relay, publication=source.publication))
            return seen

        return answering(join(self, source), answer)

    return [(Life, "join", present)]


@mutant()
def applies_again_what_it_took_from_the_chain_before() -> list[Patch]:
    stream = Life.stream

    def own_left_out(self: Any, source: Any, **more: Any) -> Any:
        inner = stream(self, source, **more)
        answer = None
        while True:
            try:
                request = inner.send(answer)
            except StopIteration:
                return
            if isinstance(request, requests.ReadApplied):
                request = requests.ReadApplied(except_incarnation=self.ledger.incarnation)
            answer = yield request

    return [(Life, "stream", own_left_out)]


@mutant(log_faults.source_restored_behind_an_idle_stream)
def believes_an_idle_advance_that_the_source_does_not_know() -> list[Patch]:
    return [(preflight, "_told", lambda source, registration: Lsn(10**12))]


@mutant(log_faults.drop_slot_of_a_relay)
def does_not_look_whether_the_relay_began_again() -> list[Patch]:
    look = Life.look_at_source

    def same(self: Any, at: Any) -> Any:
        def answer(request: Any, seen: Any) -> Any:
            if isinstance(request, requests.Observe):
                return replace(seen, incarnation=self.ledger.incarnation)
            return seen

        return answering(look(self, at), answer)

    return [(Life, "look_at_source", same)]


@mutant(log_faults.drop_frame)
def asks_nobody_for_what_is_missing() -> list[Patch]:
    def heal(self: Any, look: Any) -> Any:
        yield from ()

    return [(Life, "heal", heal)]


@mutant(log_faults.lose_a_part, log_faults.huge)
def ends_where_a_part_is_missing() -> list[Patch]:
    heal = Life.heal

    def end(self: Any, look: Any) -> Any:
        if look.inside:
            raise session.Retry("a part of a transaction is missing in the log", reason="log_gap")
        yield from heal(self, look)

    return [(Life, "heal", end)]


@mutant(log_faults.switch_capture)
def drops_the_relays_slot_to_poll() -> list[Patch]:
    poll = Life.poll

    def alone(self: Any) -> Any:
        self.shared = False
        return poll(self)

    return [(Life, "poll", alone)]


# --- the relay --------------------------------------------------------------------------------------


@mutant(faults.leave)
def looks_past_what_is_visible() -> list[Patch]:
    def visible(self: Any, snapshot: Any, position: Any) -> Any:
        self.shown = max(self.shown, position)
        return self.shown

    return [(Relay, "visible", visible)]


@mutant(faults.advance_slot)
def takes_what_a_slot_is_past_for_visible() -> list[Patch]:
    run = Relay.run

    def hasty(self: Any, begins: Any) -> Any:
        def answer(request: Any, seen: Any) -> Any:
            if isinstance(request, requests.Observe) and request.position == begins and not self.published:
                return replace(seen, snapshot=replace(seen.snapshot, xip=frozenset()))
            return seen

        return answering(run(self, begins), answer)

    return [(Relay, "run", hasty)]


@mutant()
def confirms_without_the_streams() -> list[Patch]:
    confirm = Relay.confirm

    def alone(self: Any, position: Any) -> Any:
        def answer(request: Any, share: Any) -> Any:
            return replace(share, applied={}) if isinstance(request, requests.ReadShare) else share

        return answering(confirm(self, position), answer)

    return [(Relay, "confirm", alone)]


@mutant(faults.advance_slot, faults.recreate_slot)
def does_not_look_again_when_it_holds_the_slot() -> list[Patch]:
    open_stream = Relay.open_stream

    def careless(self: Any) -> Any:
        def answer(request: Any, source: Any) -> Any:
            if isinstance(request, requests.ReadSource) and source.slot is not None:
                return replace(source, slot=replace(source.slot, confirmed_flush=Lsn(0)))
            return source

        return answering(open_stream(self), answer)

    return [(Relay, "open_stream", careless)]


@mutant(faults.off_and_on)
def relays_without_a_publication_check() -> list[Patch]:
    look = Relay.look_at_source

    def careless(self: Any, position: Any) -> Any:
        def answer(request: Any, seen: Any) -> Any:
            if isinstance(request, requests.Observe):
                return replace(seen, publication=self.facts.publication)
            return seen

        return answering(look(self, position), answer)

    def goes_on(known: Any, source: Any) -> bool:
        return known.ready and source.slot is not None and source.slot.usable

    return [(Relay, "look_at_source", careless), (relay, "_goes_on", goes_on)]


@mutant()
def says_that_it_read_what_is_only_written() -> list[Patch]:
    look = Relay.look_at_source

    def ahead(self: Any, position: Any) -> Any:
        answer = None
        inner = look(self, position)
        while True:
            try:
                request = inner.send(answer)
            except StopIteration:
                return
            if isinstance(request, requests.Publish):
                frame = request.frame
                request = requests.Publish(replace(frame, end=max(frame.end, frame.look.insert_lsn)), b"")
            answer = yield request

    return [(Relay, "look_at_source", ahead)]


@mutant()
def chains_a_frame_to_what_it_left_out() -> list[Patch]:
    """A reader asks, and the relay reads on from where it was."""
    return [(Relay, "takes_back", lambda self, again: False)]


@mutant(log_faults.one_stream_given_up_and_back)
def never_waits_again_for_a_stream_that_was_given_up() -> list[Patch]:
    return [(Relay, "is_given_up", lambda self, stream: stream in self.given_up)]


@mutant()
def confirms_up_to_the_look_before() -> list[Patch]:
    """A stream that has found a look comes too late to it."""
    begin = Relay.__init__

    def forgetful(self: Any, *settings: Any) -> None:
        begin(self, *settings)
        self.looks = deque(maxlen=1)

    return [(Relay, "__init__", forgetful)]
