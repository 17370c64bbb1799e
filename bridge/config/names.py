"""Do the names of a file meet: connections, destinations, branches, pipelines?

Looks at plain values, not at models, so that it can speak although some other part of the file is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bridge.config.model import RESERVED_EXPECTATIONS
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
    for name, entity in _items(_get(tree, "entities")):
        yield from _origin(("entities", name), entity, kinds)
    for name, pipeline in _items(pipelines):
        yield from _pipeline(("pipelines", name), pipeline, kinds)
        yield from _entities(("pipelines", name), pipeline, tree)
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
        yield from _origin((*path, "steps", index, "enrich.entity"), _get(step, "enrich.entity"), kinds)
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


def _origin(path: KeyPath, lookup: Any, kinds: Mapping[str, str]) -> Iterator[Found]:
    """Where a lookup asks."""
    source = _get(lookup, "from")
    if isinstance(source, str) and source != "source" and kinds.get(source) != "postgres":
        databases = ["source", *(name for name, kind in kinds.items() if kind == "postgres")]
        what = "is not a postgres connection" if source in kinds else "is no connection"
        yield (*path, "from"), what, _hint(source, databases), False


def _entities(path: KeyPath, pipeline: Any, tree: Any) -> Iterator[Found]:
    """Are the entities that steps name there, and of the kind that the step wants?"""
    declared = dict(_items(_get(tree, "entities")))
    kept = [name for name, entity in declared.items() if _get(entity, "kept_by") == "events"]
    asked: list[str] = []  # entities that events keep, looked up so far in this pipeline
    for index, step in enumerate(_list(_get(pipeline, "steps"))):
        for kind in ("enrich.entity", "upsert.entity"):
            name = _get(_get(step, kind), "entity")
            at = (*path, "steps", index, kind, "entity")
            if not isinstance(name, str):
                continue
            if name not in declared:
                candidates = declared if kind == "enrich.entity" else kept
                yield at, "is not one of `entities`", _hint(name, candidates), False
            elif kind == "upsert.entity" and name not in kept:
                fix = f"write `kept_by: events` there instead, or keep another; {_hint(name, kept)}"
                yield at, "is looked up by its sql: events cannot keep it", fix, False
            elif kind == "upsert.entity" and asked:
                message = (
                    f"comes after ${asked[0]} is looked up: what is kept may not depend on what was kept"
                )
                yield (*path, "steps", index, kind), message, "move upsert.entity before enrich.entity", True
            if kind == "enrich.entity" and name in kept:
                asked.append(name)
        if _get(step, "upsert.entity") is not None:
            own = _get(_get(tree, "source"), "columns")
            if isinstance(own, dict) and own.get("seq") is None:
                message = (
                    "the newest word on an entity counts, and this outbox has no seq to tell which that is"
                )
                yield (*path, "steps", index, "upsert.entity"), message, "name it: source.columns.seq", True


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
    one = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} message"
    for key, value in destination.items():
        if key not in known:
            yield (*path, key), f"is no key of {one}", _hint(key, known), True
        if key in model.literal and isinstance(value, str) and ("{{" in value or value.startswith("$")):
            yield (*path, key), "must be a literal: it decides how values are escaped", "", False
    for name, field in model.model_fields.items():
        if field.is_required() and name not in destination and name not in model.given:
            yield path, f"`{name}` is missing: {one} needs it", "", True


def _roots(path: KeyPath, pipeline: Any) -> Iterator[Found]:
    """Two enrichments, or an enrichment and a `set`, under one name."""
    taken: set[str] = set()
    for index, step in enumerate(_list(_get(pipeline, "steps"))):
        enrich = _get(step, "enrich.entity")
        key = "as" if _get(enrich, "as") is not None else "entity"
        name = _get(enrich, key)
        if isinstance(name, str):
            if name in taken:
                yield (
                    (*path, "steps", index, "enrich.entity", key),
                    "an earlier step has made this name",
                    "" if key == "as" else "give it another with `as`",
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
    steps = _list(_get(pipeline, "steps"))
    enrichments = [_get(step, "enrich.entity") for step in steps]
    found = {str(_get(one, "as") or _get(one, "entity")) for one in enrichments if one is not None}
    for key, _ in _items(_get(case, "entities")):
        if key not in found:
            yield (*path, "entities", key), "is no enrichment of this pipeline", _hint(key, found), True
    upserted = {str(_get(_get(step, "upsert.entity"), "entity")) for step in steps} - {"None"}
    for key, _ in _items(_get(_get(case, "expect"), "entities")):
        if key not in upserted:
            here = (*path, "expect", "entities", key)
            yield here, "no upsert.entity of this pipeline keeps it", _hint(key, upserted), True


def _hint(word: str, candidates: Any) -> str:
    names = sorted(candidates)
    return nearest(word, names) or (f"there is: {', '.join(names)}" if names else "there is none")


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
