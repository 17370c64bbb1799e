"""A new npm project in which our TypeScript SDK is installed from its package, under the product page's name for it.

Packed from a copy of sdk/typescript, so that several may be made at once. It wants node 20, npm, and for the
compiler npm's registry or cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

SDK = Path(__file__).parents[2] / "sdk" / "typescript"
ALIAS = "@ingestlayer/sdk"
_OPTIONS = "--strict --target ES2022 --module NodeNext --lib ES2022,DOM --pretty false"


class NpmProject:
    """In `directory`, which is there and empty."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "project"
        self.directory.mkdir()
        sdk = directory / "sdk"
        shutil.copytree(SDK, sdk, ignore=shutil.ignore_patterns("node_modules", "dist"))
        self._compiler = sdk / "node_modules" / "typescript" / "bin" / "tsc"
        # Without workerd's binary of 100 MB, which only the SDK's own tests need.
        self._run(
            sdk,
            "npm",
            "ci",
            *["--prefer-offline", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"],
        )
        package = self._run(sdk, "npm", "pack", "--silent", "--pack-destination", str(self.directory))
        self.write("package.json", json.dumps({"name": "shop", "private": True, "type": "module"}))
        alias = f"{ALIAS}@file:./{package.split()[-1]}"
        self._run(self.directory, "npm", "install", "--offline", "--no-audit", "--no-fund", alias)

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def compile(self, *files: str) -> None:
        """Type-checks and makes a .js of each .ts; fails with what the compiler says."""
        self.node(str(self._compiler), *_OPTIONS.split(), *files)

    def node(
        self, *arguments: str, environment: Mapping[str, str] | None = None, timeout: float = 120
    ) -> str:
        """Standard output."""
        return self._run(self.directory, "node", *arguments, environment=environment, timeout=timeout)

    @staticmethod
    def _run(
        directory: Path, *command: str, environment: Mapping[str, str] | None = None, timeout: float = 120
    ) -> str:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, (
            f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout
