"""What `bridge sink preview` and `bridge sink test` share: which event, which sinks, and how values are printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.options import parse_payload
from bridge.errors import ConfigError
from bridge.problem import suggestion

if TYPE_CHECKING:
    from bridge.config.model import Case, Config
    from bridge.dispatch.schedule import LaneSpec
    from bridge.planning.lookup import Answer, Lookup
    from bridge.protocol.events import Event
    from bridge.repair.sample import Sample
    from bridge.stream.spec import StreamSpec

    Lanes = Mapping[tuple[str, str], LaneSpec]


# -- which event, and which sinks ------------------------------------------------------------------------


def samples_of(
    config: Config, chosen: Lanes, given: str | None, event_type: str | None
) -> list[tuple[StreamSpec, Sample, LaneSpec]]:
    """What these sinks would get of the event, from each source that it may come from. Of those that stand in
    pipelines that do not take it there is nothing.

    Raises click.UsageError if the event is not told, ConfigError if none takes it.
    """
    from bridge.config.testing import event_of  # noqa: PLC0415
    from bridge.plans import stream_plans  # noqa: PLC0415  (loads psycopg)
    from bridge.repair.sample import samples  # noqa: PLC0415

    pipelines = [pipeline for pipeline, _ in chosen]
    plans = stream_plans(config)
    case = None
    if given is None:
        case = _case(config, pipelines)
        event = event_of(case, event_type or case.type or config.pipelines[case.pipeline].events[0])
    elif (text := _text(given)) is not None:
        event = _made(config, pipelines, text, event_type)
    else:
        source, event = _from_outbox(config, given)
        plans = [plan for plan in plans if plan.source == source]
    found: list[tuple[StreamSpec, Sample, LaneSpec]] = []
    for plan in plans:
        units = frozenset(chosen) & plan.sinks
        if case is not None:
            units = frozenset(unit for unit in units if unit[0] == case.pipeline)
        units = frozenset(unit for unit in units if _takes(config, unit[0], event.type.decode()))
        with _answers(plan, case) as answer:
            found += [
                (plan, one, chosen[one.pipeline, one.destination])
                for one in samples(plan, event, units, answer)
            ]
    if not found:
        taken = {pattern for name in pipelines for pattern in config.pipelines[name].events}
        raise ConfigError(
            f"no pipeline with this sink takes {event.type.decode()}",
            hint=suggestion(event.type.decode(), taken),
        )
    return found


def _takes(config: Config, pipeline: str, event_type: str) -> bool:
    from fnmatch import fnmatchcase  # noqa: PLC0415

    return any(fnmatchcase(event_type, pattern) for pattern in config.pipelines[pipeline].events)


def _case(config: Config, pipelines: list[str]) -> Case:
    case = next((one for one in config.tests if one.pipeline in pipelines), None)
    if case is None:
        raise click.UsageError(
            "give an event: --event; without it the event of the pipeline's first test is taken"
        )
    return case


def _made(config: Config, pipelines: list[str], text: str, event_type: str | None) -> Event:
    """An event of now with this payload."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from bridge.config.model import Case, CaseMeta, Expectation  # noqa: PLC0415
    from bridge.config.testing import event_of  # noqa: PLC0415

    kinds = list(dict.fromkeys(event for name in pipelines for event in config.pipelines[name].events))
    if event_type is None and (len(kinds) > 1 or set("*?[") & set(kinds[0])):
        raise click.UsageError(f"which type has the event? --type; the pipelines take {', '.join(kinds)}")
    meta = CaseMeta(occurred_at=datetime.now(UTC).isoformat())
    case = Case(name="", pipeline=pipelines[0], event=parse_payload(text), meta=meta, expect=Expectation())
    return event_of(case, event_type or kinds[0])


def _text(given: str) -> str | None:
    """The payload's text; None: `given` is an event's id."""
    if given == "-":
        return sys.stdin.read()
    if given.lstrip().startswith(("{", "[")):
        return given
    path = Path(given)
    try:
        return path.read_text() if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(
            f"cannot be read: {error.__class__.__name__}", param_hint="--event"
        ) from None


def _from_outbox(config: Config, event_id: str) -> tuple[str, Event]:
    """The source that has the event, and the event."""
    from bridge.config.several import each_source  # noqa: PLC0415
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.operate.connect import connect_source  # noqa: PLC0415
    from bridge.plans import outbox_of  # noqa: PLC0415
    from bridge.postgres.progress import find  # noqa: PLC0415

    for one in each_source(config):
        with connect_source(one, command="sink", grant="outbox_bridge") as source:
            event = find(source, outbox_of(one), event_id)
        if event is not None:
            return one.source_name, event
    raise BridgeError(
        f"there is no file {event_id}, and the outbox has no event with this id",
        hint='a payload begins with {: --event \'{"customer_id": "cus_1"}\'; bridge tail shows the newest events',
    )


@contextmanager
def _answers(plan: StreamSpec, case: Case | None) -> Iterator[Callable[[Lookup], Answer]]:
    """The rows of lookups: those of the test, or those of the databases."""
    if case is not None:
        from bridge.config.testing import answer_of  # noqa: PLC0415

        yield answer_of(case)
        return
    from bridge.operate.connect import target_errors  # noqa: PLC0415
    from bridge.postgres.entities import Enricher  # noqa: PLC0415

    enricher = Enricher(plan.dsns, "sink")
    try:
        with target_errors("sink"):
            yield enricher.answer
    finally:
        enricher.close()


# -- what is printed -------------------------------------------------------------------------------------


def readable(body: bytes) -> Any:
    """JSON as a value with exact numbers, other text as text."""
    from bridge.errors import PayloadFailure  # noqa: PLC0415
    from bridge.expressions.document import exact_json  # noqa: PLC0415

    text = body.decode(errors="replace")
    try:
        return exact_json(text)
    except (PayloadFailure, ValueError):
        return text


def dumped(value: Any) -> str:
    import orjson  # noqa: PLC0415

    from bridge.expressions.document import digits, json_text  # noqa: PLC0415

    try:
        return orjson.dumps(
            value, default=lambda number: orjson.Fragment(digits(number)), option=orjson.OPT_INDENT_2
        ).decode()
    except TypeError:  # of an integer beyond 64 bits
        return json_text(value).decode()


def indented(value: Any) -> str:
    """Below a title. An answer is a stranger's text: control characters are not for the terminal."""
    text = value if isinstance(value, str) else dumped(value)
    plain = "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
    return "\n".join(f"    {line}" for line in plain.splitlines()[:200])
