"""HTML of the console: templates of the package, filled in on the server, under a policy that allows our files alone.

The templates escape all text. No script or style stands in a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import minijinja
from starlette.requests import Request
from starlette.responses import Response

from bridge import __version__
from bridge.observe.access import Visit
from bridge.observe.admin import HEADERS
from bridge.observe.units import human_bytes, human_seconds

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HIDDEN = "•••"  # in the place of a value
_NOTES = 100

_STATIC = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "vendor/htmx-2.0.11.min.js": "text/javascript",
    "vendor/uPlot-1.6.32.iife.min.js": "text/javascript",
    "vendor/uPlot-1.6.32.min.css": "text/css",
}
NAVIGATION = (
    ("/", "Overview"),
    ("/dead", "Dead letters"),
    ("/events", "Events"),
    ("/deliveries", "Deliveries"),
    ("/configuration", "Configuration"),
    ("/jobs", "Prove and replay"),
    ("/audit", "Audit"),
)


@cache
def static(name: str) -> bytes | None:
    """A file of ours by its name in the address; None: there is none."""
    if name not in _STATIC:
        return None
    return files("bridge.console").joinpath("static", *name.split("/")).read_bytes()


@cache
def digest() -> str:
    """Of all of these files: their addresses change with them, so that a browser may keep them."""
    return sha256(b"".join(static(name) or b"" for name in _STATIC)).hexdigest()[:12]


def static_file(request: Request) -> Response:
    name = request.path_params["name"]
    found = static(name)
    if found is None:
        return Response("no such file\n", 404, HEADERS, media_type="text/plain")
    headers = {**HEADERS, "cache-control": "private, max-age=86400"}
    return Response(found, 200, headers, media_type=_STATIC[name])


@cache
def environment() -> minijinja.Environment:
    def load(name: str) -> str | None:
        found = files("bridge.console").joinpath("templates", name)
        return found.read_text(encoding="utf-8") if found.is_file() else None

    made = minijinja.Environment(loader=load, trim_blocks=True, lstrip_blocks=True)
    for name, filter_ in (
        ("human_bytes", human_bytes),
        ("human_seconds", human_seconds),
        ("count", _count),
        ("moment", _moment),
        ("pretty", _pretty),
        ("plain", _plain),
    ):
        made.add_filter(name, filter_)
    return made


def _count(number: Any) -> str:
    return "–" if number is None else f"{number:,}".replace(",", "\u2009")  # noqa: RUF001  an en dash: no value


def _moment(value: Any) -> str:
    """A time as text, in UTC."""
    if value is None:
        return "–"  # noqa: RUF001  as above
    if isinstance(value, (int, float)):
        value = datetime.fromtimestamp(value, UTC)
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    return str(value)[:19].replace("T", " ")


def _pretty(value: Any) -> str:
    """JSON for people. Text that is JSON is laid out, with every number as it is written; other text stays."""
    if not isinstance(value, str):
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return value
    return _laid_out(value)


_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def _laid_out(text: str) -> str:
    parts: list[str] = []
    depth = 0
    before = ""
    for mark in _MARKS.findall(text):
        if mark in "}]":
            depth -= 1
            parts.append("" if before in ("{", "[") else "\n" + "  " * depth)
        elif before in ("{", "["):
            parts.append("\n" + "  " * depth)
        parts.append({",": ",\n" + "  " * depth, ":": ": "}.get(mark, mark))
        depth += mark in ("{", "[")
        before = mark
    return "".join(parts)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def hide(value: Any) -> Any:
    """The same shape without its values: names, lists and what is null stay."""
    if isinstance(value, Mapping):
        return {name: hide(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide(one) for one in value]
    return None if value is None else HIDDEN


class Notes:
    """What an action did, told on the page that follows it. By session."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Any]] = {}

    def leave(self, visit: Visit, note: Mapping[str, Any]) -> None:
        while len(self._kept) >= _NOTES:
            self._kept.pop(next(iter(self._kept)))
        self._kept[visit.csrf] = dict(note)

    def take(self, visit: Visit) -> dict[str, Any] | None:
        return self._kept.pop(visit.csrf, None) if visit.csrf else None


def render(template: str, request: Request, notes: Notes, code: int = 200, **values: Any) -> Response:
    """The page, for who asks."""
    visit: Visit = request.scope["bridge.visit"]
    path = request.url.path
    here = next((at for at, _ in reversed(NAVIGATION) if path == at or path.startswith(f"{at}/")), "/")
    html = environment().render_template(
        template,
        navigation=[{"href": at, "label": label, "here": at == here} for at, label in NAVIGATION],
        version=__version__,
        asset=digest(),
        person=visit.person.name,
        role=visit.person.role,
        signed_in=visit.session is not None,
        may_act=visit.may_act and visit.session is not None,
        show_values=visit.person.show_values,
        csrf=visit.csrf,
        back=path + (f"?{request.url.query}" if request.url.query else ""),
        note=notes.take(visit) if not template.startswith("part_") else None,
        **values,
    )
    headers = {**HEADERS, "content-security-policy": POLICY}
    return Response(html, code, headers, media_type="text/html")
