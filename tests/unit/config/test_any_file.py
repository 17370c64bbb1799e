"""Whatever stands in the file, load and lint answer with findings in their form, never with a traceback."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.config.lint import lint
from bridge.config.load import load
from bridge.problem import InvalidConfig

EXAMPLE = (Path(__file__).parent / "example.yaml").read_text()
TREE = yaml.load(EXAMPLE, Loader=yaml.BaseLoader)
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.sampled_from(
            ["", "$", "$event.x", "$$", "{{", "{{ event.x }}", "${", "${X}", "postgres", "slack", "a.b"]
        ),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(["type", "dsn", "table", "fields", "unknown", "x"]), inner, max_size=2
        ),
    ),
    max_leaves=4,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(places(TREE)), JUNK)
def test_junk_in_any_place_is_a_finding_at_worst(place: tuple[Any, ...], junk: Any) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bridge.yaml"
        path.write_text(yaml.safe_dump(put(TREE, place, junk), allow_unicode=True), encoding="utf-8")
        for finding in lint(path, {}):
            assert finding.text("f").startswith(f"f:{finding.position.line}:{finding.position.column}: ")
        with suppress(InvalidConfig):
            load(path, {}, offline=True)


@settings(max_examples=60)
@given(st.integers(0, len(EXAMPLE)), st.integers(0, 40), st.text(max_size=3))
def test_a_cut_in_the_text_is_a_finding_at_worst(start: int, length: int, instead: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bridge.yaml"
        path.write_text(EXAMPLE[:start] + instead + EXAMPLE[start + length :], encoding="utf-8", newline="")
        lint(path, {})
        with suppress(InvalidConfig):
            load(path, {}, offline=True)
