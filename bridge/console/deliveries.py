"""Messages of sinks: looked for, sent now, discarded and brought back; sinks paused and resumed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from bridge.console.desk import Desk
from bridge.console.operations import DRY_RUN, Done, Field, Operation, taken
from bridge.console.operations import Request as Asked
from bridge.errors import ConfigError
from bridge.operate import queue
from bridge.operate.sinks import Part, chosen, named, pause_lane, resume_lane

_SHOWN = 100
STATES = ("pending", "sent", "dead", "discarded")
_CHOICE = (
    Field("ids", "Their ids, complete or the first 8 or more characters.", "texts"),
    Field("pipeline", "Only those of this pipeline."),
    Field("destination", "Only those to this destination, or PIPELINE/DESTINATION."),
    Field("event", "Only those of this event."),
    Field("type", "Only those of events of this type."),
    Field("key", "Only those of events with this ordering key."),
    Field("cause", "Only those whose last answer has this code: http_503."),
    Field("recipient", "Only those to this recipient."),
    Field("older", "Only those written before: a time, or so long ago.", "time"),
)
_ALL = Field("all", "All that wait there.", "flag")
_PART = (
    Field("pipeline", "Only that of this pipeline."),
    Field("destination", "The sink, or PIPELINE/DESTINATION.", needed=True),
    Field("cause", "Only the messages whose last answer has this code."),
    Field("recipient", "Only the messages to this recipient: its whole address."),
)


def _selection(given: Any, state: Any) -> queue.Selection:
    from bridge.postgres.queued import Search  # noqa: PLC0415  only when somebody looks

    for each in given["ids"]:
        if len(each) < 8 or set(each.lower()) - set("0123456789abcdef-"):
            raise ConfigError(f"{each!r} is not an id or the first 8 or more characters of one")
    pipeline, destination = given["pipeline"], given["destination"]
    if destination is not None:
        pipeline, destination = named(destination, pipeline)
    older = given["older"]
    return queue.Selection(
        Search(
            pipeline=pipeline,
            destination=destination,
            ids=tuple(each.lower() for each in given["ids"]),
            event=given["event"],
            event_type=given["type"],
            key=given["key"],
            cause=given["cause"],
            older=None if older is None else (datetime.now(UTC) - older).total_seconds(),
            state=state,
        ),
        given["recipient"],
    )


def _listed(desk: Desk, given: Any, state: str, limit: int) -> queue.Listed:
    return queue.listed(desk.config(), _selection(given, state), limit, desk.running)


def _list(asked: Asked) -> Done:
    state = asked.given["state"] or "pending"
    told = _listed(asked.desk, asked.given, state, asked.given["limit"] or _SHOWN)
    return Done({"groups": told.groups, "messages": told.rows})


def _changed(command: str, word: str, state: str, undo: str | None) -> Any:
    def run(asked: Asked) -> Done:
        from bridge.postgres import queued  # noqa: PLC0415

        act = {"sink retry": queued.hurry, "sink discard": queued.discard, "sink restore": queued.restore}[
            command
        ]
        given = asked.given
        wanted = _selection(given, state)
        if not (given["all"] or wanted.narrows()):
            raise ConfigError(
                "nothing is selected: give all, ids, event, type, key, cause, recipient or older"
            )
        done = queue.change(asked.desk.config(), command, wanted, act, asked.actor, dry_run=given["dry_run"])
        left = f"; {done.left} left as they are: being sent, or settled meanwhile" if done.left else ""
        back = (undo, {"ids": done.ids}) if undo and done.changed and not given["dry_run"] else None
        would = "would be " if given["dry_run"] else ""
        told = {"dry_run": given["dry_run"], "ids": done.ids, "changed": done.changed, "left": done.left}
        return Done(told, f"{done.changed} {would}{word}{left}", back)

    return run


# --- pauses ---------------------------------------------------------------------------------------------


def _lanes(asked: Asked) -> Any:
    pipeline, destination = named(asked.given["destination"], asked.given["pipeline"])
    return chosen(asked.desk.config(), destination, pipeline)


def _pause(asked: Asked) -> Done:
    part = Part(asked.given["cause"], asked.given["recipient"])
    names = []
    for plan, lane in _lanes(asked):
        pause_lane(plan, lane, part, asked.actor)
        names.append("/".join(lane.name))
    undo = (
        "/sinks/resume",
        {
            name: asked.given[name]
            for name in ("pipeline", "destination", "cause", "recipient")
            if asked.given[name]
        },
    )
    return Done({"paused": names}, f"{', '.join(names)}: paused", undo)


def _resume(asked: Asked) -> Done:
    part = Part(asked.given["cause"], asked.given["recipient"], everything=asked.given["all"])
    told = {}
    for plan, lane in _lanes(asked):
        done = resume_lane(asked.desk.config(), plan, lane, part, asked.actor)
        told["/".join(lane.name)] = {
            "was_paused": done.was,
            "still_paused": [one.label for one in done.stays],
        }
    words = [f"{name}: {'resumed' if one['was_paused'] else 'was not paused'}" for name, one in told.items()]
    return Done({"sinks": told}, ", ".join(words))


def _sinks(asked: Asked) -> Done:
    return Done({"sinks": sinks(asked.desk)})


def sinks(desk: Desk) -> list[dict[str, Any]]:
    """Every sink of the configuration, with what of it is paused and by whom."""
    from bridge.postgres.sink_pause import holds, paused  # noqa: PLC0415

    found = []
    with queue.ledgers(desk.config(), "sink list") as every:
        for one in every:
            all_of = paused(one.connection, one.plan.stream)
            parts = holds(one.connection, one.plan.stream)
            found += [
                {
                    "source": one.plan.source,
                    "pipeline": lane.pipeline,
                    "destination": lane.destination,
                    "kind": lane.sink.type,
                    "connection": lane.connection,
                    "paused": all_of.get(lane.name),
                    "parts": [
                        {"kind": part.kind, "label": part.label, "said": part.said, "value": part.value}
                        for part in parts
                        if part.unit == lane.name
                    ],
                }
                for lane in one.lanes.values()
            ]
    return found


# --- the page -------------------------------------------------------------------------------------------


async def deliveries(desk: Desk, request: Request) -> tuple[str, dict[str, Any]]:
    sent = {name: [value] for name, value in request.query_params.items()}
    given = taken(_LIST, sent)
    state = given["state"] or "pending"
    told = await desk.work(_listed, desk, given, state, _SHOWN)
    return "deliveries.html", {
        "groups": told.groups,
        "rows": told.rows,
        "sinks": await desk.work(sinks, desk),
        "asked": {one.name: request.query_params.get(one.name, "") for one in _LIST.fields},
        "state": state,
        "states": STATES,
        "shown": _SHOWN,
    }


_LIST = Operation(
    "GET",
    "/deliveries",
    "Messages of sinks: how many by place and last answer, and the oldest, with each attempt's answer.",
    _list,
    (
        *_CHOICE,
        Field("state", "In this state.", choices=STATES),
        Field("limit", "At most so many.", "number"),
    ),
)
_MANY = (*_CHOICE, _ALL, DRY_RUN)
PAGES = {"/deliveries": deliveries}
OPERATIONS = (
    _LIST,
    Operation("GET", "/sinks", "Every sink, and what of it is paused.", _sinks),
    Operation(
        "POST",
        "/deliveries/retry",
        "Send what waits now.",
        _changed("sink retry", "due now", "pending", None),
        _MANY,
        acts=True,
    ),
    Operation(
        "POST",
        "/deliveries/discard",
        "Do not send what waits; restore undoes it.",
        _changed("sink discard", "discarded", "pending", "/deliveries/restore"),
        _MANY,
        acts=True,
    ),
    Operation(
        "POST",
        "/deliveries/restore",
        "Discarded messages wait again.",
        _changed("sink restore", "waiting again", "discarded", "/deliveries/discard"),
        _MANY,
        acts=True,
    ),
    Operation("POST", "/sinks/pause", "Send nothing to it until it is resumed.", _pause, _PART, acts=True),
    Operation(
        "POST",
        "/sinks/resume",
        "Send to it again, first what waits.",
        _resume,
        (*_PART, Field("all", "Also its causes and recipients that are paused.", "flag")),
        acts=True,
    ),
)
