"""The overview, its charts, and the audit."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request

from bridge.console.desk import DAY_SECONDS, Day, Desk, by_minute
from bridge.console.flow import flow_of
from bridge.console.operations import Done, Field, Operation
from bridge.console.operations import Request as Asked
from bridge.observe.samples import Sample
from bridge.operate.audit import UPGRADE

_HOURS = {"1": 3600.0, "6": 6 * 3600.0, "24": DAY_SECONDS}
_AUDITED = 200


async def overview(desk: Desk, request: Request) -> tuple[str, dict[str, Any]]:
    """The page; for a poll, what changes of it."""
    part = request.url.path.startswith("/part/")
    if not part:
        await desk.fresh()
    hours = request.query_params.get("hours", "6")
    hours = hours if hours in _HOURS else "6"
    values = desk.recent(hours)
    if values is None:
        values = _values(desk, await desk.day(), hours)
        desk.keep_recent(hours, values)
    return ("part_overview.html" if part else "overview.html"), values


def _values(desk: Desk, day: Day, hours: str) -> dict[str, Any]:
    status = desk.status()
    seconds = _HOURS[hours]
    now = time.time()
    recent = [one for one in [*day.samples, *desk.sampler.present()] if one.at > now - seconds]
    return {
        "status": status,
        "uptime": max(0.0, status["now"] - status["started_at"]),
        "flow": flow_of(desk.config(), status, desk, day),
        "wrong": wrong(status),
        "hours": hours,
        "peak": _peak(recent, now, seconds),
        "older": day.older,
        "upgrade": UPGRADE,
    }


def _peak(samples: list[Sample], now: float, seconds: float) -> dict[str, Any]:
    """What the charts show, in numbers."""
    told = by_minute(samples, now, seconds)

    def worst(name: str) -> Any:
        return max((value for value in told[name] if value is not None), default=None)

    rooms = [value for value in told["headroom"] if value is not None]
    return {
        "events": sum(one.events for one in samples),
        "rate": worst("rate"),
        "p50": worst("p50"),
        "p99": worst("p99"),
        "lag": worst("lag"),
        "headroom": min(rooms, default=None),
    }


def wrong(status: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wrong, the worst first, each with its fix and, where the console has it, the page."""
    found = [
        {
            "level": "bad",
            "what": one["reason"],
            "where": one["where"],
            "said": one["message"],
            "fix": one["hint"],
        }
        for one in status["problems"]
    ]
    refused = status["reload_refused"]
    if refused:
        found.append(
            {
                "level": "bad",
                "what": "reload refused",
                "where": "bridge.yaml",
                "said": "the configuration of before is in use",
                "fix": f"correct the file, then: kill -HUP {refused['pid']}",
                "link": "/configuration",
            }
        )
    found += [
        {
            "level": "bad",
            "what": f"{one['dead_letters']} dead letters",
            "where": one["pipeline"] or "no pipeline",
            "said": "they could not be applied or sent",
            "fix": "look at the cause, correct it, and retry them",
            "link": f"/dead?pipeline={one['pipeline']}" if one["pipeline"] else "/dead",
        }
        for one in status["pipelines"]
        if one["dead_letters"]
    ]
    found += [
        {
            "level": "wait",
            "what": "left behind",
            "where": one["name"],
            "said": one["message"],
            "fix": one["fix"],
        }
        for one in status["left_behind"]
    ]
    found += [
        {
            "level": "wait",
            "what": "paused" if one["until"] is None else "left alone",
            "where": f"{one['pipeline']}/{one['destination']} {one['recipient']}".strip(),
            "said": f"by {one['code']}" if one["until"] is None else f"after {one['code']}",
            "fix": "" if one["until"] is None else "it is tried again by itself; or retry its messages now",
            "link": f"/deliveries?pipeline={one['pipeline']}&destination={one['destination']}",
        }
        for one in status["left_alone"]
    ]
    unmatched = status["unmatched"]
    if unmatched["events"]:
        found.append(
            {
                "level": "wait",
                "what": "no pipeline takes it",
                "where": ", ".join(one["type"] for one in unmatched["types"]) or "other types",
                "said": f"{unmatched['events']} events since the start were passed over",
                "fix": unmatched["fix"],
            }
        )
    return found


def _history(asked: Asked) -> Done:
    seconds = _HOURS.get(str(asked.given["hours"] or "6"), _HOURS["6"])
    stream = asked.given["stream"]
    samples = [*asked.desk.read_day().samples, *asked.desk.sampler.present()]
    chosen = [one for one in samples if stream in (None, one.stream)]
    return Done(by_minute(chosen, time.time(), seconds))


def _status(asked: Asked) -> Done:
    return Done(asked.desk.status())


async def audit(desk: Desk, request: Request) -> tuple[str, dict[str, Any]]:
    rows, older = await desk.work(_audited, desk, request.query_params.get("who"))
    return "audit.html", {
        "rows": rows,
        "older": older,
        "upgrade": UPGRADE,
        "who": request.query_params.get("who", ""),
    }


def _audited(desk: Desk, who: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The newest actions of every ledger, and the streams whose ledgers keep none."""
    from bridge.operate.audit import keeps_audit, newest  # noqa: PLC0415  only when somebody looks
    from bridge.operate.letters import ledgers  # noqa: PLC0415

    found: list[dict[str, Any]] = []
    older = []
    with ledgers(desk.config(), "audit") as every:
        for plan, connection in every:
            if not keeps_audit(connection):
                older.append(plan.stream)
            found += newest(connection, plan.stream, _AUDITED)
    rows = [one for one in found if who in (None, "", one["who"])]
    return sorted(rows, key=lambda one: one["at"], reverse=True)[:_AUDITED], older


def _audit(asked: Asked) -> Done:
    rows, _ = _audited(asked.desk, asked.given["who"])
    return Done({"actions": rows})


PAGES = {"/": overview, "/part/overview": overview, "/audit": audit}
OPERATIONS = (
    Operation("GET", "/status", "The status, as `bridge status --json` prints it.", _status),
    Operation(
        "GET",
        "/history",
        "A value a minute: at, rate (events a second), p50, p99, lag (seconds), headroom (bytes of WAL).",
        _history,
        (
            Field("hours", "How far back.", choices=tuple(_HOURS)),
            Field("stream", "Only this one."),
        ),
    ),
    Operation(
        "GET", "/audit", "Who did what, the newest first.", _audit, (Field("who", "Only this one's."),)
    ),
)
