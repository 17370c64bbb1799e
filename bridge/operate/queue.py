"""The messages of sinks that a person means, in every ledger of a configuration; and what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from bridge.errors import ConfigError
from bridge.operate.audit import Actor, need_audit, record
from bridge.problem import suggestion

if TYPE_CHECKING:
    import psycopg

    from bridge.config.model import Config
    from bridge.dispatch.schedule import LaneSpec
    from bridge.postgres.queued import Search
    from bridge.stream.spec import StreamSpec

Act = Callable[["psycopg.Connection[Any]", list[str], str, "str | None"], int]
"""hurry, discard or restore of postgres/queued.py."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A search, and what the database cannot be asked."""

    search: Search
    recipient: str | None = None

    def narrows(self) -> bool:
        """Does it say more than a place?"""
        only = replace(self.search, pipeline=None, destination=None, state="pending")
        return self.recipient is not None or only != type(only)()


@dataclass(frozen=True, slots=True)
class Ledger:
    """A stream's ledger. lanes: the sinks of the configuration that it has."""

    plan: StreamSpec
    connection: psycopg.Connection[Any]
    lanes: dict[tuple[str, str], LaneSpec]

    def found(self, wanted: Selection, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The messages in the order of their events."""
        from bridge.postgres.queued import search  # noqa: PLC0415

        to = wanted.recipient
        every = search(self.connection, self.plan.stream, wanted.search, limit if to is None else None)
        with closing(every):
            yield from islice((row for row in every if to is None or self._goes_to(row, to)), limit)

    def named(self, wanted: Selection) -> list[tuple[str, str, str]]:
        """(id, pipeline, destination) of the messages, in the order of their events."""
        from bridge.postgres.queued import named as named_rows  # noqa: PLC0415

        if wanted.recipient is None:
            return named_rows(self.connection, self.plan.stream, wanted.search)
        return [(row["id"], row["pipeline"], row["destination"]) for row in self.found(wanted)]

    def recipient(self, row: dict[str, Any]) -> str | None:
        """Who gets it, where its message says so; None also where the destination is gone."""
        from bridge.postgres.claims import delivery_of  # noqa: PLC0415
        from bridge.sinks.model import SendError  # noqa: PLC0415

        lane = self.lanes.get((row["pipeline"], row["destination"]))
        try:
            return None if lane is None else lane.sink.recipient(delivery_of(row))
        except SendError:
            return None

    def _goes_to(self, row: dict[str, Any], recipient: str) -> bool:
        from bridge.postgres.sink_pause import digest  # noqa: PLC0415

        name = self.recipient(row)
        return name is not None and (name == recipient or digest(name).startswith(recipient.lower()))


@contextmanager
def ledgers(config: Config, command: str, *, writes: bool = False) -> Iterator[list[Ledger]]:
    """Every stream's; errors of statements as the command line reports them."""
    from bridge.operate.connect import connect_ledger, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import dispatch_plans, stream_plans  # noqa: PLC0415

    lanes = {plan.stream: {lane.name: lane for lane in plan.lanes} for plan in dispatch_plans(config)}
    with ExitStack() as stack:
        stack.enter_context(target_errors(command))
        yield [
            Ledger(
                plan,
                stack.enter_context(connect_ledger(plan, command, writes=writes)),
                lanes.get(plan.stream, {}),
            )
            for plan in stream_plans(config)
        ]


def check_place(found: list[Ledger], wanted: Selection) -> None:
    """Raise ConfigError if a name of the search means nothing: neither the configuration nor a message has it."""
    from bridge.operate.names import check_cause, check_event_type  # noqa: PLC0415
    from bridge.postgres.queued import kinds  # noqa: PLC0415

    search = wanted.search
    kept = [row for one in found for row in kinds(one.connection, one.plan.stream)]
    known = {unit for one in found for unit in one.lanes} | {(row.pipeline, row.destination) for row in kept}
    named = search.pipeline is not None or search.destination is not None
    if named and not any(
        search.pipeline in (None, pipeline) and search.destination in (None, destination)
        for pipeline, destination in known
    ):
        name = "/".join(part for part in (search.pipeline, search.destination) if part)
        names = sorted({destination for _, destination in known} | {"/".join(unit) for unit in known})
        raise ConfigError(f"there is no sink {name}, and no message of one", hint=suggestion(name, names))
    if search.event_type is not None:
        check_event_type([one.plan for one in found], search.event_type, {row.event_type for row in kept})
    if search.cause is not None:
        here = {row.code for row in kept if row.state == search.state}
        check_cause("no such message has the code", search.cause, here, {row.code for row in kept})


@dataclass(slots=True)
class Listed:
    """groups: source, pipeline, destination, code, messages, oldest_seconds. rows: messages with `recipient` (its
    label), `waits` and `expires_at`, without their bodies."""

    groups: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    several: bool = False


def listed(
    config: Config, wanted: Selection, limit: int, status: Callable[[], Mapping[str, Any] | None]
) -> Listed:
    """How many by place and last answer, and the oldest. status: asks the running bridge. Raises ConfigError where
    there is none and a name means nothing."""
    from bridge.dispatch.recipients import label  # noqa: PLC0415
    from bridge.operate.waits import Waits  # noqa: PLC0415
    from bridge.postgres.queued import counts  # noqa: PLC0415

    told = Listed()
    with ledgers(config, "sink list") as every:
        for one in every:
            waits = Waits.of(config, one.connection, one.plan, status)
            of = {"source": one.plan.source}
            told.several = told.several or one.plan.several
            if wanted.recipient is None:
                names = ("pipeline", "destination", "code", "messages", "oldest_seconds")
                found = counts(one.connection, one.plan.stream, wanted.search)
                told.groups += [{**of, **dict(zip(names, row, strict=True))} for row in found]
            for row in one.found(wanted, limit):
                pending = row["state"] == "pending"
                recipient = one.recipient(row)
                told.rows.append(
                    {
                        **of,
                        **{name: value for name, value in row.items() if name not in ("body", "now")},
                        "recipient": None if recipient is None else label(recipient),
                        "waits": waits.why(row) if pending else None,
                        "expires_at": waits.expires(row) if pending else None,
                    }
                )
        if not told.rows:
            check_place(every, wanted)
    del told.rows[limit:]
    return told


@dataclass(slots=True)
class Changed:
    """Messages that were found, how many changed, and how many of which place were meant. source, pipeline and
    destination of each found."""

    ids: list[str] = field(default_factory=list)
    places: list[tuple[str, str, str]] = field(default_factory=list)
    changed: int = 0

    @property
    def left(self) -> int:
        """Being sent right now, or settled meanwhile."""
        return len(self.ids) - self.changed


def change(
    config: Config, command: str, wanted: Selection, act: Act, actor: Actor, *, dry_run: bool = False
) -> Changed:
    """Find the messages and do it to them. Raises ConfigError where nothing is found and a name means nothing."""
    from bridge.operate.names import check_messages  # noqa: PLC0415
    from bridge.postgres.queued import need_history, states  # noqa: PLC0415

    done = Changed()
    with ledgers(config, command, writes=True) as every:
        for one in every:
            rows = one.named(wanted)
            if not rows:
                continue
            need_history(one.connection, command)
            if not dry_run:
                need_audit(one.connection, actor, command)
            names = [row[0] for row in rows]
            here = len(names) if dry_run else act(one.connection, names, actor.who, actor.reason)
            done.ids += names
            done.changed += here
            done.places += [
                (one.plan.source_label, pipeline, destination) for _, pipeline, destination in rows
            ]
            if not dry_run:
                record(one.connection, actor, command, one.plan.stream, ids=names, result=f"{here} changed")
        if not done.ids:
            check_place(every, wanted)
            ids = wanted.search.ids
            found = {
                each: state for one in every for each, state in states(one.connection, one.plan.stream, ids)
            }
            check_messages(ids, found, wanted.search.state)
    return done
