"""Each command that connects, when it cannot: exit code 3, which server it was, and what to do about it."""

from __future__ import annotations

import sys
import uuid

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from bridge.cli import main
from tests.support.bridge_process import DEFAULT_CONFIG
from tests.support.servers import Database

COMMANDS = (
    "install",
    "emit anything {}",
    "status",
    "top",
    "tail --no-follow",
    f"explain {uuid.UUID(int=1)}",
    "dead list",
    "prune --dry-run",
    "prove",
    "replay --destination events --since 1h --dry-run",
    "recover --accept-gap",
)
NOBODY = "host=127.0.0.1 port=1 dbname=app user=nobody"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("BRIDGE_CONFIG", str(DEFAULT_CONFIG))
    monkeypatch.setenv("BRIDGE_ADMIN", "127.0.0.1:1")
    return monkeypatch


def said(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str) -> str:
    """What the command prints as its error, of which the exit code is 3."""
    environment.setattr(sys, "argv", ["bridge", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 3, error
    return error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_that_is_not_there_is_exit_code_3_with_what_to_do(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    environment.setenv("SOURCE_DSN", NOBODY)
    environment.setenv("WAREHOUSE_DSN", NOBODY)
    error = said(environment, capsys, command)
    assert "Connection refused" in error
    assert "fix: nothing listens there: correct `host` and `port`" in error


@pytest.mark.parametrize("command", ["status", "prove", "replay --destination events --since 1h"])
def test_a_wrong_database_or_role_is_named(
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: Database,
    target: Database,
    command: str,
) -> None:
    environment.setenv("SOURCE_DSN", source.bridge_dsn)
    for wrong, fix in (
        (make_conninfo(target.bridge_dsn, dbname="nope"), "fix: correct `dbname` in the dsn"),
        (make_conninfo(target.bridge_dsn, user="nope"), "fix: correct"),
    ):
        environment.setenv("WAREHOUSE_DSN", wrong)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(wrong)
        assert fix in said(environment, capsys, command)
