"""The daemon's part of sharing: holds the claims of this process, and starts and stops its streams by them.

One task for each target, so that a target that does not answer keeps no other waiting: it looks, ends who is silent,
asks protocol/sharing.py what this bridge's share is, and takes or returns locks. A stream runs only while its claim is
held; one that is given up is settled and stopped before its claim is returned.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import psycopg

from bridge.attempts import Backoff, Retries
from bridge.errors import BridgeError, CannotConnect
from bridge.log import Log
from bridge.postgres.connect import Pool
from bridge.postgres.profiles import SHARE
from bridge.postgres.safe_error import safe_error, safe_message
from bridge.postgres.sharing import (
    LOOK_SECONDS,
    SILENT_SECONDS,
    ClaimSession,
    Member,
    Seen,
    end_reader,
    this_process,
)
from bridge.protocol.sharing import Share, Step, View, next_step, share, still_declined

PART = "sharing"

_RECONNECT = Backoff(first=0.25, longest=2.0)
_FIRST_PICTURE_SECONDS = 2.0
"""A bridge that starts waits so long for every target's first look: with half a picture it would take too much."""

_WAITED_SECONDS = 3 * LOOK_SECONDS
_DECLINED_SECONDS = 5.0
"""A stream that was given up, or whose fence another bridge has passed, is left to others for so long at most: until
one of them has it."""

_UNCLAIMED_SECONDS = 10.0
"""A stream that is free for so long is a problem: longer than any takeover."""


class Plan(Protocol):
    """What it needs to know about a stream."""

    @property
    def stream(self) -> str: ...
    @property
    def source_dsn(self) -> str: ...
    @property
    def target_dsn(self) -> str: ...


class Runs(Protocol):
    """The streams of this process (streams.py)."""

    def begin(self, stream: str) -> None: ...
    def end(self, stream: str) -> None: ...
    def runs(self, stream: str) -> bool: ...
    def stands_by(self, stream: str) -> bool: ...


class Report(Protocol):
    """Where it says how it is (observe)."""

    def shared(self, picture: Mapping[str, Any]) -> None: ...
    def part_failed(self, where: str, error: BridgeError) -> None: ...
    def part_works(self, where: str) -> None: ...


class Sharing:
    """This process's share of the streams. Everything is called in the loop."""

    def __init__(self, runs: Runs, report: Report) -> None:
        self.runs = runs
        self.member = this_process()
        self.log = Log("bridge.sharing")
        self._report = report
        self._plans: dict[str, Plan] = {}
        self._most: int | None = None
        self._only: frozenset[str] | None = None
        self._posts: dict[str, Post] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._declined: dict[str, float] = {}  # stream -> until when, in the loop's time
        self._free_since: dict[str, float] = {}
        self._began = asyncio.get_running_loop().time()
        self._said: object = None

    # -- what the daemon says ---------------------------------------------------------------------------

    def use(self, plans: Iterable[Plan], *, most: int | None, only: Collection[str] = ()) -> None:
        """Share these streams from now on. most: scale.max_streams. only: the streams that this bridge takes; empty:
        all."""
        self._plans = {plan.stream: plan for plan in plans}
        self._most = most
        self._only = frozenset(only) or None
        places: dict[str, list[str]] = {}
        for plan in self._plans.values():
            places.setdefault(plan.target_dsn, []).append(plan.stream)
        for dsn in [*self._posts]:
            if self._posts[dsn].streams != places.get(dsn):
                self._posts.pop(dsn).close()
                task = self._tasks.pop(dsn)
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        for dsn, streams in places.items():
            if dsn not in self._posts:
                self._posts[dsn] = Post(self, dsn, streams)
                self._tasks[dsn] = asyncio.create_task(self._posts[dsn].run(), name="claims")

    async def stop(self, grace: float) -> None:
        """Stop every stream, each claim returned as soon as its stream has stopped; after `grace` seconds in any
        case, with the sessions."""
        for post in self._posts.values():
            post.close()
        if tasks := {*self._tasks.values(), *self._leaving}:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def stopped(self, stream: str, *, fenced: bool) -> None:
        """A stream's thread has ended. fenced: another bridge has taken it over, claim or not."""
        if fenced:
            self.log.warning("fenced", stream=stream)
            self.decline(stream)
        for post in self._posts.values():
            if stream in post.streams:
                if fenced:
                    post.give_up(stream)
                post.wake()

    # -- what the posts ask -----------------------------------------------------------------------------

    def plan(self, stream: str) -> Plan | None:
        return self._plans.get(stream)

    def decline(self, stream: str) -> None:
        self._declined[stream] = asyncio.get_running_loop().time() + _DECLINED_SECONDS

    def decide(self) -> Share | None:
        """This bridge's share, as all targets show it now; None: not enough is known yet."""
        now = asyncio.get_running_loop().time()
        known = all(post.answered for post in self._posts.values())
        if not known and now - self._began < _FIRST_PICTURE_SECONDS:
            return None
        view = self._view()
        for stream in self._plans:
            if stream in view.streams and stream not in view.claims:
                self._free_since.setdefault(stream, now)
            else:
                self._free_since.pop(stream, None)
        self._tell(view, now)
        declined = still_declined(view, self.member.name, self._declined)
        declined = {stream for stream in declined if self._declined[stream] > now}
        self._declined = {stream: self._declined[stream] for stream in declined}
        if self._only is not None:
            declined |= self._plans.keys() - self._only
        waited = {stream for stream, since in self._free_since.items() if now - since > _WAITED_SECONDS}
        return share(view, self.member.name, most=self._most, declined=declined, waited=waited)

    def _view(self) -> View:
        seen = {stream: post.seen for post in self._posts.values() for stream in post.streams if post.seen}
        return View(
            [stream for stream in self._plans if stream in seen],
            {stream: one.willing.get(stream, set()) for stream, one in seen.items()},
            {stream: one.claims[stream] for stream, one in seen.items() if stream in one.claims},
        )

    def _tell(self, view: View, now: float) -> None:
        """To status, metrics and readiness."""
        members: dict[str, Member] = {}
        for post in self._posts.values():
            members |= post.seen.members if post.seen else {}
        self._report.shared(picture(self._plans, view.claims, members, me=self.member.name))
        unclaimed = [s for s, since in self._free_since.items() if now - since > _UNCLAIMED_SECONDS]
        failed = next((post.failed for post in self._posts.values() if post.failed is not None), None)
        if failed is None and unclaimed:
            failed = BridgeError(
                f"no bridge takes {', '.join(unclaimed)}",
                reason="stream_unclaimed",
                hint="start another bridge with this file, or raise scale.max_streams (and end --stream)",
            )
        if str(failed) != str(self._said):
            self._said = failed
            if failed is not None:
                self.log.warning(
                    "trouble", reason=failed.reason, message=str(failed.args[0]), fix=failed.hint
                )
        if failed is not None:
            self._report.part_failed(PART, failed)
        else:
            self._report.part_works(PART)


def picture(
    streams: Iterable[str], claims: Mapping[str, str], members: Mapping[str, Member], *, me: str | None
) -> dict[str, Any]:
    """Who runs what, as `bridge status` and GET /status show it."""
    named = sorted(members.values(), key=lambda one: (one.host, one.pid or 0, one.name))
    return {
        "member": me,
        "members": [
            {
                "member": one.name,
                "host": one.host,
                "pid": one.pid,
                "streams": sorted(stream for stream, claimer in claims.items() if claimer == one.name),
            }
            for one in named
        ],
        "free": [stream for stream in streams if stream not in claims],
    }


class Post:
    """This bridge at one target: a session that holds its locks there, again and again."""

    def __init__(self, sharing: Sharing, dsn: str, streams: Sequence[str]) -> None:
        self.streams = [*streams]
        self.seen: Seen | None = None  # None: no session now
        self.answered = False  # with a look, or with an error
        self.failed: BridgeError | None = None
        self._sharing = sharing
        self._dsn = dsn
        self._giving_up: set[str] = set()
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._ousted: set[str] = set()  # streams of bridges that said nothing any more
        self._closing = False
        self._awake = asyncio.Event()

    def close(self) -> None:
        """Give up everything, then end."""
        self._closing = True
        self.wake()

    def wake(self) -> None:
        """Look now."""
        self._awake.set()

    def give_up(self, stream: str) -> None:
        """Stop it, and return its claim."""
        self._giving_up.add(stream)
        self._sharing.runs.end(stream)

    async def run(self) -> None:
        """Session after session. Without one there are no claims, so nothing runs."""
        retries = Retries(_RECONNECT)
        loop = asyncio.get_running_loop()
        async with Pool(self._dsn, SHARE, self._sharing.member.part(), least=0) as pool:
            while not self._closing:
                began = loop.time()
                try:
                    async with pool.connection() as connection:
                        connection.answer_seconds = SILENT_SECONDS  # then others end this session
                        try:
                            await self._session(ClaimSession(connection, self.streams))
                        finally:
                            await connection.close()  # its locks with it
                except Exception as error:  # whatever it is, nothing runs without its claim
                    self._lost(error)
                    retries.ran(loop.time() - began)
                    await self._sleep(retries.failed())
        while any(map(self._sharing.runs.runs, self.streams)):
            await self._sleep(LOOK_SECONDS)

    def _lost(self, error: Exception) -> None:
        self.seen, self.answered = None, True
        if not isinstance(error, BridgeError | psycopg.Error | OSError):
            self._sharing.log.error("defect", **safe_error(error))
        self.failed = error if isinstance(error, BridgeError) else _told(error)
        self._giving_up.clear()
        for stream in self.streams:
            self._stop(stream)
        if not self._closing:
            self._sharing.decide()  # says how it is

    async def _session(self, session: ClaimSession) -> None:
        """Look, and act, until told to close and nothing is held any more."""
        while True:
            self._awake.clear()
            self.seen = seen = await session.look()
            self.answered, self.failed = True, None
            if seen.silent:
                self._sharing.log.warning(
                    "a bridge is silent: its streams are taken over",
                    streams=sorted(set().union(*seen.silent.values())),
                )
                await session.end_silent(seen.silent)
                self._ousted.update(*seen.silent.values())
            share = Share() if self._closing else self._sharing.decide()
            if share is not None:
                await self._act(session, seen, share)
            if self._closing and not seen.our_claims:
                return
            await self._sleep(LOOK_SECONDS)

    async def _act(self, session: ClaimSession, seen: Seen, share: Share) -> None:
        """Take and return locks, start and stop streams, for one look."""
        claims = [stream for stream in share.claim if stream in self.streams]
        for stream in claims:  # before anything is awaited: the other targets' tasks count them
            seen.claims[stream] = self._sharing.member.name
        for stream in self.streams:
            willing = stream in share.willing and stream not in self._giving_up
            if willing != (stream in seen.our_willing):
                await session.be_willing(stream, willing=willing)
        for stream in claims:
            if await session.claim(stream):
                seen.our_claims.add(stream)
                self._sharing.log.info("claimed", stream=stream)
            else:
                del seen.claims[stream]
        for stream in [*seen.our_claims] if self._closing else share.give_up:
            if stream in seen.our_claims and stream not in self._giving_up:
                self._sharing.log.info("gives up", stream=stream)
                self._sharing.decline(stream)
                self.give_up(stream)
                self._stop(stream)
        for stream in self.streams:
            await self._keep(session, seen, stream)

    async def _keep(self, session: ClaimSession, seen: Seen, stream: str) -> None:
        """One step of one stream."""
        claimed = stream in seen.our_claims
        if not claimed:
            self._giving_up.discard(stream)
        runs, alone = self._sharing.runs.runs(stream), False
        if claimed and runs and stream not in self._starting and self._sharing.runs.stands_by(stream):
            alone = not await session.busy(stream)  # and yet it stands by
        giving_up = stream in self._giving_up
        match next_step(
            claimed=claimed, giving_up=giving_up, runs=runs and not alone, starts=stream in self._starting
        ):
            case Step.STOP:
                self._stop(stream)
            case Step.RELEASE:
                await session.release(stream)
                self._giving_up.discard(stream)
                seen.our_claims.discard(stream)
                seen.claims.pop(stream, None)
                self._sharing.log.info("released", stream=stream)
            case Step.START:
                ousts = alone or stream in self._ousted
                self._ousted.discard(stream)
                task = asyncio.create_task(self._start(stream, ousts=ousts), name=f"start {stream}")
                self._starting[stream] = task
                task.add_done_callback(lambda _: self._starting.pop(stream, None))

    async def _start(self, stream: str, *, ousts: bool) -> None:
        """ousts: whoever still reads its slot is frozen or gone; the source would wait for him much longer."""
        plan = self._sharing.plan(stream)
        if plan is None:
            return
        if ousts:
            with contextlib.suppress(BridgeError, psycopg.Error, OSError):  # the stream will say it
                await asyncio.to_thread(end_reader, plan.source_dsn, stream)
        held = self.seen is not None and stream in self.seen.our_claims
        if held and stream not in self._giving_up and not self._closing:
            self._sharing.runs.begin(stream)

    def _stop(self, stream: str) -> None:
        if self._sharing.runs.runs(stream):
            self._sharing.runs.end(stream)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._awake.wait(), seconds)


def _told(error: Exception) -> BridgeError:
    """The BridgeError for an error of the session."""
    return CannotConnect(
        f"a target, where its streams are claimed: {safe_message(error)}",
        hint="bridge doctor checks each connection",
    )
