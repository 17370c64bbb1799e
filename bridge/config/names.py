"""Do the names in a file exist: connections, destinations, branches, pipelines? Reads plain values, not models, so
that it works even if another part of the file has errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.config.destinations.destination import kind_of
from bridge.config.model import RESERVED_EXPECTATIONS
from bridge.planning.steps.step import StepSection, steps
from bridge.problem import KeyPath, Remark, suggestion
from bridge.section import SOURCE

SLOT_NAME_MAX = 63  # NAMEDATALEN - 1
_INCARNATION_DIGITS = 6
_SLOT = "outbox_bridge"


def connection_kinds(tree: Any) -> dict[str, str]:
    """Connection name to its type, as far as the file is readable."""
    return {name: str(_get(value, "type")) for name, value in _items(_get(tree, "connections"))}


def check_names(tree: Any) -> Iterator[Remark]:
    """Every name that leads nowhere or may not be used: errors."""
    kinds = connection_kinds(tree)
    yield from _slots(tree, kinds)
    yield from _ingress(tree)
    pipelines = _get(tree, "pipelines")
    for name, entity in _items(_get(tree, "entities")):
        yield from _database(("entities", name), entity, kinds)
    for name, pipeline in _items(pipelines):
        yield from _pipeline(("pipelines", name), pipeline, kinds)
        yield from _sources(("pipelines", name, "sources"), _get(pipeline, "sources"), tree)
        yield from _steps(("pipelines", name), pipeline, _step_names(tree, kinds))
    for index, case in enumerate(_list(_get(tree, "tests"))):
        yield from _case(("tests", index), case, pipelines)


def _slots(tree: Any, kinds: Mapping[str, str]) -> Iterator[Remark]:
    slots = _slots_of(tree)
    for index, (path, slot) in enumerate(slots.items()):
        if slot in [*slots.values()][:index]:
            yield _error((*path, "slot"), "is the slot of another source, too", "each needs its own")
    longest, slot = max(slots.items(), key=lambda one: len(one[1]))
    room = SLOT_NAME_MAX - len(f"{slot}__") - _INCARNATION_DIGITS
    too_long = f"is longer than the {SLOT_NAME_MAX} bytes of a slot's name"
    for name, kind in kinds.items():
        at = ("connections", name)
        if name == SOURCE:
            yield _taken(at, "`source` is reserved for the source; a connection needs another name")
        if kind == "postgres" and len(name) > room:
            with_it = "this source.slot" if longest == (SOURCE,) else f"the slot of source {longest[-1]}"
            yield _taken(at, f"{slot}_{name}_<n> {too_long}", f"at most {room} characters with {with_it}")
    if "postgres" not in kinds.values():  # messages are in the source's own ledger
        room = SLOT_NAME_MAX - len(f"_{SOURCE}_") - _INCARNATION_DIGITS
        for path, slot in slots.items():
            if len(slot) > room:
                yield _taken(path, f"{slot}_{SOURCE}_<n> {too_long}", f"slot: at most {room} characters")


def _slots_of(tree: Any) -> dict[KeyPath, str]:
    """The slot of each source, written or not, by where the source stands."""
    several = dict(_items(_get(tree, "sources")))
    if not several:
        return {(SOURCE,): str(_get(_get(tree, SOURCE), "slot") or _SLOT)}
    return {
        ("sources", name): str(_get(section, "slot") or (_SLOT if name == SOURCE else f"{_SLOT}_{name}"))
        for name, section in several.items()
    }


def _sources(path: KeyPath, written: Any, tree: Any) -> Iterator[Remark]:
    known = dict(_items(_get(tree, "sources")))
    for place, name in enumerate([written] if isinstance(written, str) else _list(written)):
        at = path if isinstance(written, str) else (*path, place)
        if not known:
            yield _error(at, "there is one `source`, and no `sources`", "remove it")
        elif isinstance(name, str) and name not in known:
            yield _error(at, "is not a source", suggestion(name, known))


def _ingress(tree: Any) -> Iterator[Remark]:
    """The source that it writes to, of several."""
    ingress = _get(tree, "ingress")
    yield from _sources(("ingress", "source"), _get(ingress, "source"), tree)
    several = len(_items(_get(tree, "sources"))) > 1
    for name, webhook in _items(_get(ingress, "webhooks")):
        path = ("ingress", "webhooks", name)
        yield from _sources((*path, "source"), _get(webhook, "source"), tree)
        if several and not (_get(webhook, "source") or _get(ingress, "source")):
            hint = "add source, or ingress.source"
            yield _taken(path, "does not say which of the `sources` gets its events", hint)


def _pipeline(path: KeyPath, pipeline: Any, kinds: Mapping[str, str]) -> Iterator[Remark]:
    destinations = dict(_items(_get(pipeline, "destinations")))
    for name, destination in destinations.items():
        here = (*path, "destinations", name)
        if name in RESERVED_EXPECTATIONS:
            yield _taken(
                here, f"`{name}` is a key of expect in tests; choose another name for the destination"
            )
        yield from _destination(here, destination, kinds)
    seen: set[str] = set()
    for index, branch in enumerate(_list(_get(pipeline, "branches"))):
        here = (*path, "branches", index)
        name = _get(branch, "name")
        if isinstance(name, str) and name in seen:
            yield _error((*here, "name"), "another branch of this pipeline has this name")
        seen.add(str(name))
        to = _get(branch, "to")
        for place, target in enumerate([to] if isinstance(to, str) else _list(to)):
            if isinstance(target, str) and target not in destinations:
                at = (*here, "to") if isinstance(to, str) else (*here, "to", place)
                yield _error(at, "is not a destination of this pipeline", suggestion(target, destinations))


def _destination(path: KeyPath, destination: Any, kinds: Mapping[str, str]) -> Iterator[Remark]:
    connection = _get(destination, "connection")
    if not isinstance(connection, str):
        return
    if connection not in kinds:
        yield _error((*path, "connection"), "is not a connection", suggestion(connection, kinds))
    else:
        yield from kind_of(destination, kinds).check_names(path, destination, kinds)


def _database(path: KeyPath, lookup: Any, kinds: Mapping[str, str]) -> Iterator[Remark]:
    """The connection of a lookup."""
    source = _get(lookup, "from")
    if isinstance(source, str) and source != "source" and kinds.get(source) != "postgres":
        databases = ["source", *(name for name, kind in kinds.items() if kind == "postgres")]
        what = "is not a postgres connection" if source in kinds else "is not a connection"
        yield _error((*path, "from"), what, suggestion(source, databases))


@dataclass(slots=True)
class _StepNames:
    """What the names in the steps of one pipeline can lead to (steps/step.py, Names)."""

    connections: Mapping[str, str]
    entities: list[str]
    kept: list[str]
    ordered: bool
    looked_up: list[str] = field(default_factory=list)

    def database(self, path: KeyPath, lookup: Any) -> Iterator[Remark]:
        yield from _database(path, lookup, self.connections)


def _step_names(tree: Any, kinds: Mapping[str, str]) -> _StepNames:
    entities = dict(_items(_get(tree, "entities")))
    kept = [name for name, entity in entities.items() if _get(entity, "kept_by") == "events"]
    sections = [_get(tree, "source"), *(section for _, section in _items(_get(tree, "sources")))]
    own = [columns for section in sections if isinstance(columns := _get(section, "columns"), dict)]
    ordered = all(columns.get("seq") is not None for columns in own)
    return _StepNames(kinds, list(entities), kept, ordered)


def _sections(pipeline: Any) -> Iterator[tuple[KeyPath, type[StepSection], Any]]:
    """Each step of a pipeline: its path below it, its kind, what is written."""
    for index, step in enumerate(_list(_get(pipeline, "steps"))):
        for word, written in _items(step):
            if word in steps():
                yield ("steps", index, word), steps()[word], written


def _steps(path: KeyPath, pipeline: Any, names: _StepNames) -> Iterator[Remark]:
    taken: set[str] = set()
    for below, section, written in _sections(pipeline):
        here = (*path, *below)
        yield from section.check_names(here, written, names)
        for made in section.made(written):
            if made.name in taken:
                message = "an earlier step already defines this name"
                yield Remark("error", (*here, *made.at), message, made.hint, key=made.key)
            taken.add(made.name)


def _case(path: KeyPath, case: Any, pipelines: Any) -> Iterator[Remark]:
    name = _get(case, "pipeline")
    if not isinstance(name, str):
        return
    pipeline = _get(pipelines, name)
    if pipeline is None:
        hint = suggestion(name, dict(_items(pipelines)))
        yield _error((*path, "pipeline"), "is not a pipeline", hint)
        return
    destinations = dict(_items(_get(pipeline, "destinations")))
    branches = [str(_get(branch, "name")) for branch in _list(_get(pipeline, "branches"))]
    for key, value in _items(_get(case, "expect")):
        here = (*path, "expect", key)
        if key == "branch" and value not in branches:
            yield _error(here, "is not a branch of this pipeline", suggestion(str(value), branches))
        if key not in RESERVED_EXPECTATIONS and key not in destinations:
            known = [*destinations, *RESERVED_EXPECTATIONS]
            yield _taken(here, "is not a destination of this pipeline", suggestion(key, known))
    found = {section.finds(written) for _, section, written in _sections(pipeline)} - {None}
    for key, _ in _items(_get(case, "entities")):
        if key not in found:
            hint = suggestion(key, filter(None, found))
            yield _taken((*path, "entities", key), "is not an enrichment of this pipeline", hint)
    kept = {section.kept(written) for _, section, written in _sections(pipeline)} - {None}
    for key, _ in _items(_get(_get(case, "expect"), "entities")):
        if key not in kept:
            here = (*path, "expect", "entities", key)
            hint = suggestion(key, filter(None, kept))
            yield _taken(here, "no upsert.entity of this pipeline maintains it", hint)


def _error(path: KeyPath, message: str, hint: str = "") -> Remark:
    return Remark("error", path, message, hint)


def _taken(path: KeyPath, message: str, hint: str = "") -> Remark:
    """An error of the key."""
    return Remark("error", path, message, hint, key=True)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
