"""Events: looked for, and the history of one."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from bridge.console.desk import Desk
from bridge.console.operations import Done, Field, Operation, taken
from bridge.console.operations import Request as Asked
from bridge.console.pages import HIDDEN, hide
from bridge.operate.event_history import event_history
from bridge.operate.events import OUTCOMES, WINDOW, EventSearch, search

_SHOWN = 100


def _asked(given: Any) -> EventSearch:
    names = ("id", "type", "key", "pipeline", "since", "until", "outcome")
    return EventSearch(**{name: given[name] for name in names})


def _search(asked: Asked) -> Done:
    rows = search(asked.desk.config(), _asked(asked.given), asked.given["limit"] or _SHOWN)
    return Done({"events": rows})


def _history(asked: Asked) -> Done:
    told = event_history(asked.desk.config(), asked.given["event_id"], asked.desk.running)
    return Done(told if asked.person.show_values else without_values(told))


def without_values(told: dict[str, Any]) -> dict[str, Any]:
    """What happened, without what it happened with."""
    event = {
        name: HIDDEN if name in ("payload", "headers") else value for name, value in told["event"].items()
    }
    streams = []
    for stream in told["streams"]:
        pipelines = [
            {
                **one,
                "steps": [
                    {**step, "saw": hide(step["saw"]), "result": _verdict(step)} for step in one["steps"]
                ],
                "destinations": {
                    name: {**unit, "columns": hide(unit["columns"])}
                    for name, unit in one["destinations"].items()
                },
            }
            for one in stream["pipelines"]
        ]
        streams.append({**stream, "pipelines": pipelines})
    return {**told, "event": event, "streams": streams}


def _verdict(step: dict[str, Any]) -> Any:
    """Of a condition or a contract; what a step looked up or computed is a value."""
    result = step["result"]
    told = result is None or isinstance(result, bool) or step["what"].startswith("contract ")
    return result if told else HIDDEN


async def events(desk: Desk, request: Request) -> tuple[str, dict[str, Any]]:
    sent = {name: [value] for name, value in request.query_params.items() if name != "limit"}
    given = {**taken(_SEARCH, sent), "limit": _SHOWN}
    rows = await desk.work(search, desk.config(), _asked(given), _SHOWN)
    shown = {name: request.query_params.get(name, "") for name in given}
    return "events.html", {
        "rows": rows,
        "asked": shown,
        "outcomes": OUTCOMES,
        "shown": _SHOWN,
        "window": WINDOW,
    }


async def event(desk: Desk, request: Request) -> tuple[str, dict[str, Any]]:
    told = await desk.work(event_history, desk.config(), request.path_params["event_id"], desk.running)
    if not request.scope["bridge.visit"].person.show_values:
        told = without_values(told)
    return "event.html", {"told": told, "event": told["event"]}


_SEARCH = Operation(
    "GET",
    "/events",
    "Events of the outbox, the newest first, with what became of each.",
    _search,
    (
        Field("id", "This one."),
        Field("type", "Of this type, or glob: billing.*"),
        Field("key", "With this ordering key."),
        Field("pipeline", "Of the types that this pipeline takes."),
        Field("since", "Since this time, or so long ago: 24h.", "time"),
        Field("until", "Before this time.", "time"),
        Field("outcome", f"Of the newest {WINDOW} that fit the rest.", choices=OUTCOMES),
        Field("limit", "At most so many.", "number"),
    ),
)
PAGES = {"/events": events, "/events/{event_id:path}": event}
OPERATIONS = (
    _SEARCH,
    Operation(
        "GET",
        "/events/{event_id}",
        "One event's history: what each condition saw, each attempt, the row that it became.",
        _history,
        (Field("event_id", "Its id.", needed=True),),
    ),
)
