"""What a start costs is what it imports: no command loads what it does not need (docs/performance.md has the figures).

Counted, not timed: modules and collections are the same on every machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "bridge" / "demo" / "bridge.yaml"
RUN_BUDGET = 560
"""Modules of `import bridge.daemon`: 517 on Python 3.11, of 709 before they were counted. Raise it for a reason."""


def after(program: str) -> dict[str, int]:
    """Name -> 1 of the modules that a fresh interpreter has after `program`; "": its collections of all objects."""
    ending = (
        "\nimport gc, json, sys\n"
        "found = dict.fromkeys(sys.modules, 1) | {'': gc.get_stats()[2]['collections']}\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + ending],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.endswith("_DSN")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def command(*arguments: str) -> str:
    return (
        f"import sys; sys.argv[1:] = {list(arguments)}\n"
        "from bridge.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


def packages(found: dict[str, int]) -> set[str]:
    return {name.partition(".")[0] for name in found}


def test_a_stream_starts_without_servers_terminals_and_vendors() -> None:
    found = after("import bridge.daemon")
    needless = packages(found) & {
        *("uvicorn", "starlette", "h11", "anyio"),  # the admin server's and the ingress's
        *("rich", "rich_click", "pygments", "attr", "structlog"),  # for terminals
        *("aiohttp", "aiosmtplib", "standardwebhooks", "apprise"),  # the sinks'
        *("nats", "nkeys", "nacl"),  # for connections of type nats
        *("click", "yaml", "multiprocessing"),
    }
    assert not needless, needless
    ours = {
        name
        for name in found
        if name.startswith(("bridge.ingress", "bridge.doctor", "bridge.prove", "bridge.bus"))
    }
    assert not ours
    assert not {"bridge.dispatch.dispatcher", "bridge.sharing", "bridge.postgres.sharing"} & found.keys()
    assert "psycopg" in found
    assert len(found) <= RUN_BUDGET, f"{len(found)} modules"


def test_lint_of_a_file_without_values_loads_no_postgres() -> None:
    found = after(command("lint", "-c", str(CONFIG)))
    assert "bridge.config.model" in found
    assert not {"bridge.bus", "nats"} & found.keys()
    assert not packages(found) & {"psycopg", "psycopg_binary", "uvicorn", "starlette", "prometheus_client"}
    assert not found[""], "the collector looked at all objects while they were loaded"


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--help"]])
def test_help_and_version_load_no_configuration(arguments: list[str]) -> None:
    assert not packages(after(command(*arguments))) & {"pydantic", "psycopg", "yaml", "prometheus_client"}


def test_no_other_distribution_is_looked_at() -> None:
    """pydantic's plugins: it would open the metadata of everything installed, and give each the secrets of the file."""
    after(
        "import importlib.metadata\n"
        "def refuse(*_, **__):\n    raise AssertionError('looked for plugins')\n"
        "importlib.metadata.distributions = refuse\n"
        "import bridge.config.model"
    )
