"""Events of the outbox as a person looks for them, each with what became of it. No values but ids, types and keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg

    from bridge.config.model import Config
    from bridge.protocol.events import Event
    from bridge.stream.spec import StreamSpec

Outcome = Literal["waiting", "applied", "dead", "sending", "unmatched"]
OUTCOMES: tuple[Outcome, ...] = ("waiting", "applied", "dead", "sending", "unmatched")
"""waiting: not applied yet. applied: also what a filter stopped. dead: an open dead letter. sending: applied, and a
message of it waits. unmatched: no pipeline takes its type."""
WINDOW = 1000
"""Events looked at, the newest that fit the rest, where an outcome is asked for."""
_SECONDS = 10


@dataclass(frozen=True, slots=True)
class EventSearch:
    """Every given condition must hold."""

    id: str | None = None
    type: str | None = None
    key: str | None = None
    pipeline: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    outcome: str | None = None


def search(config: Config, asked: EventSearch, limit: int) -> list[dict[str, Any]]:
    """The newest of every source, the newest first: source, id, type, key, occurred_at, outcome."""
    from bridge.config.several import each_source  # noqa: PLC0415
    from bridge.operate.connect import connect_source, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import outbox_of, stream_plans, types_taken  # noqa: PLC0415

    taken = types_taken(config)
    found: list[dict[str, Any]] = []
    for one in each_source(config):
        plans = stream_plans(one)
        if asked.pipeline is not None and all(
            spec.name != asked.pipeline for plan in plans for spec in plan.pipelines
        ):
            continue
        with connect_source(one, command="tail", grant="outbox_bridge") as source:
            events = _events(source, outbox_of(one), asked, plans, WINDOW if asked.outcome else limit)
        with target_errors("tail"):
            outcomes = _outcomes(plans, events)
        for event in events:
            kind = event.type.decode()
            outcome = outcomes[event.id] if taken.takes(kind) or outcomes[event.id] == "dead" else "unmatched"
            if asked.outcome in (None, outcome):
                found.append({"source": one.source_name, **_told(event), "outcome": outcome})
    return sorted(found, key=lambda row: (row["occurred_at"] or "", row["id"]), reverse=True)[:limit]


def _events(
    source: psycopg.Connection[Any], outbox: Any, asked: EventSearch, plans: Sequence[StreamSpec], limit: int
) -> list[Event]:
    import psycopg  # noqa: PLC0415
    from psycopg import sql  # noqa: PLC0415

    from bridge.postgres.outbox import events_of  # noqa: PLC0415

    parts: list[sql.Composable] = [sql.SQL("true")]
    values: dict[str, Any] = {"limit": limit}
    for field, condition, value in (
        ("id", "{}::text = %(id)s", asked.id),
        ("type", "{} like %(type)s", None if asked.type is None else _like(asked.type)),
        ("key", "{}::text = %(key)s", asked.key),
        ("occurred_at", "{} >= %(since)s", asked.since),
        ("occurred_at", "{} < %(until)s", asked.until),
    ):
        if value is None:
            continue
        if field not in outbox.columns:
            raise BridgeError(
                f"the outbox has no column for {field}", hint=f"source.columns: {{ {field}: NAME }}"
            )
        name = condition.partition("%(")[2].partition(")")[0]
        own = field == "id" and not outbox.is_foreign  # by its index
        parts.append(sql.SQL("{} = %(id)s::uuid" if own else condition).format(outbox.column(field)))
        values[name] = value
    if asked.pipeline is not None:
        patterns = [
            _like(p)
            for plan in plans
            for spec in plan.pipelines
            if spec.name == asked.pipeline
            for p in spec.events
        ]
        parts.append(sql.SQL("{} like any(%(patterns)s)").format(outbox.column("type")))
        values["patterns"] = patterns
    order = next((name for name in ("seq", "occurred_at") if name in outbox.columns), None)
    query = sql.SQL("select {} from {} where {}{} limit %(limit)s").format(
        outbox.select_list(),
        outbox.name,
        sql.SQL(" and ").join(parts),
        sql.SQL("") if order is None else sql.SQL(" order by {} desc").format(outbox.column(order)),
    )
    try:
        with source.transaction():
            source.execute(f"set local statement_timeout = '{_SECONDS}s'".encode())
            return events_of(source.execute(query, values).pgresult, outbox)
    except psycopg.errors.QueryCanceled:
        raise BridgeError(
            f"the search took longer than {_SECONDS} s", hint="narrow it: a later `since`, or the event's id"
        ) from None
    except psycopg.DataError:  # not even of the column's type
        return []


def _like(pattern: str) -> str:
    """A glob as SQL's LIKE has it."""
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def _told(event: Event) -> dict[str, Any]:
    return {
        "id": event.id.decode(errors="replace"),
        "type": event.type.decode(errors="replace"),
        "key": None if event.key is None else event.key.decode(errors="replace"),
        "occurred_at": None if event.occurred_at is None else event.occurred_at.decode(),
    }


def _outcomes(plans: Sequence[StreamSpec], events: Sequence[Event]) -> Mapping[bytes, str]:
    """The worst that the ledgers say of each."""
    from bridge.operate.connect import connect_ledger  # noqa: PLC0415
    from bridge.postgres.progress import Applied, letters, waiting  # noqa: PLC0415

    found: dict[bytes, set[str]] = {event.id: set() for event in events}
    for plan in plans if events else ():
        places = [(spec.name, name) for spec in plan.pipelines for name in spec.destinations]
        units = {
            str(plan.owner.unit_id(event.id.decode(errors="replace"), *unit)): event.id
            for event in events
            for unit in [*places, ("", ""), *sorted(plan.entities)]
        }
        with connect_ledger(plan, "tail") as target:
            applied = Applied(target, plan.rows)
            for event in events:
                found[event.id].add("waiting" if applied.how(event) == "" else "applied")
            for unit, letter in letters(target, list(units)).items():
                if letter["state"] == "open":
                    found[units[unit]].add("dead")
            for unit in waiting(target, list(units)):
                found[units[unit]].add("sending")
    order = ("dead", "waiting", "sending", "applied")
    return {name: next((word for word in order if word in words), "waiting") for name, words in found.items()}
