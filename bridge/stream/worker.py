"""One stream's thread: session after session, with back-off, halts that are retried, and stand-by. Every session
starts at the fence, as after a crash, so an error is never half handled.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import psycopg

from bridge.attempts import NO_JITTER, Backoff, Retries
from bridge.errors import BridgeError, CannotConnect, Fenced, Halt, Retry, Verdict, verdict_of
from bridge.failpoints import FailpointRaised
from bridge.planning.plan import TableShape
from bridge.planning.planner import Planner
from bridge.planning.spec import Unit
from bridge.postgres import wire
from bridge.postgres.advice import LOST
from bridge.postgres.catalog import HIDDEN, hides_rows
from bridge.postgres.connect import connect
from bridge.postgres.outbox import foreign_rows
from bridge.postgres.profiles import SOURCE
from bridge.postgres.progress import registered
from bridge.postgres.safe_error import safe_error, safe_message
from bridge.postgres.slots import give_up_renamed_slot, give_up_slot
from bridge.postgres.target import TargetLink
from bridge.postgres.target_rules import Finding
from bridge.protocol.events import NOTHING, parse_snapshot
from bridge.protocol.evidence import foreign_xids
from bridge.protocol.preflight import StreamSettings
from bridge.protocol.requests import drive
from bridge.protocol.session import session
from bridge.stream.beside import Beside
from bridge.stream.doubts import refuse_powers, tell_later
from bridge.stream.engine import Engine, open_link, open_source
from bridge.stream.pace import Pace
from bridge.stream.planned import FailureGuard
from bridge.stream.predecessor import await_end
from bridge.stream.sockets import Stopped
from bridge.stream.spec import StreamSpec, Watcher
from bridge.stream.target_tables import connect_catalog, differences, examine_target

_BACKOFF = Backoff(first=0.1, longest=10.0, jitter=NO_JITTER)  # one stream: nobody to keep apart from
_HALT_SECONDS = 3.0  # seconds between two checks of a halted stream
_STAND_BY_SECONDS = 1.0
_FENCED_SECONDS = 5.0  # by then whoever took the stream is seen at it, so that this one stands by


class Worker:
    """Runs one stream until it is stopped or fenced. `run` is the thread's body; `failed`: the error that ended it."""

    def __init__(
        self,
        plan: StreamSpec,
        watcher: Watcher,
        guard: FailureGuard,
        ended: Callable[[], None],
        outlives: Callable[[], bool] = bool,
    ) -> None:
        """outlives: is a fence no end, because others need the process? Then it begins anew after a while."""
        self.fenced = False
        self._outlives = outlives
        self.plan = plan
        self.watcher = watcher
        self.failed: BaseException | None = None
        self._ended = ended
        self._guard = guard
        self._pace = Pace(plan.max_events)
        self._waker = wire.Waker()
        self._stopping = threading.Event()
        self._session_over = threading.Event()  # asked to stop, or to begin anew with another plan
        self._next = plan  # the one that the next session runs
        self._doubted: StreamSpec | None = None
        self._shaped: StreamSpec | None = None  # the plan for which _shapes were read
        self._shapes: Mapping[Unit, TableShape] = {}
        self.thread = threading.Thread(target=self._body, name=f"stream {plan.stream}", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ask it to settle the batch in flight, confirm and stop."""
        self._stopping.set()
        self._session_over.set()
        self._waker.nudge()

    def reload(self, plan: StreamSpec) -> None:
        """End the session as stop() does, and start another with this plan."""
        self._next = plan
        self._session_over.set()
        self._waker.nudge()

    def _body(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self.failed = error
        finally:
            self.watcher.phase("stopped")
            self._waker.close()
            self._ended()

    def run(self) -> None:
        retries = Retries(_BACKOFF)
        while self._begins():
            began = time.monotonic()
            error = self._session()
            retries.ran(time.monotonic() - began)
            if error is None:
                continue
            self._brake()
            if error.reason == "outbox_changed":
                error = self._given_up_renamed() or error
            if error.verdict is Verdict.FATAL:
                if not (isinstance(error, Fenced) and self._outlives()):
                    raise error
                self.fenced = True
                self.watcher.troubled(error)
                self._sleep(_FENCED_SECONDS)
                self.fenced = False
            elif error.verdict is Verdict.HALT:
                self.watcher.halted(error)
                self._sleep(_HALT_SECONDS)
            elif error.verdict is Verdict.STAND_BY:
                standing_by = partial(self.watcher.phase, "standby")
                await_end(self.plan, _STAND_BY_SECONDS, self._slept, standing_by)
            else:
                self.watcher.troubled(error)
                self._sleep(retries.failed())

    def _begins(self) -> bool:
        """Take what was asked since the last session began; whether there is another one.

        stop() and reload() say what they want before they set the event: whoever clears it first and looks then
        misses neither.
        """
        self._session_over.clear()
        self.plan = self._next
        return not self._stopping.is_set()

    def _session(self) -> BridgeError | None:
        """Run one session. Returns why it ended; None: it was asked to."""
        plan = self.plan
        engine: Engine | None = None
        source = Beside(partial(open_source, plan), f"source {plan.stream}")
        link: Beside[TargetLink] | None = None
        try:
            with connect_catalog(plan) as target:  # a password that is refused is not tried twice at once
                link = Beside(partial(open_link, plan), f"target {plan.stream}")
                planner, doubts = examine_target(plan, target)
            self._tell_altered(planner)
            self._doubt(doubts)
            self._pace.at_most(plan.max_events)
            engine = Engine(
                plan,
                planner,
                self._guard,
                self._pace,
                self.watcher,
                control=source.result(),
                link=link.result(),
                waker=self._waker,
                stop=self._session_over.is_set,
            )
            drive(session(self._settings()), engine)
        except Stopped:
            return None
        except BridgeError as error:
            return error
        except psycopg.Error as error:
            return _classify(error)
        except (OSError, FailpointRaised) as error:
            return Retry(f"{type(error).__name__}: {safe_message(error)}")
        except Exception as error:
            self.watcher.log("defect", **safe_error(error))
            return Halt(
                f"a defect in the bridge: {type(error).__name__}; the log has where",
                reason="internal_error",
                hint="please report it with the log line; the stream is retried",
            )
        finally:
            if engine is not None:
                engine.close()
            else:
                source.abandon()
                if link is not None:
                    link.abandon()
        return None

    def _tell_altered(self, planner: Planner) -> None:
        """What is different in the target's tables since the last session of this plan."""
        shapes = planner.shapes()
        if self._shaped is self.plan:
            for table, what in differences(self._shapes, shapes):
                self.watcher.altered(table, what)
        self._shaped, self._shapes = self.plan, shapes

    def _doubt(self, of_target: Sequence[Finding]) -> None:
        """Once per plan."""
        plan = self.plan
        if self._doubted is plan:
            return
        if plan.strict:
            refuse_powers(plan)
        tell_later(plan, self.watcher, self._stopping)
        for found in of_target:
            self.watcher.log("the target's table may cost events", what=found.message, fix=found.fix)
        self._doubted = plan

    def _brake(self) -> None:
        """The WAL brake: a stream that cannot continue must not fill the source's disk. Drop its slot; the events
        stay in the outbox, and catch-up delivers them."""
        if not self.plan.outbox.has_xid:
            return
        try:
            given_up = give_up_slot(self.plan.source_dsn, self.plan.stream, self.plan.max_retained_wal)
        except (psycopg.Error, BridgeError):
            return  # the source is away too: next time
        if given_up:
            self.watcher.retried("wal_brake")
            self.watcher.log("wal brake: slot dropped", slot=given_up, limit=self.plan.max_retained_wal)

    def _given_up_renamed(self) -> BridgeError | None:
        """A column of the outbox had another name for a time, and keeps it in the slot's WAL. Drop the slot;
        catch-up reads the table, where the column has its name. Not where the table cannot bring what the slot
        would."""
        plan = self.plan
        if not plan.outbox.has_xid:
            return None
        try:
            with connect(plan.source_dsn, SOURCE, f"check/{plan.stream}") as source:
                known = registered(source, plan.stream)
                floor = NOTHING if known is None else parse_snapshot(known["floor"])
                foreign = foreign_rows(source, plan.outbox, floor)
            if floor == NOTHING:
                return None  # the table cannot say what the slot would bring
            if foreign is not None:
                return foreign_xids(foreign)
            slot = give_up_renamed_slot(plan.source_dsn, plan.stream, plan.outbox)
        except (psycopg.Error, BridgeError):
            return None  # the halt stays; it is checked again
        if slot is None:
            return None
        return Retry(
            f"the outbox or a column was renamed and is back: slot {slot} was dropped; "
            "catching up from the table",
            reason="outbox_changed",
        )

    def _settings(self) -> StreamSettings:
        plan = self.plan
        return StreamSettings(
            stream=plan.stream,
            slot=plan.stream,
            session=str(uuid.uuid4()),
            capture=plan.capture,
            since=plan.since,
            has_xid=plan.outbox.has_xid,
        )

    def _slept(self, seconds: float) -> bool:
        """Whether the session is over."""
        self._sleep(seconds)
        return self._session_over.is_set()

    def _sleep(self, seconds: float) -> None:
        end = wire.deadline(seconds)
        while not self._session_over.is_set() and (left := end - time.monotonic()) > 0:
            wire.wait([self._waker.descriptor], [], left)
            self._waker.drain()


def _classify(error: psycopg.Error) -> BridgeError:
    """The BridgeError for an error of a control connection."""
    message, state = safe_message(error), error.sqlstate or ""
    if isinstance(error, psycopg.OperationalError) and not state:
        return CannotConnect(message, hint=LOST)
    verdict = verdict_of(error.sqlstate)
    if verdict is Verdict.RETRY:
        return Retry(f"{message} (SQLSTATE {state})")
    if state.startswith("28"):
        return Halt(
            message,
            reason="login_refused",
            hint="the server's message says why: docs/operations.md, login_refused",
        )
    if hides_rows(error):
        return Halt(message, reason="row_security", hint=HIDDEN)
    return _halt(f"{message} (SQLSTATE {state})", state)


def _halt(said: str, state: str) -> Halt:
    if state == "42501":
        return Halt(
            said, reason="privilege_missing", hint="bridge doctor lists each missing privilege with its GRANT"
        )
    if state == "25006":
        return Halt(
            said,
            reason="source_read_only",
            hint="connect to the primary: target_session_attrs=read-write in the dsn",
        )
    if state in ("42P01", "42703", "42883", "3F000"):
        return Halt(
            said,
            reason="schema_missing",
            hint="bridge doctor says on which side, and whether bridge install or bridge schema target makes it",
        )
    return Halt(
        said,
        reason="server_refused",
        hint="the server's message says why: docs/operations.md, server_refused",
    )
