"""One bridge at one target: a session that holds its claims there, and starts and stops its streams by them.

A stream runs only while its claim is held; one that is given up is settled and stopped before its claim is returned.
What the share is, sharing.py decides from the looks of all posts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

import psycopg

from bridge.attempts import Backoff, Retries
from bridge.errors import BridgeError, CannotConnect
from bridge.log import Log
from bridge.postgres.connect import Pool
from bridge.postgres.profiles import SHARE
from bridge.postgres.safe_error import safe_error, safe_message
from bridge.postgres.sharing import LOOK_SECONDS, SILENT_SECONDS, ClaimSession, Member, Seen, end_reader
from bridge.protocol.sharing import Share, Step, next_step

_RECONNECT = Backoff(first=0.25, longest=2.0)


class Plan(Protocol):
    """What sharing needs to know about a stream."""

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
    def cannot_connect(self) -> set[str]: ...
    def ready(self) -> set[str]: ...


class Decides(Protocol):
    """What all posts of a process have in common (sharing.py)."""

    runs: Runs
    member: Member
    log: Log

    def decide(self) -> Share | None: ...
    def plan(self, stream: str) -> Plan | None: ...
    def decline(self, stream: str) -> None: ...


class Post:
    """This bridge at one target: a session that holds its locks there, again and again."""

    def __init__(self, sharing: Decides, dsn: str, streams: Sequence[str]) -> None:
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
            self._sharing.runs.end(stream)
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
                self._sharing.runs.end(stream)
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

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._awake.wait(), seconds)


def _told(error: Exception) -> BridgeError:
    """The BridgeError for an error of the session."""
    return CannotConnect(
        f"a target, where its streams are claimed: {safe_message(error)}",
        hint="bridge doctor checks each connection",
    )
