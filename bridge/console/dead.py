"""Dead letters: by cause, one by one, with what a correction would become; retry, edit, discard, and their undoing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from bridge.console.desk import Desk
from bridge.console.operations import DRY_RUN, Done, Field, Operation
from bridge.console.operations import Request as Asked
from bridge.console.pages import HIDDEN
from bridge.errors import ConfigError
from bridge.operate import letters

_SHOWN = 200
_WAIT_SECONDS = 3.0
"""For the second result of messages: a page is not waited for longer."""
_VALUES = ("payload", "message", "headers", "edited")
_STATES = ("open", "discarded", "resolved")

_CHOICE = (
    Field("ids", "Their ids, complete or the first 8 or more characters.", "texts"),
    Field("pipeline", "Only those of this pipeline."),
    Field("destination", "Only those of this destination."),
    Field("cause", "Only those with this code."),
    Field("all", "All of that state.", "flag"),
)


def _choice(given: Any, state: str) -> Any:
    from bridge.postgres.dead_letters import Choice  # noqa: PLC0415  only when somebody looks

    for each in given["ids"]:
        if len(each) < 8 or set(each.lower()) - set("0123456789abcdef-"):
            raise ConfigError(f"{each!r} is not an id or the first 8 or more characters of one")
    return Choice(
        tuple(each.lower() for each in given["ids"]),
        given["pipeline"],
        given["destination"],
        given["cause"],
        state,
    )


def _selected(given: Any, state: str) -> Any:
    if not (given["ids"] or given["pipeline"] or given["destination"] or given["cause"] or given["all"]):
        raise ConfigError("nothing is selected: give ids, pipeline, destination, cause, or all")
    return _choice(given, state)


# --- pages ----------------------------------------------------------------------------------------------


async def dead(desk: Desk, request: Request) -> tuple[str, dict[str, Any]]:
    asked = {name: request.query_params.get(name) or None for name in ("pipeline", "destination", "cause")}
    state = request.query_params.get("state", "open")
    state = state if state in _STATES else "open"
    groups, rows = await desk.work(_listed, desk, {**asked, "ids": ()}, state)
    return "dead.html", {
        "groups": groups,
        "rows": rows,
        "asked": asked,
        "state": state,
        "states": _STATES,
        "shown": _SHOWN,
        "total": sum(one["letters"] for one in groups),
    }


async def letter(desk: Desk, request: Request) -> tuple[str, dict[str, Any]]:
    found = await desk.work(letters.shown, desk.config(), request.path_params["letter_id"])
    values = request.scope["bridge.visit"].person.show_values
    facts = {
        name: found[name]
        for name in found
        if name not in (*_VALUES, "history", "id") and found[name] is not None
    }
    shown = {name: found[name] if values else HIDDEN for name in _VALUES if found.get(name) is not None}
    return "letter.html", {
        "letter": found,
        "facts": facts,
        "shown": shown,
        "text": (found["edited"] or found["payload"] or "") if values else "",
    }


def _listed(desk: Desk, given: Any, state: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from bridge.postgres.dead_letters import groups, listed  # noqa: PLC0415

    choice = _choice(given, state)
    found, rows = [], []
    with letters.ledgers(desk.config(), "dead list") as every:
        for plan, connection in every:
            found += [
                {"source": plan.source, **asdict(one)} for one in groups(connection, plan.stream, choice)
            ]
            rows += [
                {"source": plan.source, **one} for one in listed(connection, plan.stream, choice, _SHOWN)
            ]
    return found, rows[:_SHOWN]


# --- operations -----------------------------------------------------------------------------------------


def _list(asked: Asked) -> Done:
    found, rows = _listed(asked.desk, asked.given, asked.given["state"] or "open")
    return Done({"groups": found, "letters": rows})


def _show(asked: Asked) -> Done:
    found = letters.shown(asked.desk.config(), asked.given["letter_id"])
    hidden = () if asked.person.show_values else _VALUES
    return Done(
        {name: HIDDEN if name in hidden and value is not None else value for name, value in found.items()}
    )


def _retry(asked: Asked) -> Done:
    given = asked.given
    told = letters.retry(
        asked.desk.config(),
        _selected(given, "open"),
        asked.actor,
        dry_run=given["dry_run"],
        force=given["force"],
        as_sent=given["as_sent"],
        wait=_WAIT_SECONDS,
    )
    said, rows = _words(told), _rows(told)
    if given["dry_run"]:
        said = f"Would be, and was rolled back: {said}"
    return Done({"dry_run": given["dry_run"], "letters": rows}, said)


def _words(told: letters.Retried) -> str:
    counts = Counter(
        f"{one.result}{f' ({one.code}: {one.why})' if one.code else ''}" for one in told.outcomes
    )
    words = ", ".join(f"{count} {word}" for word, count in counts.most_common(5))
    return words or "no open dead letter matches"


def _rows(told: letters.Retried) -> list[dict[str, Any]]:
    return [
        {"source": told.sources[one.id], "id": one.id, "result": one.result, "code": one.code, "why": one.why}
        for one in told.outcomes
    ]


def _discard(asked: Asked) -> Done:
    ids, changed = letters.settle(
        asked.desk.config(),
        "discard",
        _selected(asked.given, "open"),
        asked.actor,
        dry_run=asked.given["dry_run"],
    )
    undo = ("/dead/restore", {"ids": ids}) if changed else None
    return Done({"ids": ids, "discarded": changed}, f"{changed} discarded", undo)


def _restore(asked: Asked) -> Done:
    ids, changed = letters.settle(
        asked.desk.config(),
        "restore",
        _selected(asked.given, "discarded"),
        asked.actor,
        dry_run=asked.given["dry_run"],
    )
    undo = ("/dead/discard", {"ids": ids}) if changed else None
    return Done({"ids": ids, "restored": changed}, f"{changed} open again", undo)


def _preview(asked: Asked) -> Done:
    told = letters.preview(asked.desk.config(), asked.given["letter_id"], asked.given["payload"])
    why = f": {told['code']}: {told['why']}" if told["code"] else f": {told['why']}" if told["why"] else ""
    if not asked.person.show_values:
        told["becomes"] = {unit: dict.fromkeys(one, HIDDEN) for unit, one in told["becomes"].items()}
    return Done(told, f"A retry would end as {told['result']}{why}. Nothing was changed.")


def _edit(asked: Asked) -> Done:
    """What is as it was is not marked as corrected."""
    if not asked.person.show_values:
        raise ConfigError("this token does not show values, so it cannot edit them", hint="show_values: true")
    config, given = asked.desk.config(), asked.given
    found = letters.shown(config, given["letter_id"])
    letter_id, payload = found["id"], letters.corrected(given["payload"])
    differs = exact(payload.decode()) != exact(found["edited"] or found["payload"] or "null")
    undo: tuple[str, dict[str, Any]] | None = (f"/dead/{letter_id}/unedit", {}) if differs else None
    if differs:
        letters.edit(config, letter_id, given["payload"], asked.actor)
    if not given["retry"]:
        return Done({"id": letter_id}, "The corrected payload is kept; retry uses it", undo)
    done = letters.retry(config, _of(letter_id), asked.actor, wait=_WAIT_SECONDS)
    return Done({"id": letter_id, "letters": _rows(done)}, _words(done))


def exact(text: str) -> Any:
    """With every number as it is written; text that is no JSON as it is."""
    try:
        return json.loads(text, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return text


def _of(letter_id: str) -> Any:
    from bridge.postgres.dead_letters import Choice  # noqa: PLC0415  only when somebody acts

    return Choice((letter_id,))


def _unedit(asked: Asked) -> Done:
    letter_id = letters.edit(asked.desk.config(), asked.given["letter_id"], None, asked.actor)
    return Done({"id": letter_id}, "Retry uses the payload that was sent")


_SEARCH = (*_CHOICE[:4], Field("state", "Of this state.", choices=_STATES))
_MANY = (*_CHOICE, DRY_RUN)
_ONE = Field("letter_id", "Its id, complete or its first characters.", needed=True)
_PAYLOAD = Field("payload", "The corrected payload: a JSON object, as text.")

PAGES = {"/dead": dead, "/dead/{letter_id}": letter}
OPERATIONS = (
    Operation("GET", "/dead", "Dead letters: by cause, and the newest of them.", _list, _SEARCH),
    Operation("GET", "/dead/{letter_id}", "One dead letter with its event.", _show, (_ONE,)),
    Operation(
        "POST",
        "/dead/retry",
        "Apply dead letters again, each exactly once; messages are rendered anew.",
        _retry,
        (
            *_CHOICE,
            DRY_RUN,
            Field("force", "Also where a later event of the same key was applied.", "flag"),
            Field("as_sent", "Send refused messages as they were.", "flag"),
        ),
        acts=True,
    ),
    Operation(
        "POST",
        "/dead/discard",
        "Mark as not needed; restore undoes it.",
        _discard,
        (*_CHOICE, DRY_RUN),
        acts=True,
    ),
    Operation(
        "POST", "/dead/restore", "Open discarded ones again.", _restore, (*_CHOICE, DRY_RUN), acts=True
    ),
    Operation(
        "POST",
        "/dead/{letter_id}/preview",
        "What a retry would write or send, with a corrected payload or as it is; rolled back.",
        _preview,
        (_ONE, _PAYLOAD),
        acts=True,
    ),
    Operation(
        "POST",
        "/dead/{letter_id}/edit",
        "Keep a corrected payload, which retries use; the one that was sent stays.",
        _edit,
        (_ONE, Field("payload", _PAYLOAD.about, needed=True), Field("retry", "And retry at once.", "flag")),
        acts=True,
    ),
    Operation(
        "POST",
        "/dead/{letter_id}/unedit",
        "Use the payload that was sent again.",
        _unedit,
        (_ONE,),
        acts=True,
    ),
)
