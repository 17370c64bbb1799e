"""Every page and operation of the console."""

from __future__ import annotations

from bridge.console import configuration, dead, deliveries, events, jobs, overview

_PARTS = (overview, dead, events, deliveries, configuration, jobs)
PAGES = {path: page for part in _PARTS for path, page in part.PAGES.items()}
OPERATIONS = tuple(one for part in _PARTS for one in part.OPERATIONS)
