"""Long work that a person starts in the console: one at a time, in a thread of its own, with its progress and result.

It ends with the process: a replay that was cut off is run again, which is safe.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from bridge.errors import BridgeError
from bridge.log import Log
from bridge.postgres.safe_error import safe_error

_KEPT = 20
_LOG = Log("bridge.console")


class Stopped(Exception):
    """A person has stopped it."""


@dataclass(slots=True)
class Job:
    """progress: what it does now. text: its result, for people; told: the same as values. stopping: it was asked to."""

    number: int
    kind: Literal["prove", "replay"]
    who: str
    what: str
    began: float
    state: Literal["running", "done", "differs", "failed", "stopped"] = "running"
    progress: str = "begins"
    text: str = ""
    hint: str = ""
    told: Any = None
    ended: float | None = None
    stopping: bool = field(default=False, repr=False)

    def tell(self, progress: str) -> None:
        """Called by the work. Raises Stopped."""
        if self.stopping:
            raise Stopped
        self.progress = progress

    def as_dict(self) -> dict[str, Any]:
        names = (
            "number",
            "kind",
            "who",
            "what",
            "began",
            "ended",
            "state",
            "progress",
            "text",
            "hint",
            "told",
        )
        return {name: getattr(self, name) for name in names}


Work = Callable[[Job], tuple[str, Any, bool]]
"""Returns the text, the values, and whether all is well."""


class Jobs:
    """The last ones of this process, the newest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Job] = deque(maxlen=_KEPT)
        self._number = 0

    @property
    def listed(self) -> list[Job]:
        return list(self._kept)

    def find(self, number: int) -> Job:
        """Raises BridgeError."""
        found = next((one for one in self._kept if one.number == number), None)
        if found is None:
            raise BridgeError(f"there is no job {number}: this process keeps the last {_KEPT}")
        return found

    def start(self, kind: Literal["prove", "replay"], who: str, what: str, work: Work) -> Job:
        """Raises BridgeError while another runs: each reads a lot."""
        with self._lock:
            if any(one.state == "running" for one in self._kept):
                raise BridgeError(
                    "another job runs", reason="job_running", hint="wait for its end, or stop it"
                )
            self._number += 1
            job = Job(self._number, kind, who, what, time.time())
            self._kept.appendleft(job)
        threading.Thread(target=self._run, args=[job, work], name=f"console-{kind}", daemon=True).start()
        return job

    def _run(self, job: Job, work: Work) -> None:
        try:
            job.text, job.told, well = work(job)
            job.state = "done" if well else "differs"
        except Stopped:
            job.state, job.text = "stopped", f"stopped while at: {job.progress}"
        except BridgeError as error:
            job.state, job.text, job.hint = "failed", str(error.args[0]), error.hint or ""
        except Exception as error:
            job.state, job.text = "failed", f"a defect in the bridge: {type(error).__name__}"
            _LOG.error("defect", job=job.kind, **safe_error(error))
        job.progress, job.ended = "", time.time()
