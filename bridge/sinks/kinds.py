"""Every sink by its connection's `type`: the modules of this package, except those that sinks share."""

from __future__ import annotations

from bridge.discover import Kinds
from bridge.sinks.model import SinkConnection

SINKS = Kinds(__name__, SinkConnection, but=("apprise_thread", "http", "judge", "kinds", "model"))
