"""A terminal for a command that asks a person."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminal(typed: str) -> Iterator[int]:
    """The command's end of a terminal of its own, into which this has been typed."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, typed.encode())
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)
