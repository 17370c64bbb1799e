"""Fixtures: a source and a target database a test, on shared servers or, to crash, on private ones; and the world.

`source` and `target` are fresh copies of a template on servers of the session. A test that also asks for
`source_cluster` or `target_cluster` gets its database on a server of its own, which it may crash.
On a DSN such tests are deselected, and the closing lines say so. `world` is both, a configuration, and the bridges
and commands that run on it. The map of the tests is in CONTRIBUTING.md.
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest

from tests.support import fixes
from tests.support.bridge_process import BridgeProcess
from tests.support.proxy import FaultProxy
from tests.support.servers import (
    ContainerServer,
    Database,
    EmbeddedServer,
    Server,
    Servers,
    create_database,
    drop_database,
    provider,
    template_of,
)
from tests.support.world import Kind, World, make_database

# No test depends on the machine's speed, and hypothesis' deadline for an example would.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# Where the environment forbids to keep bytecode, a bridge of a test would compile its package at every start, which
# is half of what that start costs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_numbers = itertools.count(1)
_DESELECTED = pytest.StashKey[dict[str, int]]()


_OPEN_FILES = 8192


def pytest_configure(config: pytest.Config) -> None:
    soft, hard = resource.getrlimit(
        resource.RLIMIT_NOFILE
    )  # a login shell's 1024 are fewer than one test's connections
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    for marker in (
        "matrix: run on every PostgreSQL major by `make test-matrix`",
        "fault(row, ...): proves these rows of the fault matrix (the one in docs/guarantees.md is made from them)",
        "security(row, ...): proves these rows of docs/security.md",
        "data_directory: copies, restores or promotes a data directory; needs the embedded provider",
        "node: needs node 20 and npm",
        "slow: more than about ten seconds; `make test-all` runs it, `make test` does not",
    ):
        config.addinivalue_line("markers", marker)


def pytest_report_header() -> str:
    return f"postgres: {provider()}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the chosen provider cannot do, and remember why."""
    reasons: dict[str, int] = {}
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        reason = ""
        if provider() == "dsn" and fixtures & {"source_cluster", "target_cluster"}:
            reason = "they crash a server, which BRIDGE_TEST_DSN does not allow"
        elif provider() != "embedded" and item.get_closest_marker("data_directory"):
            reason = "they copy data directories, which needs the embedded provider"
        elif item.get_closest_marker("node") and not (shutil.which("node") and shutil.which("npm")):
            reason = "they need node 20 and npm"
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        (dropped if reason else kept).append(item)
    config.stash[_DESELECTED] = reasons
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for reason, count in config.stash.get(_DESELECTED, {}).items():
        terminalreporter.write_line(f"deselected {count} tests: {reason}")


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """XDG_RUNTIME_DIR of the test's bridges and commands, so that tests that run at once do not meet. Short, for a
    socket's path has at most 107 bytes (unix(7)), and reachable for every user, wherever TMPDIR is."""
    with tempfile.TemporaryDirectory(prefix="bridge-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield Path(made)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that is named for a printed fix has run it, as it was printed."""
    fixes.begin()
    yield
    left = fixes.missing(item.nodeid)
    assert not left, f"printed, and to be run by this test by `typed`: {left}"


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Every server of this session."""
    made = Servers()
    yield made
    made.close()


def _fresh(server: Server, template: str) -> Iterator[Database]:
    database = create_database(server, f"{template}_{next(_numbers)}", template)
    yield database
    drop_database(database)


def _private(servers: Servers, name: str) -> Iterator[EmbeddedServer | ContainerServer]:
    server = servers.private(name)
    yield server
    server.discard()


@pytest.fixture
def source_cluster(servers: Servers) -> Iterator[EmbeddedServer | ContainerServer]:
    """A server of this test's own that holds its `source`."""
    yield from _private(servers, "private-source")


@pytest.fixture
def target_cluster(servers: Servers) -> Iterator[EmbeddedServer | ContainerServer]:
    """A server of this test's own that holds its `target`."""
    yield from _private(servers, "private-target")


def _database(request: pytest.FixtureRequest, kind: Kind) -> Iterator[Database]:
    template = template_of(kind)
    if f"{kind}_cluster" in request.fixturenames:  # the database goes with its server
        yield make_database(request.getfixturevalue(f"{kind}_cluster"), template, kind)
        return
    servers: Servers = request.getfixturevalue("servers")
    server = servers.shared(kind, lambda fresh: make_database(fresh, template, kind))
    yield from _fresh(server, template)


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database with the outbox, crm.customer and rig.truth."""
    yield from _database(request, "source")


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database with the ledger, events.usage_limits and rig.effects."""
    yield from _database(request, "target")


@pytest.fixture
def source_connection(source: Database) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Superuser on the source, autocommit."""
    with source.connect() as connection:
        yield connection


@pytest.fixture
def target_connection(target: Database) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Superuser on the target, autocommit."""
    with target.connect() as connection:
        yield connection


@pytest.fixture
def proxy_to() -> Iterator[Callable[[str], FaultProxy]]:
    """Makes fault proxies in front of a DSN: `proxy = proxy_to(target.bridge_dsn)`, then `proxy.dsn`."""
    made: list[FaultProxy] = []

    def make(dsn: str) -> FaultProxy:
        made.append(FaultProxy(dsn))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def world(source: Database, target: Database, tmp_path: Path) -> Iterator[World]:
    """`source`, `target`, the demo's configuration between them, and the bridges and commands that run on it."""
    made = World(source, target, tmp_path)
    yield made
    made.close()


@pytest.fixture
def bridge_process(tmp_path: Path) -> Iterator[Callable[..., BridgeProcess]]:
    """Makes bridge processes that end with the test: `bridge_process(source=..., target=...)`."""
    made: list[BridgeProcess] = []

    def make(**arguments: Any) -> BridgeProcess:
        arguments.setdefault("directory", tmp_path)
        made.append(BridgeProcess(**arguments))
        return made[-1]

    yield make
    for process in made:
        process.close()
