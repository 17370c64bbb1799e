"""What must not stand in the code at all, and defaults that must not change unnoticed."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridge.config.load import load
from bridge.config.model import Admin, Config, IngressSection
from bridge.errors import BridgeError, ConfigError
from bridge.failpoints import VARIABLE
from bridge.problem import InvalidConfig

ROOT = Path(__file__).parents[2]
TREES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "bridge").rglob("*.py"))}
FORBIDDEN_CALLS = {"exec", "__import__"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.security(17)
def test_no_code_is_made_from_what_outsiders_write() -> None:
    """eval() stands in one place: the row parser, compiled from counts (stream/relation.py)."""
    found: list[str] = []
    for path, tree in TREES.items():
        for call in _calls(tree):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name in FORBIDDEN_CALLS or name in {"eval", "compile"}:
                found.append(f"{path.relative_to(ROOT)}:{name}")
        for node in ast.walk(tree):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not FORBIDDEN_MODULES & {name.partition(".")[0] for name in names + module}, path
    assert not [each for each in found if "stream/relation.py" not in each], found


@pytest.mark.security(17)
def test_yaml_constructs_nothing_but_plain_values() -> None:
    """PyYAML is used up to nodes (config/document.py), or by safe_load."""
    for path, tree in TREES.items():
        for call in _calls(tree):
            if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
                used = (call.func.value.id, call.func.attr)
                assert used not in {
                    ("yaml", each) for each in ("load", "load_all", "unsafe_load", "full_load")
                }, path


@pytest.mark.security(10)
def test_secrets_and_signatures_are_compared_in_constant_time() -> None:
    secret = {
        "given",
        "digest",
        "message",
        "ours",
        "expected",
        "signature",
        "key",
        "keys",
        "_digests",
        "_token",
        "token",
    }
    comparing = ("signatures/scheme.py", "ingress/settings.py", "observe/access.py")
    for name in (*comparing, "signatures/configurable.py", "signatures/senders.py"):
        tree = TREES[ROOT / "bridge" / name]
        called = {ast.unparse(call.func) for call in _calls(tree)}
        assert called & {"hmac.compare_digest", *(() if name in comparing else ("is_secret",))}, name
        for compared in (node for node in ast.walk(tree) if isinstance(node, ast.Compare)):
            if not all(isinstance(how, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for how in compared.ops):
                continue  # `is None`, an order
            sides = {ast.unparse(side).rpartition(".")[2] for side in (compared.left, *compared.comparators)}
            assert not sides & secret, f"{name}:{compared.lineno}: {ast.unparse(compared)}"


@pytest.mark.security(9)
def test_no_process_is_started_by_a_shell() -> None:
    for path, tree in TREES.items():
        for call in _calls(tree):
            for keyword in call.keywords:
                shell = keyword.arg == "shell" and getattr(keyword.value, "value", None) is not False
                assert not shell, path


def _load(tmp_path: Path, text: str, **environ: str) -> Config:
    file = tmp_path / "bridge.yaml"
    file.write_text(text)
    return load(file, environ)


@pytest.mark.security(17)
@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nversion: 1\n",
        "version: 1\nsource: { dsn: a=b, dsn: c=d }\n",
        "version: !!python/object/apply:os.system ['true']\n",
        "version: !!python/name:os.system\n",
        "version: &a [*a]\n",
    ],
)
def test_a_file_with_duplicate_keys_or_tags_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        _load(tmp_path, text)


@pytest.mark.fault(78)
@pytest.mark.security(18)
def test_http_listens_on_loopback_by_default() -> None:
    assert Admin().listen.is_loopback
    assert IngressSection(api_keys=("key",)).listen.is_loopback
    with pytest.raises(ValueError, match="needs a token"):
        Admin.model_validate({"listen": "0.0.0.0:8377"})


@pytest.mark.security(19)
def test_failpoints_are_switched_on_by_the_environment_alone() -> None:
    """Nothing but failpoints.py reads the variable, and no key of bridge.yaml leads there."""
    readers = [path.name for path in TREES if VARIABLE in path.read_text()]
    assert readers == ["failpoints.py"]
    assert "failpoint" not in str(Config.model_json_schema()).lower()
    with pytest.raises(ValueError, match="failpoints"):
        Config.model_validate({"version": 1, "failpoints": "apply.sent=kill"})
    assert VARIABLE not in os.environ


SECRET = "s3cret-0f-a-k1nd"


@pytest.mark.security(9)
def test_a_configuration_never_prints_its_secrets(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET)
    config = _load(
        tmp_path,
        "version: 1\n"
        "source: { dsn: 'postgresql://u:${PW}@h/d', password: '${PW}' }\n"
        "connections: { w: { type: postgres, dsn: 'host=h password=${PW}' }, "
        "s: { type: slack, webhook_url: 'https://hooks.slack.com/services/${PW}' } }\n"
        "admin: { token: '${file:key}' }\n"
        "ingress: { api_keys: ['${PW}'], webhooks: { x: { scheme: github, secrets: ['${PW}'] } } }\n",
        PW=SECRET,
    )
    for shown in (
        repr(config),
        str(config),
        repr(config.source),
        repr(config.connections),
        f"{config!r:.90000}",
    ):
        assert SECRET not in shown


@pytest.mark.security(9)
@given(
    st.sampled_from(
        ["source: { dsn: %s }", "source: { retention: %s }", "admin: { listen: %s }", "strict: %s"]
    )
)
def test_a_configuration_error_never_quotes_what_a_variable_holds(line: str) -> None:
    file = Path(__file__).with_name("no-such-file.yaml")
    from bridge.config.document import parse  # noqa: PLC0415 - from text, as read() does
    from bridge.config.load import build  # noqa: PLC0415

    document = parse(
        "version: 1\n" + line % "'x=${PW}'", {"PW": SECRET}, file=str(file), directory=file.parent
    )
    build(document)
    said = str(InvalidConfig(str(file), document.problems)) if document.problems else ""
    assert SECRET not in said


@pytest.mark.security(8)
def test_every_error_of_ours_is_made_without_the_text_of_a_server() -> None:
    """str() of a psycopg error can hold a row. It is passed on only where the error has no SQLSTATE."""
    allowed = {"safe_error.py", "reach.py", "connect.py", "wire.py"}
    found = [
        str(path.relative_to(ROOT))
        for path in TREES
        if re.search(r"str\(error\)|\{error\}", path.read_text()) and path.name not in allowed
    ]
    assert isinstance(BridgeError("x"), Exception)
    assert not [each for each in found if "/postgres/" in each and not each.endswith("source.py")], found


def test_the_tree_was_read() -> None:
    assert len(TREES) > 100
    assert yaml.__version__
