"""Every page and operation of the console."""

from __future__ import annotations

from bridge.console import dead, overview

PAGES = {**overview.PAGES, **dead.PAGES}
OPERATIONS = (*overview.OPERATIONS, *dead.OPERATIONS)
