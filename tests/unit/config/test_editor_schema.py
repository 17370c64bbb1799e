"""What the loader accepts the schema for editors accepts, and both refuse keys that nothing has."""

from __future__ import annotations

import ast
import copy
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from click.testing import CliRunner

from bridge.cli import cli
from bridge.config.document import parse
from bridge.config.load import build
from bridge.config.recipe import recipes
from bridge.config.schema import config_json_schema
from bridge.errors import ConfigError

ROOT = Path(__file__).parents[3]
EXAMPLE = Path(__file__).parent / "example.yaml"
Place = tuple[str | int, ...]


@cache
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(config_json_schema())
    return jsonschema.Draft202012Validator(config_json_schema())


def tree_of(text: str) -> Any:
    """The values of a file that the loader accepts; None: it does not."""
    try:
        document = parse(text, {}, file="bridge.yaml", directory=Path())
    except ConfigError:
        return None
    accepted = build(document, offline=True) is not None and not document.problems
    return document.tree if accepted else None


def refused(tree: Any) -> list[str]:
    return [f"{list(error.path)}: {error.message[:200]}" for error in validator().iter_errors(tree)]


@pytest.mark.parametrize("name", [None, *(one.name for one in recipes())])
def test_what_init_writes_is_accepted_and_names_its_schema(name: str | None, tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli, ["init", *(["--recipe", name] if name else []), str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    text = (tmp_path / "bridge.yaml").read_text()
    first = text.partition("\n")[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found is not None
    assert json.loads((tmp_path / found[1]).read_text()) == config_json_schema()
    assert refused(tree_of(text)) == []


def documented() -> Iterator[Any]:
    """Every configuration of the documentation; a part of one gets its version."""
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"^```yaml\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL):
            yield tree_of(block) or tree_of(f"version: 1\n{block}")
    for file in [EXAMPLE, ROOT / "bridge/demo/bridge.yaml", *(ROOT / "deploy").rglob("bridge.yaml")]:
        yield tree_of(file.read_text())


def test_what_the_documentation_shows_is_accepted() -> None:
    trees = [tree for tree in documented() if tree is not None]
    assert len(trees) > 15
    assert [found for tree in trees if (found := refused(tree))] == []


def written() -> Iterator[tuple[str, Any]]:
    """Every other configuration of the repository that the loader accepts: files, and the texts of the tests."""
    for folder in ("bridge", "deploy", "tests"):
        for path in sorted((ROOT / folder).rglob("*.y*ml")):
            yield str(path), tree_of(path.read_text())
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and "version: 1\n" in node.value
            ):
                yield f"{path}:{node.lineno}", tree_of(node.value)


def test_every_configuration_of_the_repository_is_accepted() -> None:
    found = [(where, tree) for where, tree in written() if tree is not None]
    assert {Path(where).parent.name for where, _ in found} >= {
        "usage-limits",
        "_starter",
        "demo",
        "compose",
    }
    assert sum(".py:" in where for where, _ in found) > 10
    assert {where: wrong for where, tree in found if (wrong := refused(tree))} == {}


def test_what_init_writes_for_an_own_event_is_accepted(tmp_path: Path) -> None:
    given = ["--event", "order.placed", "--field", "order_id:string", "--field", "total:number?"]
    ran = CliRunner().invoke(cli, ["init", *given, str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    tree = tree_of((tmp_path / "bridge.yaml").read_text())
    assert "order.placed" in tree["events"]
    assert refused(tree) == []


def places(tree: Any, at: Place = ()) -> Iterator[Place]:
    yield at
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, below in items:
        yield from places(below, (*at, key))


def value_at(tree: Any, at: Place) -> Any:
    for step in at:
        tree = tree[step]
    return tree


def put(tree: Any, at: Place, value: Any) -> Any:
    if not at:
        return value
    changed = copy.copy(tree)
    changed[at[0]] = put(tree[at[0]], at[1:], value)
    return changed


RICH = """
version: 1
source: { dsn: "${A}", failover: false, retention: 7d, batch: { max_events: 10 }, ignore_types: audit.* }
connections:
  warehouse: { type: postgres, dsn: "${B}", port: 5432 }
  hook: { type: webhook, url: "https://example.com", secret: "${S}" }
  mail: { type: email, host: smtp.example.com, port: 587, from: a@example.com }
events:
  a.b: { unknown: reject, fields: { c: string, n: "number?", s: { enum: [x, y], required: false } } }
pipelines:
  p:
    event: a.b
    steps: [ { filter: true }, { set: { r: $event.n } }, { redact: c } ]
    branches: [ { name: one, when: $event.n > 0, to: t }, { name: rest, to: [] } ]
    destinations:
      t: { connection: warehouse, table: e.t, mode: upsert, key: event_id, columns: { event_id: $meta.id } }
      h: { connection: hook, max_age: 1h, throttle: 5/h }
      m: { connection: mail, to: b@example.com, subject: s, text: t }
admin: { listen: "127.0.0.1:0" }
"""
VALUES = ("${VAR}", "${VAR:-5m}", True, 3, 1.5, "x", ["x"], [], {}, None, "true", "5", "5m", "a.*")


def test_whatever_the_loader_accepts_in_a_place_the_schema_accepts() -> None:
    tree = tree_of(RICH)
    assert tree is not None
    assert refused(tree) == []
    cases = [(at, value) for at in places(tree) for value in VALUES]
    wrong = []
    for at, value in random.Random(12).sample(cases, 150):
        changed = put(tree, at, value)
        if not validator().is_valid(changed) and tree_of(json.dumps(changed)) is not None:
            wrong.append((at, value))
    assert wrong == []


def test_a_key_that_nothing_has_is_refused_by_both() -> None:
    tree = tree_of(RICH)
    named: set[Place] = {  # below them, names are free
        ("connections",),
        ("events",),
        ("events", "a.b", "fields"),
        ("pipelines",),
        ("pipelines", "p", "steps", 1, "set"),
        ("pipelines", "p", "destinations"),
        ("pipelines", "p", "destinations", "t", "columns"),
    }
    for at in places(tree):
        value = value_at(tree, at)
        if not isinstance(value, dict) or at in named:
            continue
        changed = put(tree, at, {**value, "zz_unknown": "x"})
        assert tree_of(json.dumps(changed)) is None, at
        assert not validator().is_valid(changed), at


def test_the_schema_tells_what_keys_mean() -> None:
    schema = config_json_schema()
    silent = [
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, found in section.get("properties", {}).items()
        if not found.get("description")
    ]
    assert silent == []
    assert schema["$defs"]["PipelineSection"]["properties"]["event"]["examples"][0] == "usage.limit_reached"
    retained = schema["$defs"]["SourceSection"]["properties"]["max_retained_wal"]
    assert "8589934592" not in json.dumps(retained)
    assert "slack" in schema["$defs"]["SinkDestination"]["properties"]["text"]["description"]
