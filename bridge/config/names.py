"""Do the names of a file meet: connections, destinations, branches, pipelines?

Looks at plain values, not at models, so that it can speak although some other part of the file is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bridge.config.case import RESERVED_EXPECTATIONS
from bridge.config.pipeline import SinkDestination
from bridge.config.problem import KeyPath, nearest
from bridge.sinks.kinds import SINKS

SLOT_NAME_MAX = 63  # NAMEDATALEN - 1
_INCARNATION_DIGITS = 6
Found = tuple[KeyPath, str, str, bool]
"""Path, message, hint, and whether it is about the key rather than the value."""


def connection_kinds(tree: Any) -> dict[str, str]:
    """Connection name to its type, as far as the file tells."""
    return {name: str(_get(value, "type")) for name, value in _items(_get(tree, "connections"))}


def check_names(tree: Any) -> Iterator[Found]:
    """Every name that leads nowhere or may not be used."""
    kinds = connection_kinds(tree)
    yield from _slots(tree, kinds)
    pipelines = _get(tree, "pipelines")
    for name, pipeline in _items(pipelines):
        yield from _pipeline(("pipelines", name), pipeline, kinds)
    for index, case in enumerate(_list(_get(tree, "tests"))):
        yield from _case(("tests", index), case, pipelines)


def _slots(tree: Any, kinds: Mapping[str, str]) -> Iterator[Found]:
    slot = _get(_get(tree, "source"), "slot") or "outbox_bridge"
    for name, kind in kinds.items():
        path = ("connections", name)
        if name == "source":
            yield path, "`source` is the source itself; a connection needs another name", "", True
        room = SLOT_NAME_MAX - len(f"{slot}__") - _INCARNATION_DIGITS
        if kind == "postgres" and len(name) > room:
            message = f"{slot}_{name}_<n> is longer than the {SLOT_NAME_MAX} bytes of a slot's name"
            yield path, message, f"at most {room} characters with this source.slot", True


def _pipeline(path: KeyPath, pipeline: Any, kinds: Mapping[str, str]) -> Iterator[Found]:
    destinations = dict(_items(_get(pipeline, "destinations")))
    for name, destination in destinations.items():
        here = (*path, "destinations", name)
        if name in RESERVED_EXPECTATIONS:
            yield here, f"`{name}` is a word of tests' expect; call the destination otherwise", "", True
        yield from _destination(here, destination, kinds)
    for index, step in enumerate(_list(_get(pipeline, "steps"))):
        source = _get(_get(step, "enrich.entity"), "from")
        if isinstance(source, str) and source != "source" and kinds.get(source) != "postgres":
            databases = ["source", *(name for name, kind in kinds.items() if kind == "postgres")]
            what = "is not a postgres connection" if source in kinds else "is no connection"
            yield (*path, "steps", index, "enrich.entity", "from"), what, _hint(source, databases), False
    seen: set[str] = set()
    for index, branch in enumerate(_list(_get(pipeline, "branches"))):
        here = (*path, "branches", index)
        name = _get(branch, "name")
        if isinstance(name, str) and name in seen:
            yield (*here, "name"), "another branch of this pipeline has this name", "", False
        seen.add(str(name))
        to = _get(branch, "to")
        for place, target in enumerate([to] if isinstance(to, str) else _list(to)):
            if isinstance(target, str) and target not in destinations:
                at = (*here, "to") if isinstance(to, str) else (*here, "to", place)
                yield at, "is no destination of this pipeline", _hint(target, destinations), False
    yield from _roots(path, pipeline)


def _destination(path: KeyPath, destination: Any, kinds: Mapping[str, str]) -> Iterator[Found]:
    connection = _get(destination, "connection")
    if not isinstance(connection, str):
        return
    if connection not in kinds:
        yield (*path, "connection"), "is no connection", _hint(connection, kinds), False
    elif kinds[connection] != "postgres" and _get(destination, "table") is not None:
        databases = [name for name, kind in kinds.items() if kind == "postgres"]
        message = f"is a {kinds[connection]} connection: a table needs a postgres one"
        yield (*path, "connection"), message, _hint(connection, databases), False
    elif kinds[connection] in SINKS and isinstance(destination, dict):
        yield from _message(path, destination, kinds[connection])


def _message(path: KeyPath, destination: dict[str, Any], kind: str) -> Iterator[Found]:
    """A sink's keys are its vendor's; their values are judged when they are rendered."""
    model = SINKS[kind].message
    known = {*model.model_fields, *SinkDestination.model_fields}
    for key, value in destination.items():
        if key not in known:
            yield (*path, key), f"is no key of a {kind} message", _hint(key, known), True
        if key in model.literal and isinstance(value, str) and ("{{" in value or value.startswith("$")):
            yield (*path, key), "must be a literal: it decides how values are escaped", "", False
    for name, field in model.model_fields.items():
        if field.is_required() and name not in destination and name not in model.given:
            yield path, f"`{name}` is missing: a {kind} message needs it", "", True


def _roots(path: KeyPath, pipeline: Any) -> Iterator[Found]:
    """Two enrichments, or an enrichment and a `set`, under one name."""
    taken: set[str] = set()
    for index, step in enumerate(_list(_get(pipeline, "steps"))):
        name = _get(_get(step, "enrich.entity"), "as")
        if isinstance(name, str):
            if name in taken:
                yield (
                    (*path, "steps", index, "enrich.entity", "as"),
                    "an earlier step has made this name",
                    "",
                    False,
                )
            taken.add(name)
        for made, _ in _items(_get(step, "set")):
            if made in taken:
                yield (*path, "steps", index, "set", made), "an earlier step has made this name", "", True
            taken.add(made)


def _case(path: KeyPath, case: Any, pipelines: Any) -> Iterator[Found]:
    name = _get(case, "pipeline")
    if not isinstance(name, str):
        return
    pipeline = _get(pipelines, name)
    if pipeline is None:
        yield (*path, "pipeline"), "is no pipeline", _hint(name, dict(_items(pipelines))), False
        return
    destinations = dict(_items(_get(pipeline, "destinations")))
    branches = [str(_get(branch, "name")) for branch in _list(_get(pipeline, "branches"))]
    for key, value in _items(_get(case, "expect")):
        here = (*path, "expect", key)
        if key == "branch" and value not in branches:
            yield here, "is no branch of this pipeline", _hint(str(value), branches), False
        if key not in RESERVED_EXPECTATIONS and key not in destinations:
            known = [*destinations, *RESERVED_EXPECTATIONS]
            yield here, "is no destination of this pipeline", _hint(key, known), True
    entities = {str(_get(_get(step, "enrich.entity"), "as")) for step in _list(_get(pipeline, "steps"))}
    for key, _ in _items(_get(case, "entities")):
        if key not in entities:
            yield (*path, "entities", key), "is no enrichment of this pipeline", _hint(key, entities), True


def _hint(word: str, candidates: Any) -> str:
    names = sorted(candidates)
    return nearest(word, names) or (f"there is: {', '.join(names)}" if names else "there is none")


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
