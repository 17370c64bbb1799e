"""What is ours and what nothing serves any more: slots, registrations, dead letters and messages of streams and
destinations that the configuration no longer has. Each with the command that ends it.

Told by doctor, status, metrics and log. A slot that somebody reads and a stream that a bridge serves are another
configuration's, and not left behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, LiteralString

Kind = Literal["slot", "stream", "dead_letters", "messages"]


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """name: the slot's, the stream's, or pipeline/destination. count: 1, or the dead letters or messages; retained:
    WAL bytes that a slot retains."""

    kind: Kind
    name: str
    message: str
    fix: str
    count: int = 1
    retained: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# A slot is ours by its name: <stream>_<n> of a registered stream, or of a stream of our prefix. Of a stream that we
# have, another number than the registered one is left behind.
SOURCE: LiteralString = """
    with slots as (
        select s.slot_name::text as name, regexp_replace(s.slot_name::text, '_[0-9]+$', '') as stream, s.active,
            coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                else pg_current_wal_lsn() end, s.restart_lsn), 0)::bigint as retained
        from pg_catalog.pg_replication_slots s
        where s.database = current_database() and s.plugin = 'pgoutput' and s.slot_name::text ~ '_[0-9]+$'
    )
    select 'slot', s.name, s.stream, s.retained, s.stream = any(%(streams)s) from slots s
    left join outbox.stream r on r.stream = s.stream
    where not s.active and (
        case when s.stream = any(%(streams)s) then r.stream is not null and r.slot is distinct from s.name
        else r.stream is not null or starts_with(s.name, %(prefix)s) end)
    union all
    select 'stream', r.stream, coalesce(r.target_database, '?'), 0, false from outbox.stream r
    where not r.stream = any(%(streams)s)
        and not exists (select from slots s where s.name = r.slot and s.active)
        and (r.slot is not null or r.target_system is null or r.updated_at < now() - interval '1 day')
    order by 1, 2"""

# Of this stream, units that the configuration does not have; of others, all, unless a bridge serves them.
TARGET: LiteralString = """
    with known as (select * from unnest(%(pipelines)s::text[], %(destinations)s::text[]) as k(pipeline, destination)),
    found as (
        select 'dead_letters' as kind, stream, pipeline, destination, count(*)::int as count
        from bridge.dead_letter where state = 'open' group by 2, 3, 4
        union all
        select 'messages', stream, pipeline, destination, count(*)::int
        from bridge.delivery where state = 'pending' group by 2, 3, 4
    )
    select kind, stream, pipeline, destination, count from found f
    where case when stream = %(stream)s then pipeline <> '' and not exists (select from known k
            where k.pipeline = f.pipeline and (k.destination = f.destination or f.destination = ''))
        else not stream = any(%(streams)s) and not exists (select from pg_catalog.pg_stat_activity a
            where a.datname = current_database()
                and starts_with(a.application_name, left('bridge/' || f.stream || '/', 63))) end
    order by 1, 2, 3, 4"""


def source_parameters(prefix: str, streams: Collection[str]) -> dict[str, object]:
    """prefix: source.slot. streams: all of the configuration."""
    return {"prefix": f"{prefix}_", "streams": list(streams)}


def target_parameters(
    stream: str, streams: Collection[str], units: Iterable[tuple[str, str]]
) -> dict[str, object]:
    """units: every (pipeline, destination) of the configuration, entities included."""
    known = sorted(set(units))
    return {
        "stream": stream,
        "streams": list(streams),
        "pipelines": [pipeline for pipeline, _ in known],
        "destinations": [destination for _, destination in known],
    }


def from_source(rows: Iterable[Sequence[Any]]) -> list[LeftBehind]:
    """From rows of SOURCE."""
    found = []
    for kind, name, about, retained, configured in rows:
        if kind == "stream":
            said = (
                f"stream {name} (of database {about}) is registered, is not in this configuration, and nothing "
                "reads its slot: events that it has not applied are never pruned"
            )
            found.append(LeftBehind("stream", name, said, f"bridge decommission {name}"))
            continue
        said = f"slot {name} is read by nothing and retains {retained >> 20} MiB of WAL"
        drop = f"select pg_drop_replication_slot('{name}');"
        fix = drop if configured else f"bridge decommission {about}"
        found.append(LeftBehind("slot", name, said, fix, retained=int(retained)))
    return found


def from_target(rows: Iterable[Sequence[Any]], stream: str) -> list[LeftBehind]:
    """From rows of TARGET. A dead letter or message of a unit that is gone is never retried or sent."""
    found = []
    for kind, owner, pipeline, destination, count in rows:
        unit = f"{pipeline}/{destination}"
        if owner != stream:
            said, fix = f"of stream {owner}, which nothing serves", f"bridge decommission {owner}"
        elif kind == "dead_letters":
            said = f"of {unit}, which is not in this configuration"
            fix = f"bridge dead discard --pipeline {pipeline}   or put {unit} back"
        else:
            said = f"of {unit}, which is not in this configuration"
            where = f"pipeline = {_literal(pipeline)} and destination = {_literal(destination)}"
            fix = (
                "update bridge.delivery set state = 'discarded', settled_at = now() where state = 'pending' and "
                f"stream = {_literal(stream)} and {where};   or put {unit} back"
            )
        words = "open dead letters" if kind == "dead_letters" else "unsent messages"
        found.append(LeftBehind(kind, unit, f"{count} {words} {said}", fix, count=int(count)))
    return found


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
