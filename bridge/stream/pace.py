"""How much a target takes at once, and what is known of it, across the sessions of a stream.

A target that takes 60 ms a row (a trigger, a slow disk) does not finish a large batch within statement_timeout, however
often it is sent. So the limit of a batch is halved until one is applied, and doubled again with each that is.
"""

from __future__ import annotations

from bridge.attempts import Limit
from bridge.errors import Retry

LATE_SECONDS = 20.0
"""A batch that is in flight for longer is told: the stream is not delivering."""


class Pace:
    """batch: its events. judge_chunks: judge deferred constraints after every chunk of a transaction, because
    at its end one was violated and its rows were no longer in memory."""

    def __init__(self, most: int = 2000) -> None:
        self.batch = Limit(most)
        self.judge_chunks = False
        self.slowed = False
        """Something is not as it is at first: worked() has something to do."""

    def at_most(self, events: int) -> None:
        """The configuration's limit."""
        if events != self.batch.most:
            self.batch = Limit(events)

    def too_slow(self, events: int) -> Retry:
        """A batch of so many events timed out: what to raise."""
        self.batch.too_much(events)
        self.slowed = True
        return Retry(
            f"the target did not finish a batch of {events} events within its statement_timeout; "
            f"the next has at most {self.batch.now}",
            reason="target_slow",
            hint=SLOW,
        )

    def late(self, events: int) -> Retry:
        """A batch is in flight for LATE_SECONDS."""
        return Retry(
            f"the target has been at a batch of {events} events for more than {LATE_SECONDS:.0f} s",
            reason="target_slow",
            hint=SLOW,
        )

    def judged_by_chunks(self) -> None:
        """From now on, until something was applied."""
        self.judge_chunks = self.slowed = True

    def worked(self) -> None:
        """A batch is durable."""
        self.batch.worked()
        self.judge_chunks = False
        self.slowed = self.batch.now < self.batch.most


SLOW = (
    "what the target does for each row is slow, or waits for a lock: look at the table's triggers, and at "
    "select * from pg_stat_activity where application_name like 'bridge/%'"
)
