"""Who gives a command."""

from __future__ import annotations

import getpass
import os
import socket

from bridge.operate.audit import Actor


def operator(reason: str | None = None) -> Actor:
    """Who gives the command: behind sudo the person; where the system has no name for the user, the database's."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        name = os.environ.get("PGUSER") or str(os.getuid())
    return Actor(f"{name}@{socket.gethostname()}", "command", reason)
