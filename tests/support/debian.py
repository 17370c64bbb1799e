"""Tools of Debian's that tests need (promtool, pgbouncer): found on PATH, else fetched, without root.

The package and the libraries it names are downloaded and unpacked into a folder of the user's cache; nothing
is installed and no service is started. Where there is no apt, the error says what to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "outbox-bridge-tests"


class ToolMissing(AssertionError):
    """A tool that a test needs is not here and could not be fetched."""


def tool(name: str, *packages: str) -> tuple[str, dict[str, str]]:
    """The path of `name` and the environment to run it in. packages: Debian's, its own first."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is not None:
        return found, dict(os.environ)
    root = CACHE / packages[0]
    if not (root / ".complete").exists():
        _fetch(name, root, packages)
    programs = (at for at in root.rglob(name) if at.parent.name in ("bin", "sbin", "games"))
    path = next((at for at in programs if at.is_file() and os.access(at, os.X_OK)), None)
    if path is None:
        raise ToolMissing(f"{name} is not in Debian's {packages[0]}")
    libraries = {str(at.parent) for at in root.rglob("*.so*")}
    return str(path), {**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(libraries))}


def _fetch(name: str, root: Path, packages: tuple[str, ...]) -> None:
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
    for command in (["update"], ["download", *packages]):
        done = subprocess.run(
            ["apt-get", "-qq", *options, *command],
            cwd=root / "debs",
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0:
            raise ToolMissing(
                f"{name} could not be fetched from Debian's {packages[0]}: {done.stderr.strip()}"
            )
    for package in (root / "debs").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True, timeout=120)
    shutil.rmtree(state)
    shutil.rmtree(root / "debs")
    (root / ".complete").touch()
