"""Who opens connections, and what each profile sets. The connections themselves: tests/security/test_pooler.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import bridge
from bridge.postgres import profiles
from bridge.postgres.profiles import Profile

PACKAGE = Path(bridge.__file__).parent
CONNECTS = PACKAGE / "postgres" / "connect.py"
OPENERS = {
    "psycopg.connect",
    "Connection.connect",
    "AsyncConnection.connect",
    "PGconn.connect",
    "PGconn.connect_start",
    "psycopg_pool.ConnectionPool",
    "psycopg_pool.AsyncConnectionPool",
    "psycopg_pool.NullConnectionPool",
    "psycopg_pool.AsyncNullConnectionPool",
}
PROFILES = [value for value in vars(profiles).values() if isinstance(value, Profile)]


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(what is called, the call); imported under another name or not."""
    tree = ast.parse(path.read_text())
    known = {
        alias.asname or alias.name: f"{node.module or ''}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield known.get(first, first) + dot + rest, node


def _modules() -> list[Path]:
    """The product's; the demo plays the customer and has its own connections."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "demo" not in path.relative_to(PACKAGE).parts]


@cache
def _product() -> list[tuple[Path, str, ast.Call]]:
    """(module, what is called, the call)."""
    return [(path, called, call) for path in _modules() for called, call in _calls(path)]


def _opens(called: str) -> bool:
    return any(called == opener or called.endswith(f".{opener}") for opener in OPENERS)


def test_one_module_opens_connections() -> None:
    found = {path for path, called, _ in _product() if _opens(called)}
    assert found == {CONNECTS}


def test_a_call_is_found_under_any_name(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    for text in (
        "import psycopg\npsycopg.connect('')",
        "from psycopg import connect\nconnect('')",
        "from psycopg import connect as dial\ndial('')",
        "import psycopg\npsycopg.AsyncConnection.connect('')",
        "from psycopg import pq\npq.PGconn.connect_start(b'')",
        "from psycopg_pool import AsyncConnectionPool as P\nP('')",
    ):
        file.write_text(text)
        assert [called for called, _ in _calls(file) if _opens(called)], text


def test_transactions_begin_where_the_settings_are_known() -> None:
    """execute("begin") would begin inside of the transaction that a statement gets behind a pooler."""
    for path, called, call in _product():
        if called.endswith(".execute") and call.args:
            text = ast.unparse(call.args[0]).strip("bf'\" ").lower()
            assert not text.startswith(("begin", "start transaction", "set session")), f"{path}: {text}"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_profile_pins_what_changes_meaning(profile: Profile) -> None:
    names = [name for name, _ in profile.settings]
    assert len(names) == len(set(names))
    assert "statement_timeout" not in names  # from statement_seconds, with which the wait for answers agrees
    if profile not in (profiles.ENRICH, profiles.DOCTOR_ENRICH):  # queries of the customer's
        assert {name for name, _ in profiles._MEANING} <= set(names)
        if profile is not profiles.STREAM:  # a decoder sees every row
            assert ("row_security", "off") in profile.settings
    if profile.answer_seconds is not None:
        assert profile.answer_seconds > profile.statement_seconds > 0


def test_every_profile_is_used() -> None:
    text = "".join(path.read_text() for path in _modules() if path.name != "profiles.py")
    for name, value in vars(profiles).items():
        if isinstance(value, Profile):
            assert f"{name}" in text, name
