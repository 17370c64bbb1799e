"""The socket by which commands ask a bridge that runs on this machine: what it runs with, and how it is.

An operator's shell has neither the unit's variables nor always a bridge.yaml without errors; the bridge has both. The
socket is for its own user and root, who can read the same in /proc/PID/environ: it has mode 0600 in a directory of the
bridge's user, and who asks is looked up (SO_PEERCRED).

A request is one word and the end of the stream; the answer is a JSON object: `config` (an Original), `status`, `logins`
(the connection strings from files that servers take).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

SYSTEM = Path("/run")
"""Where systemd makes a unit's RuntimeDirectory, and nobody but root makes anything."""
SHARED = Path("/tmp")  # noqa: S108  what is there counts only if it is a known user's own, and nobody else's
"""Where a bridge listens that neither systemd nor a session has given a directory."""

_NAME = "outbox-bridge"
_SECONDS = 4.0
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))

Answers = Mapping[str, Callable[[], Awaitable[Mapping[str, Any]]]]


def own_directories() -> Iterator[Path]:
    """Where a bridge may listen, the best first: what systemd made for it, the user's session, a directory of ours."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]  # systemd.exec(5)
    if given:
        yield Path(given)
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(session) / _NAME
    if os.geteuid() == 0:
        yield SYSTEM / _NAME
    yield Path(tempfile.gettempdir()) / f"{_NAME}-{os.geteuid()}"


def all_directories(owner: int | None) -> Iterator[Path]:
    """Where a bridge may be found. owner: the user who owns the configuration."""
    yield from own_directories()
    yield from sorted(SYSTEM.glob(f"{_NAME}*"))
    for user in {os.geteuid(), *(() if owner is None else (owner,))}:
        yield SYSTEM / "user" / str(user) / _NAME
        yield SHARED / f"{_NAME}-{user}"


def _safe(directory: Path, owners: set[int]) -> bool:
    """Is nobody else able to put something there? Raises OSError."""
    found = directory.stat()
    ours = found.st_uid in owners or directory.parent == SYSTEM
    return stat.S_ISDIR(found.st_mode) and ours and not found.st_mode & 0o022


def peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other side."""
    pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


# --- the bridge's side ------------------------------------------------------------------------------------


def listen(config: Path) -> socket.socket:
    """A socket for the bridge that runs this file. Raises OSError if no directory takes it."""
    name = hashlib.blake2s(os.path.abspath(config).encode(), digest_size=8).hexdigest()
    failed: OSError = OSError("no directory")
    for directory in own_directories():
        made = socket.socket(socket.AF_UNIX)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _safe(directory, {os.geteuid()}):
                raise PermissionError(f"{directory} is not only this user's")
            _sweep(directory)
            path = directory / f"{name}-{os.getpid()}.sock"
            path.unlink(missing_ok=True)
            made.bind(str(path))
            path.chmod(0o600)
            made.listen(16)
        except OSError as error:
            made.close()
            failed = error
        else:
            made.setblocking(False)
            return made
    raise failed


def _sweep(directory: Path) -> None:
    """Remove the sockets of bridges that were killed."""
    for path in directory.glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as asked, contextlib.suppress(OSError):
            asked.settimeout(_SECONDS)
            try:
                asked.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


async def serve(listening: socket.socket, answers: Answers, stop: asyncio.Event) -> None:
    """Answer until told to stop; the socket's file is gone then."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            _, uid = peer(writer.get_extra_info("socket"))
            if uid in (0, os.geteuid()):
                word = await asyncio.wait_for(reader.read(64), _SECONDS)
                made = answers.get(word.decode(errors="replace").strip())
                said = {} if made is None else await made()
                writer.write(json.dumps({"pid": os.getpid(), **said}).encode())
                await writer.drain()
        writer.close()

    path = Path(listening.getsockname())
    try:
        async with await asyncio.start_unix_server(answer, sock=listening):
            await stop.wait()
    finally:
        path.unlink(missing_ok=True)


# --- a command's side -------------------------------------------------------------------------------------


def ask(word: str, owner: int | None) -> tuple[list[dict[str, Any]], bool]:
    """The answers of all bridges that this user may ask, and whether there may be others. owner: as all_directories().

    What answers is trusted with a command of this user, so it must be this user's, root's, the configuration's owner's,
    or of a directory that root has made.
    """
    owners = {0, os.geteuid(), *(() if owner is None else (owner,))}
    found: dict[Path, dict[str, Any]] = {}
    hidden = False
    for directory in all_directories(owner):
        try:
            if not _safe(directory, owners):
                continue
            paths = sorted(directory.glob("*.sock")) if os.access(directory, os.R_OK | os.X_OK) else None
        except FileNotFoundError:
            continue
        except OSError:
            paths = None
        if paths is None:
            hidden = True
            continue
        for path in {each.resolve() for each in paths} - found.keys():
            try:
                found[path] = _asked(path, word)
            except PermissionError:
                hidden = True
            except (OSError, ValueError):
                continue  # it was killed, or is being stopped
    return list(found.values()), hidden


def _asked(path: Path, word: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(str(path))
        connection.sendall(word.encode())
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    said: dict[str, Any] = json.loads(b"".join(parts))
    return said
