"""A thread that runs one session after another: of a stream (worker.py) or of a relay (relay_worker.py).

Back-off, halts that are checked again, stand-by, a fence: what an error means for the next session is decided here.
Every session starts from the beginning, as after a crash, so an error is never half handled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import psycopg

from bridge.attempts import NO_JITTER, Backoff, Retries
from bridge.errors import BridgeError, CannotConnect, Fenced, Halt, Retry, Verdict, verdict_of
from bridge.failpoints import FailpointRaised
from bridge.postgres import wire
from bridge.postgres.advice import LOST
from bridge.postgres.catalog import HIDDEN, hides_rows
from bridge.postgres.safe_error import safe_error, safe_message
from bridge.protocol.facts import Phase
from bridge.stream.sockets import Stopped

_BACKOFF = Backoff(first=0.1, longest=10.0, jitter=NO_JITTER)  # one stream: nobody to keep apart from
_HALT_SECONDS = 3.0  # seconds between two checks of a halted stream
_STAND_BY_SECONDS = 1.0
_FENCED_SECONDS = 5.0  # by then whoever took the stream is seen at it, so that this one stands by


class SessionWatcher(Protocol):
    """What a thread of sessions reports."""

    def phase(self, phase: Phase) -> None: ...

    def halted(self, error: BridgeError) -> None: ...

    def troubled(self, error: BridgeError) -> None: ...

    def log(self, event: str, **fields: object) -> None: ...


Plan = TypeVar("Plan")


class Sessions(Generic[Plan]):
    """Runs sessions until it is stopped or fenced. `run` is the thread's body; `failed`: the error that ended it. A
    subclass says what a session is, and what is done after one that failed."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        watcher: SessionWatcher,
        ended: Callable[[], None],
        outlives: Callable[[], bool] = bool,
    ) -> None:
        """outlives: is a fence no end, because others need the process? Then it begins anew after a while."""
        self.name = name
        self.plan = plan
        self.fenced = False
        self.failed: BaseException | None = None
        self._reports = watcher
        self._ended = ended
        self._outlives = outlives
        self._waker = wire.Waker()
        self._stopping = threading.Event()
        self._session_over = threading.Event()  # asked to stop, or to begin anew with another plan
        self._next = plan  # the one that the next session runs
        self.thread = threading.Thread(target=self._body, name=name, daemon=True)

    def session(self) -> None:
        """Run one session. Raises what ended it; returns where it was asked to end."""
        raise NotImplementedError

    def close(self) -> None:
        """The thread ends."""

    def failed_with(self, error: BridgeError) -> BridgeError:
        """A session has failed. Returns the error that counts."""
        return error

    def stand_by(self, seconds: float) -> None:
        """Another one has it: wait before the next session."""
        self._reports.phase("standby")
        self._sleep(seconds)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ask it to settle the batch in flight, confirm and stop."""
        self._stopping.set()
        self._session_over.set()
        self._waker.nudge()

    def reload(self, plan: Plan) -> None:
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
            self.close()
            self._reports.phase("stopped")
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
            error = self.failed_with(error)
            if error.verdict is Verdict.FATAL:
                if not (isinstance(error, Fenced) and self._outlives()):
                    raise error
                self.fenced = True
                self._reports.troubled(error)
                self._sleep(_FENCED_SECONDS)
                self.fenced = False
            elif error.verdict is Verdict.HALT:
                self._reports.halted(error)
                self._sleep(_HALT_SECONDS)
            elif error.verdict is Verdict.STAND_BY:
                self.stand_by(_STAND_BY_SECONDS)
            else:
                self._reports.troubled(error)
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
        try:
            self.session()
        except Stopped:
            return None
        except BridgeError as error:
            return error
        except psycopg.Error as error:
            return _classify(error)
        except (OSError, FailpointRaised) as error:
            return Retry(f"{type(error).__name__}: {safe_message(error)}")
        except Exception as error:
            self._reports.log("defect", **safe_error(error))
            return Halt(
                f"a defect in the bridge: {type(error).__name__}; the log has where",
                reason="internal_error",
                hint="please report it with the log line; the stream is retried",
            )
        return None

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
