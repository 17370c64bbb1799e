"""Processes that end with us, even when we are killed and can end nothing.

Apart from cluster.py because the demo's bridge needs it too. A small shell leaves a watcher on a pipe
from us and becomes the program. When the pipe breaks, the watcher stops the program (SIGQUIT: an
immediate stop for Postgres) and removes a directory. It needs neither Linux nor a thread that lives on.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import IO, Any

# $$ stays the process id when the shell becomes the program. A line on the pipe means: it has ended.
_WATCHED = """
root=$1; shift
exec 3<&0 </dev/null
( {
    read -r _ <&3 && exit
    kill -QUIT $$
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        kill -0 $$ || break
        sleep 0.2
    done
    [ -z "$root" ] || rm -rf -- "$root"
} 2>/dev/null & )
exec 3<&-
exec "$@"
"""


def spawn(
    command: list[str], log: IO[Any], *, remove: Path | None = None, **popen: Any
) -> subprocess.Popen[bytes]:
    """Start `command`, both outputs to `log`, in a session of its own (Ctrl-C is for us). `remove`: what
    the watcher deletes when we were killed. Call `ended()` once it was waited for."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHED, "sh", str(remove or ""), *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **popen,
    )


def ended(process: subprocess.Popen[bytes]) -> None:
    """Dismiss the watcher of a process that was waited for, before its id belongs to another."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # the watcher may have been killed too
            process.stdin.write(b"ended\n")
            process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()
