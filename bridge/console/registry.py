"""Every page and operation of the console."""

from __future__ import annotations

from bridge.console import dead, deliveries, events, overview

PAGES = {**overview.PAGES, **dead.PAGES, **events.PAGES, **deliveries.PAGES}
OPERATIONS = (*overview.OPERATIONS, *dead.OPERATIONS, *events.OPERATIONS, *deliveries.OPERATIONS)
