"""The sdist and the wheel as a release has them, and virtual environments to try the wheel in."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path


def build(tree: Path, into: Path) -> tuple[Path, Path]:
    """The sdist and the wheel; the wheel is built from the sdist. Nothing is fetched."""
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into), str(tree))
    [sdist], [wheel] = into.glob("*.tar.gz"), into.glob("*.whl")
    return sdist, wheel


def environment(at: Path, *packages: str, fetched: bool) -> Path:
    """A new environment with these packages; returns its folder of commands.

    fetched: what they depend on comes from the package index. Otherwise the tests' own environment lends it: at once,
    and without a network.
    """
    _run(sys.executable, "-m", "venv", "--without-pip", str(at))
    python = str(at / "bin" / "python")
    alone = [] if fetched else ["--no-deps", "--no-index"]
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *alone, *packages)
    if not fetched:
        [site] = at.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return at / "bin"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
