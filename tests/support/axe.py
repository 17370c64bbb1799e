"""axe-core, from npm: what it finds on a page that keeps somebody from using it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path

from tests.support.chromium import Chromium
from tests.support.debian import CACHE, locked

_VERSION = "4.14.1"


@cache
def _script() -> str:
    folder = CACHE / f"axe-core-{_VERSION}"
    with locked(CACHE):  # several test processes may want it at once
        if not (folder / "package" / "axe.min.js").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"axe-core@{_VERSION}"]
            subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
            with tarfile.open(folder / f"axe-core-{_VERSION}.tgz") as packed:
                packed.extract("package/axe.min.js", folder, filter="data")
    return Path(folder / "package" / "axe.min.js").read_text()


def findings(browser: Chromium) -> list[str]:
    """Serious and critical ones of the page: rule, and where."""
    browser.run(f"{_script()}; true")
    told = json.loads(str(browser.run("axe.run().then((one) => JSON.stringify(one.violations))")))
    return [
        f"{one['id']}: {one['help']}: {node['target']} {node['html'][:120]}"
        for one in told
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
