"""The daemon's part of sharing: holds the claims of this process, and starts and stops its streams by them.

One task for each target (claim_post.py), so that a target that does not answer keeps no other waiting: it looks, ends
who is silent, asks protocol/sharing.py what this bridge's share is, and takes or returns locks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import psycopg

from bridge.claim_post import Plan, Post, Runs
from bridge.errors import BridgeError
from bridge.log import Log
from bridge.postgres.sharing import (
    LOOK_SECONDS,
    Member,
    reach,
    this_process,
)
from bridge.protocol.cut_off import CutOff
from bridge.protocol.sharing import Share, View, share, still_declined

PART = "sharing"

_FIRST_PICTURE_SECONDS = 2.0
"""A bridge that starts waits so long for every target's first look: with half a picture it would take too much."""

_WAITED_SECONDS = 3 * LOOK_SECONDS
_DECLINED_SECONDS = 5.0
"""A stream that was given up, or whose fence another bridge has passed, is left to others for so long at most: until
one of them has it."""

_UNCLAIMED_SECONDS = 10.0
"""A stream that is free for so long is a problem: longer than any takeover."""


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
        self._cut_off = CutOff()
        self._trying: set[asyncio.Task[None]] = set()
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
        for trying in self._trying:
            trying.cancel()
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
        given, shunned = self._cut_off.look(
            view, self.member.name, failing=self.runs.cannot_connect(), working=self.runs.ready(), now=now
        )
        for stream in self._cut_off.due(now):
            task = asyncio.create_task(self._try(stream), name=f"reach {stream}")
            self._trying.add(task)
            task.add_done_callback(self._trying.discard)
        declined = still_declined(view, self.member.name, self._declined)
        declined = {stream for stream in declined if self._declined[stream] > now}
        self._declined = {stream: self._declined[stream] for stream in declined}
        declined |= shunned
        if self._only is not None:
            declined |= self._plans.keys() - self._only
        waited = {stream for stream, since in self._free_since.items() if now - since > _WAITED_SECONDS}
        found = share(view, self.member.name, most=self._most, declined=declined, waited=waited)
        return replace(found, give_up=[*found.give_up, *given], willing=found.willing - given)

    async def _try(self, stream: str) -> None:
        reached = False
        with contextlib.suppress(BridgeError, psycopg.Error, OSError):
            if (plan := self._plans.get(stream)) is not None:
                await asyncio.to_thread(reach, plan.source_dsn)
                reached = True
        self._cut_off.tried(stream, reached=reached, now=asyncio.get_running_loop().time())

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
