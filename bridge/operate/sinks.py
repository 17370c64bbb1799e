"""Which sinks a person means, and to pause and resume them, in whole or in part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.errors import ConfigError
from bridge.operate.audit import Actor, need_audit, record
from bridge.problem import suggestion

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.dispatch.schedule import DispatchSpec, LaneSpec
    from bridge.postgres.sink_pause import Hold

_DIGEST = 8  # characters of a recipient's digest that are shown


def named(text: str, pipeline: str | None) -> tuple[str | None, str]:
    """DESTINATION, or PIPELINE/DESTINATION, as (pipeline or None, destination)."""
    before, slash, after = text.partition("/")
    return (before, after) if slash else (pipeline, text)


def chosen(
    config: Config, destination: str | None, pipeline: str | None
) -> list[tuple[DispatchSpec, LaneSpec]]:
    """Each sink of this name (None: of any) with its dispatch plan. Raises ConfigError if there is none."""
    from bridge.plans import dispatch_plans  # noqa: PLC0415  (compiles the pipelines)

    every = [(plan, lane) for plan in dispatch_plans(config) for lane in plan.lanes]
    found = [
        (plan, lane)
        for plan, lane in every
        if destination in (None, lane.destination) and pipeline in (None, lane.pipeline)
    ]
    if not found:
        said = " ".join(
            filter(None, ("there is no sink", destination, pipeline and f"in pipeline {pipeline}"))
        )
        if destination is not None and (home := _of_nats(config, destination, pipeline)):
            raise ConfigError(
                f"{home}/{destination} is a subject of NATS: its messages are published before the event counts as "
                "applied, and none waits to be sent",
                hint="bridge doctor checks it, and explain shows a message; to publish no more, remove it "
                "from the configuration and reload",
            )
        if not every:
            raise ConfigError(said, hint="no pipeline has a destination that is not a table")
        pipelines = {lane.pipeline for _, lane in every if destination in (None, lane.destination)}
        if pipeline is not None and pipelines and pipeline not in pipelines:
            raise ConfigError(said, hint=suggestion(pipeline, pipelines))
        names = {lane.destination for _, lane in every if pipeline in (None, lane.pipeline)}
        known = names or {"/".join(lane.name) for _, lane in every}
        raise ConfigError(said, hint=suggestion(destination or "", known))
    return found


def _of_nats(config: Config, destination: str, pipeline: str | None) -> str | None:
    """The pipeline with a destination of this name that is a subject of NATS."""
    from bridge.config.nats import NatsConnection  # noqa: PLC0415  as the plans above

    for name, one in config.pipelines.items():
        found = one.destinations.get(destination)
        if found is None or pipeline not in (None, name):
            continue
        if isinstance(config.connections[found.connection], NatsConnection):
            return name
    return None


@dataclass(frozen=True, slots=True)
class Part:
    """All of a destination's messages, or those with a cause or to a recipient. everything: those parts too."""

    cause: str | None = None
    recipient: str | None = None
    everything: bool = False

    @property
    def is_whole(self) -> bool:
        return self.cause is None and self.recipient is None


def pause_lane(plan: DispatchSpec, lane: LaneSpec, part: Part, actor: Actor) -> list[Hold]:
    """Send nothing of it until it is resumed. Returns the parts; empty: all of the destination."""
    from bridge.operate.connect import connect_dispatch  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.queued import need_history  # noqa: PLC0415
    from bridge.postgres.sink_pause import hold, pause  # noqa: PLC0415

    parts = _holds(lane, part)
    with connect_dispatch(plan, "sink pause") as connection:
        need_audit(connection, actor, "sink pause")
        if parts:
            need_history(connection, "sink pause")
            _check_cause(connection, plan.stream, part.cause, [])
        with connection.transaction():
            for one in parts:
                hold(connection, plan.stream, one, actor.who, actor.reason)
            if not parts:
                pause(connection, plan.stream, lane.name, actor.who, actor.reason)
            subject = _subject(lane, parts)
            record(connection, actor, "sink pause", plan.stream, subject=subject, result="paused")
    return parts


@dataclass(slots=True)
class Resumed:
    """was: something had been paused. stays: the parts that still are."""

    was: bool
    ended: list[Hold] = field(default_factory=list)
    stays: list[Hold] = field(default_factory=list)


def resume_lane(config: Config, plan: DispatchSpec, lane: LaneSpec, part: Part, actor: Actor) -> Resumed:
    """Send to it again, first what waits."""
    from bridge.operate.connect import connect_dispatch  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.sink_pause import holds, release, resume  # noqa: PLC0415

    with connect_dispatch(plan, "sink resume") as connection:
        need_audit(connection, actor, "sink resume")
        held = [one for one in holds(connection, plan.stream) if one.unit == lane.name]
        _check_cause(connection, plan.stream, part.cause, [one.value for one in held if one.kind == "cause"])
        ended = [one for one in held if (part.everything and part.is_whole) or _is_meant(one, part)]
        with connection.transaction():
            for one in ended:
                release(connection, plan.stream, one)
            whole = part.is_whole and resume(connection, plan.stream, lane.name)
            done = Resumed(whole or bool(ended), ended, [one for one in held if one not in ended])
            if done.was:
                subject = _subject(lane, ended)
                record(connection, actor, "sink resume", plan.stream, subject=subject, result="resumed")
    for one in ended:
        _due_again(config, plan.stream, one, actor)
    return done


def _subject(lane: LaneSpec, parts: list[Hold]) -> Mapping[str, Any]:
    named: dict[str, str] = {one.kind: one.label for one in parts}
    return {"pipeline": lane.pipeline, "destination": lane.destination, **named}


def _due_again(config: Config, stream: str, held: Hold, actor: Actor) -> None:
    """What a pause of a cause or recipient held was put off: it is due now."""
    from bridge.operate.queue import Selection, ledgers  # noqa: PLC0415
    from bridge.postgres.queued import Search, hurry  # noqa: PLC0415

    pipeline, destination = held.unit
    wanted = Search(pipeline, destination, cause=held.value if held.kind == "cause" else None)
    with ledgers(config, "sink resume", writes=True) as every:
        [one] = [each for each in every if each.plan.stream == stream]
        ids = [
            row["id"]
            for row in one.found(Selection(wanted))
            if held.takes(row["last_error"], one.recipient(row))
        ]
        hurry(one.connection, ids, actor.who, f"{held.kind} {held.label} is resumed")


def _check_cause(connection: Any, stream: str, cause: str | None, held: list[str]) -> None:
    """A code that no answer has had, and that is near one that some had, is misspelt."""
    from bridge.operate.names import check_cause  # noqa: PLC0415
    from bridge.postgres.queued import kinds  # noqa: PLC0415

    if cause is not None and cause not in held:
        codes = {one.code for one in kinds(connection, stream)} - {""}
        check_cause("no answer had the code", cause, held, codes)


def _holds(lane: LaneSpec, part: Part) -> list[Hold]:
    from bridge.dispatch.recipients import label  # noqa: PLC0415
    from bridge.postgres.sink_pause import Hold, digest  # noqa: PLC0415

    found = []
    if (cause := part.cause) is not None:
        found.append(Hold(lane.name, "cause", cause, cause, ""))
    if (recipient := part.recipient) is not None:
        found.append(Hold(lane.name, "recipient", digest(recipient), label(recipient), ""))
    return found


def _is_meant(one: Hold, part: Part) -> bool:
    """A recipient may be given as its digest's beginning, as it is printed."""
    from bridge.postgres.sink_pause import digest  # noqa: PLC0415

    value = part.cause if one.kind == "cause" else part.recipient
    if value is None or one.kind == "cause":
        return bool(value == one.value)
    beginning = len(value) >= _DIGEST and one.value.startswith(value.lower())
    return beginning or digest(value) == one.value
