"""Every page and operation of the console."""

from __future__ import annotations

from bridge.console import overview

PAGES = {**overview.PAGES}
OPERATIONS = (*overview.OPERATIONS,)
