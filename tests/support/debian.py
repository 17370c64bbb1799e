"""Tools of Debian's that tests need (promtool, pgbouncer): found on PATH, else fetched, without root.

The package and the libraries it names are downloaded and unpacked into a folder of the user's cache; nothing
is installed and no service is started. Where there is no apt, the error says what to install. Either way the
tool has been run once as the user who will run it: it may be another than ours, who cannot reach our cache.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.demo.binaries import Identity

if TYPE_CHECKING:
    from tests.support.world import World

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outbox-bridge-tests"
_OURSELVES = Identity()


class ToolMissing(AssertionError):
    """A tool that a test needs is not here and could not be fetched."""


def tool(name: str, *packages: str, identity: Identity = _OURSELVES) -> tuple[str, dict[str, str]]:
    """The path of `name`, where `identity` can run it, and the environment to run it in. packages: Debian's,
    its own first."""
    environment = identity.popen(Path("/"))["env"]
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is not None and identity.run([found, "--version"]).returncode == 0:
        return found, environment
    root = _unpacked(name, packages, identity)
    return str(_program(root, name)), environment | _libraries(root)


def at_hand(world: World, name: str, *packages: str) -> None:
    """The tool is in the PATH of `world.typed`, on a machine that lacks it too."""
    path, environment = tool(name, *packages)
    script = world.directory / "bin" / name
    script.parent.mkdir(exist_ok=True)
    libraries = shlex.quote(f"LD_LIBRARY_PATH={environment.get('LD_LIBRARY_PATH', '')}")
    script.write_text(f'#!/bin/sh\nexec env {libraries} {shlex.quote(path)} "$@"\n')
    script.chmod(0o755)


def browser() -> tuple[str, dict[str, str]]:
    """The path of chromium, which we can run, and the environment to run it in. Its many libraries are fetched with it,
    as far as they are not here."""
    found = shutil.which("chromium")
    if found is not None:
        return found, dict(os.environ)
    root = CACHE / "chromium"
    with locked(CACHE):
        if not (root / ".complete").exists():
            _fetch("chromium", root, ("chromium",), whole=True)
    return str(root / "usr/lib/chromium/chromium"), os.environ | _libraries(root)


@cache
def _unpacked(name: str, packages: tuple[str, ...], identity: Identity) -> Path:
    """Debian's packages, in a folder where `identity` can run the program in them."""
    part = Path(packages[0])
    with locked(CACHE):  # several test processes may want it at once
        if not (CACHE / part / ".complete").exists():
            _fetch(name, CACHE / part, packages)

    def version(base: Path) -> subprocess.CompletedProcess[str]:
        root = base / part
        return identity.run([_program(root, name), "--version"], _libraries(root))

    return identity.within_reach(CACHE, [part], version) / part


def _program(root: Path, name: str) -> Path:
    programs = (at for at in root.rglob(name) if at.parent.name in ("bin", "sbin", "games"))
    path = next((at for at in programs if at.is_file() and os.access(at, os.X_OK)), None)
    if path is None:
        raise ToolMissing(f"{name} is not in Debian's {root.name}")
    return path


def _libraries(root: Path) -> dict[str, str]:
    folders = {str(at.parent) for at in root.rglob("*.so*")}
    return {"LD_LIBRARY_PATH": ":".join(sorted(folders))}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(name: str, root: Path, packages: tuple[str, ...], *, whole: bool = False) -> None:
    """whole: with all that they depend on and that is not installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ToolMissing(f"{name} is not on PATH: install it (Debian's package is {packages[0]})")
    shutil.rmtree(root, ignore_errors=True)
    state = root / "apt"
    for folder in (state / "lists" / "partial", state / "cache" / "archives" / "partial", root / "debs"):
        folder.mkdir(parents=True)
    options = [
        f"-oDir::State::lists={state / 'lists'}",
        f"-oDir::Cache={state / 'cache'}",
        "-oAPT::Sandbox::User=",
        "-oDebug::NoLocking=1",
    ]

    def apt(*command: str) -> str:
        done = subprocess.run(
            ["apt-get", "-qq", *options, *command],
            cwd=root / "debs",
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode != 0:
            raise ToolMissing(
                f"{name} could not be fetched from Debian's {packages[0]}: {done.stderr.strip()}"
            )
        return done.stdout

    apt("update")
    if whole:
        plan = apt("--simulate", "--no-install-recommends", "install", *packages)
        packages = tuple(line.split()[1] for line in plan.splitlines() if line.startswith("Inst "))
    apt("download", *packages)
    for package in (root / "debs").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True, timeout=120)
    shutil.rmtree(state)
    shutil.rmtree(root / "debs")
    (root / ".complete").touch()
