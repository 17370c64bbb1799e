"""Connections of type nats: reachable, new enough, JetStream, and for each destination its stream, its limits and the
permission to publish. Nothing is published.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

from bridge.bus.advice import not_permitted
from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings, bus_settings
from bridge.config.model import Config
from bridge.config.nats import NatsConnection
from bridge.config.specs import pipeline_specs
from bridge.doctor.check import Check, ok
from bridge.errors import BridgeError, CannotConnect
from bridge.planning.publication import literal_part
from bridge.planning.spec import SubjectSpec
from bridge.plans import relay_plans
from bridge.stream.spec import RelaySpec
from bridge.stream.waves import stream_command

_SECONDS = 5.0
_SKEW_SECONDS = 5.0
"""max_age and duplicate_window are minutes at least."""
_FULL = 0.8
_SHORT_WINDOW = 30.0
"""Seconds. A bridge that was killed is back, or its stand-by at work, within some seconds."""


def logs(config: Config) -> Iterator[Check]:
    """Of every nats connection."""
    for name, connection in config.connections.items():
        if isinstance(connection, NatsConnection):
            log = config.scale is not None and config.scale.log == name
            relays = relay_plans(config) if log else []
            yield from _connection(name, bus_settings(name, connection), _published(config, name), relays)


def _published(config: Config, connection: str) -> list[tuple[str, SubjectSpec]]:
    return [
        (f"{pipeline.name} -> {name}", spec)
        for pipeline in pipeline_specs(config)
        for name, spec in pipeline.destinations.items()
        if isinstance(spec, SubjectSpec) and spec.connection == connection
    ]


def _connection(
    name: str,
    settings: BusSettings,
    published: list[tuple[str, SubjectSpec]],
    relays: Sequence[RelaySpec],
) -> Iterator[Check]:
    with closing(Bus(settings, "outbox_bridge doctor")) as bus:
        try:
            bus.connect(_SECONDS)
            yield ok(name, "reach", f"nats-server {bus.server_version} at {bus.server}, {_login(settings)}")
            bus.check_jetstream()
            yield ok(name, "jetstream", f"enabled; max_payload is {bus.max_payload} bytes")
            rights = _rights(bus)
            for where, spec in published:
                yield from _destination(name, bus, where, spec, rights)
            for relay in relays:
                yield from _log(name, bus, relay, rights)
        except BridgeError as error:
            away = isinstance(error, CannotConnect)
            check = "reach" if away else error.reason
            yield Check("error", name, check, str(error.args[0]), error.hint, "advice", unreachable=away)


def _login(settings: BusSettings) -> str:
    ways = {
        "password": f"as user {settings.user}",
        "token": "by its token",
        "nkey": "by an nkey",
        "credentials": "by a JWT",
        "none": "without a login",
    }
    return f"{ways[settings.credential]}, {'with' if settings.secured else 'without'} TLS"


def _destination(
    name: str, bus: Bus, where: str, spec: SubjectSpec, rights: dict[str, Any] | None
) -> Iterator[Check]:
    subject = literal_part(spec.subject)
    if rights is not None and not _may(rights, subject):
        error = not_permitted(bus.settings, "publish", subject)
        yield Check("error", name, error.reason, f"{where}: {error.args[0]}", error.hint, "advice")
    streams = _ask(bus, "STREAM.NAMES", {"subject": subject}).get("streams") or []
    if not streams:
        fix = stream_command(bus.settings.replicas, subject)
        yield Check(
            "error", name, "nats_stream", f"{where}: no JetStream stream takes {subject}", fix, "advice"
        )
    for stream in streams:
        asked = time.time()
        found = _ask(bus, f"STREAM.INFO.{stream}", {})
        took = time.time() - asked
        yield from _stream(name, bus, f"{where}: stream {stream}", found)
        yield from _clock(name, found, asked + took / 2)


def _log(name: str, bus: Bus, relay: RelaySpec, rights: dict[str, Any] | None) -> Iterator[Check]:
    """The stream that holds a relay's frames, as far as there is one. The relay makes it."""
    for subject in (f"{relay.relay}.frames.1", f"{relay.relay}.again"):
        if rights is not None and not _may(rights, subject):
            error = not_permitted(bus.settings, "publish", subject)
            fix = f"{error.hint}; all that relay and worker need: bridge schema log"
            yield Check("error", name, error.reason, str(error.args[0]), fix, "advice")
    asked = time.time()
    found = _ask(bus, f"STREAM.INFO.{relay.relay}", {})
    took = time.time() - asked
    if "config" not in found:
        yield ok(name, "log", f"stream {relay.relay}: the relay makes it")
        return
    yield from _clock(name, found, asked + took / 2)
    config, what = found["config"], f"stream {relay.relay}"
    edit = f"nats stream edit {relay.relay}"
    wrong = {
        "retention": (
            "limits",
            f"nats stream rm {relay.relay}   (the relay makes it anew, and loses nothing)",
        ),
        "discard": ("new", f"{edit} --discard new"),
        "max_age": (0, f"{edit} --max-age 0"),
    }
    for key, (right, fix) in wrong.items():
        if config.get(key, right) != right:
            said = (
                f"{what} has {key} {config[key]}: it forgets frames that are not applied yet, again and again"
            )
            yield Check("warn", name, "log_limits", said, fix, "advice")
    if config.get("num_replicas", 1) != relay.bus.replicas:
        has = config.get("num_replicas", 1)
        said = f"{what} has {has} replicas, and connections.{name}.replicas is {relay.bus.replicas}"
        yield Check("warn", name, "log_replicas", said, f"{edit} --replicas {relay.bus.replicas}", "advice")
    elif relay.bus.replicas == 1 and bus.clustered:
        said = f"{what} is on one node of a cluster: without that node nothing is delivered"
        yield Check(
            "warn",
            name,
            "log_replicas",
            said,
            f"connections.{name}.replicas: 3, and {edit} --replicas 3",
            "advice",
        )
    held, most = found["state"].get("bytes", 0), config.get("max_bytes", -1)
    if most != relay.max_log_bytes:
        said = f"{what} may hold {most} bytes, and scale.log_size is {relay.max_log_bytes}"
        yield Check("warn", name, "log_size", said, f"{edit} --max-bytes {relay.max_log_bytes}", "advice")
    if most > 0 and held > _FULL * most:
        said = f"{what} holds {held} of {most} bytes: when it is full, the relay waits"
        yield Check(
            "warn", name, "log_full", said, "bridge scale status names the partition that is behind", "advice"
        )
    yield ok(name, "log", f"{what}: {found['state'].get('messages', 0)} frames, {held} of {most} bytes")


def _stream(name: str, bus: Bus, what: str, found: dict[str, Any]) -> Iterator[Check]:
    config = found["config"]
    window = config.get("duplicate_window", 0) / 1e9
    if config.get("retention") == "interest" and not found["state"].get("consumer_count"):
        yield Check(
            "warn",
            name,
            "nats_interest",
            f"{what} keeps messages for consumers only, and has none: every message is dropped at once",
            "nats consumer add, before the bridge publishes; or a stream with --retention limits",
            "advice",
        )
    if window < _SHORT_WINDOW:
        yield Check(
            "warn",
            name,
            "nats_window",
            f"{what} recognizes a message that is published again for {window:g} s only",
            f"nats stream edit {config['name']} --dupe-window 2m",
            "advice",
        )
    if config.get("num_replicas", 1) == 1 and bus.clustered:
        yield Check(
            "warn",
            name,
            "nats_replicas",
            f"{what} is on one node of a cluster: with that node its messages are lost",
            f"nats stream edit {config['name']} --replicas 3",
            "advice",
        )
    limits = [f"{key} {config[key]}" for key in ("max_bytes", "max_msgs") if config.get(key, -1) > 0]
    age = config.get("max_age", 0) / 1e9
    kept = [*([f"max_age {age:g} s"] if age else []), *limits] or ["no limit"]
    yield ok(
        name,
        "stream",
        f"{what}, {config.get('num_replicas', 1)} replicas, {', '.join(kept)}, "
        f"{found['state'].get('messages', 0)} messages",
    )


def _clock(name: str, found: dict[str, Any], at: float) -> Iterator[Check]:
    """Its clock decides on max_age and on the window. Servers before 2.11 do not tell the time."""
    try:
        stamp = str(found["ts"]).replace("Z", "+00:00")
        head, _, rest = stamp.partition(".")
        zone = rest[rest.index("+") :] if "+" in rest else "+00:00"
        server = datetime.fromisoformat(head + zone if rest else stamp).timestamp()
    except (KeyError, ValueError):
        return
    skew = server - at
    if abs(skew) > _SKEW_SECONDS:
        yield Check(
            "warn",
            name,
            "nats_clock",
            f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
            "set both by NTP: chronyc tracking",
            "advice",
        )


def _ask(bus: Bus, what: str, request: dict[str, Any]) -> dict[str, Any]:
    """One question to JetStream's API. Raises BridgeError."""
    prefix = f"$JS.{bus.settings.domain}.API" if bus.settings.domain else "$JS.API"
    subject = f"{prefix}.{what}"

    async def request_it(_: Any) -> dict[str, Any]:
        answer = await bus.client.request(subject, json.dumps(request).encode(), timeout=_SECONDS)
        found: dict[str, Any] = json.loads(answer.data)
        return found

    return bus.call(request_it, doing=f"ask for {what.partition('.')[2].lower()}", subject=subject)


def _rights(bus: Bus) -> dict[str, Any] | None:
    """What the user may publish, as the server says it; None: it does not."""

    async def ask(_: Any) -> dict[str, Any]:
        answer = await bus.client.request("$SYS.REQ.USER.INFO", b"", timeout=2)
        found: dict[str, Any] = json.loads(answer.data)
        return found

    try:
        found = bus.call(ask, doing="ask for permissions", subject="$SYS.REQ.USER.INFO", timeout=3)
    except BridgeError:
        return None
    rights = (found.get("data") or {}).get("permissions")
    return rights.get("publish") if isinstance(rights, dict) else None


def _may(rights: dict[str, Any], subject: str) -> bool:
    allowed = rights.get("allow")
    denied = any(_covers(one, subject) for one in rights.get("deny") or ())
    return not denied and (not allowed or any(_covers(one, subject) for one in allowed))


def _covers(pattern: str, subject: str) -> bool:
    """Does a subject with wildcards take everything that the other takes?"""
    words, others = pattern.split("."), subject.split(".")
    for place, word in enumerate(words):
        if word == ">":
            return len(others) > place
        if place >= len(others) or (word != "*" and word != others[place]) or others[place] == ">":
            return False
    return len(words) == len(others)
