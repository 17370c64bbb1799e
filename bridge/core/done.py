"""What a stream must not apply again, by invariant I6. Apart from protocol.py because it runs over events."""

from __future__ import annotations

from dataclasses import replace

from bridge.core.event import Batch
from bridge.core.lsn import Lsn
from bridge.core.snapshot import Snapshot


class Done:
    """What was applied before this stream started: shown by the floor, or listed as applied by polling or
    by an earlier slot. A slot may bring it again."""

    def __init__(self, listed: frozenset[int], floor: Snapshot) -> None:
        self.listed = listed
        self.floor = floor
        self.beyond = max(floor.xmax, max(listed, default=0) + 1)  # no xid from here on is done

    def without(self, batch: Batch) -> Batch:
        """The batch less what is done already; the same object in the ordinary case."""
        events = batch.events
        lowest = min(batch.xids, default=int(events[0].xid) if events else self.beyond)
        if lowest >= self.beyond:
            return batch
        kept = [pair for pair in zip(batch.xids, batch.end_lsns, strict=True) if not self._has(pair[0])]
        return replace(
            batch,
            events=[event for event in events if not self._has(int(event.xid))],
            xids=[xid for xid, _ in kept],
            end_lsns=[lsn for _, lsn in kept],
        )

    def _has(self, xid: int) -> bool:
        return xid in self.listed or self.floor.shows(xid)


def located(batch: Batch, lsn: Lsn) -> Batch:
    """Rows read from the table have no LSN of their own: they committed before `lsn`."""
    return replace(batch, end_lsns=[lsn] * len(batch.xids))
