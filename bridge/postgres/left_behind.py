"""What is ours and what nothing serves any more: slots, registrations, dead letters and messages of streams and
destinations that the configuration no longer has. Each with the command that ends it.

Told by doctor, status, metrics and log. A slot that somebody reads and a stream that a bridge serves, or served in the
last minutes, are another configuration's, and not left behind; nor is what belongs to another source.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, LiteralString

from bridge.postgres.served import LATELY

Unit = tuple[str, str]
"""(pipeline, destination)"""
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


# A slot is ours by its name: <stream>_<n> of a registered stream, or of a stream of our prefix (a stream's own name may
# end with a number: only the last one is n). Of a stream that we have, another number than the registered one is left
# behind. What we do not have may be another configuration's, whose bridge is being restarted: only what was left alone
# for a while is told. A slot that no stream is registered with is read by no bridge: the registration is written first.
SOURCE: LiteralString = (
    """
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
        when r.stream is not null then r.updated_at < now() - """
    + LATELY
    + """
        else starts_with(s.name, %(prefix)s) end)
    union all
    select distinct 'stream', regexp_replace(r.stream, '[.][0-9]+of[0-9]+$', ''), coalesce(r.target_database, '?'), 0,
        regexp_replace(r.stream, '[.][0-9]+of[0-9]+$', '') = any(%(streams)s) from outbox.stream r
    where not r.stream = any(%(streams)s)
        and not exists (select from slots s where s.name = r.slot and s.active)
        and r.updated_at < now() - case when r.slot is null and r.target_system is not null then interval '1 day'
            else """
    + LATELY
    + """ end
    order by 1, 2"""
)

# Of this stream, units that the configuration does not have, and messages of what this stream does not send; of others
# of this source, all, unless a bridge serves them or did so lately.
TARGET: LiteralString = (
    """
    with known as (select * from unnest(%(pipelines)s::text[], %(destinations)s::text[]) as k(pipeline, destination)),
    sent as (select * from unnest(%(sink_pipelines)s::text[], %(sinks)s::text[]) as k(pipeline, destination)),
    found as (
        select 'dead_letters' as kind, stream, pipeline, destination, count(*)::int as count,
            bool_and(exists (select from bridge.delivery d where d.id = l.id)) as sent
        from bridge.dead_letter l where state = 'open' group by 2, 3, 4
        union all
        select 'messages', stream, pipeline, destination, count(*)::int, true
        from bridge.delivery where state = 'pending' group by 2, 3, 4
    )
    select kind, stream, pipeline, destination, count, exists (select from known k
        where k.pipeline = f.pipeline and k.destination = f.destination), sent
    from found f
    where case when stream = %(stream)s and kind = 'messages' then not exists (select from sent k
            where k.pipeline = f.pipeline and k.destination = f.destination)
        when stream = %(stream)s then pipeline <> '' and not exists (select from known k
            where k.pipeline = f.pipeline and (k.destination = f.destination or f.destination = ''))
        else not stream = any(%(streams)s) and not exists (select from pg_catalog.pg_stat_activity a
            where a.datname = current_database()
                and (starts_with(a.application_name, 'bridge/' || f.stream || '/')
                    or starts_with(a.application_name, 'bridge/' || f.stream || '.')))
            and not exists (select from bridge.checkpoint c, bridge.checkpoint ours
                where (c.stream = f.stream or starts_with(c.stream, f.stream || '.'))
                and (ours.stream = %(stream)s or starts_with(ours.stream, %(stream)s || '.'))
                and (c.updated_at > now() - """
    + LATELY
    + """ or c.system_identifier <> ours.system_identifier
                    or to_jsonb(c) ->> 'source_database_oid' <> to_jsonb(ours) ->> 'source_database_oid')) end
    order by 1, 2, 3, 4"""
)


def source_parameters(prefix: str, streams: Collection[str]) -> dict[str, object]:
    """prefix: source.slot. streams: all of the configuration."""
    return {"prefix": f"{prefix}_", "streams": list(streams)}


def target_parameters(
    stream: str, streams: Collection[str], units: Iterable[Unit], sinks: Collection[Unit]
) -> dict[str, object]:
    """units: every (pipeline, destination) of the configuration, entities included. sinks: those that this stream
    sends."""
    known, sent = sorted(set(units)), sorted(sinks)
    return {
        "stream": stream,
        "streams": list(streams),
        "pipelines": [pipeline for pipeline, _ in known],
        "destinations": [destination for _, destination in known],
        "sink_pipelines": [pipeline for pipeline, _ in sent],
        "sinks": [destination for _, destination in sent],
    }


def from_source(rows: Iterable[Sequence[Any]]) -> list[LeftBehind]:
    """From rows of SOURCE."""
    found = []
    for kind, name, about, retained, configured in rows:
        if kind == "stream" and configured:
            said = (
                f"stream {name} is registered with another number of partitions than this configuration has: events "
                "that those have not applied are never pruned"
            )
            found.append(LeftBehind("stream", name, said, "bridge scale repartition"))
            continue
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


def from_target(rows: Iterable[Sequence[Any]], stream: str, sinks: Collection[Unit]) -> list[LeftBehind]:
    """From rows of TARGET. A dead letter or message of a unit that is gone is never retried or sent. sinks: as
    target_parameters."""
    found = []
    for kind, owner, pipeline, destination, count, configured, is_message in rows:
        unit = f"{pipeline}/{destination}"
        gone = f"of {unit}, which is not in this configuration"
        if owner != stream:
            said, fix = f"of stream {owner}, which nothing serves", f"bridge decommission {owner}"
        elif kind == "dead_letters":
            said = f"{gone}: put it back to retry them"
            discard = _command("bridge dead discard --pipeline", pipeline, "--destination", destination)
            fix = discard
            if is_message and (other := likely(sinks, (pipeline, destination))):
                said += f"; to give them up: {discard}"
                fix = _command("bridge sink move", unit, "/".join(other))
        else:
            said = f"of {unit}, which is not a sink of stream {stream} any more" if configured else gone
            said += ": they become dead letters at its max_age"
            discard = _command("bridge sink discard", unit, "--all")
            fix = discard
            if other := likely(sinks, (pipeline, destination)):
                said += f"; to give them up: {discard}"
                fix = _command("bridge sink move", unit, "/".join(other))
        words = "open dead letters" if kind == "dead_letters" else "unsent messages"
        found.append(LeftBehind(kind, unit, f"{count} {words} {said}", fix, count=int(count)))
    return found


def likely(sinks: Collection[Unit], gone: Unit) -> Unit | None:
    """What a sink is called now, if only one can be meant: the same name in another pipeline, or the only sink of the
    same pipeline."""
    for alike in (
        [one for one in sinks if one[1] == gone[1] and one != gone],
        [one for one in sinks if one[0] == gone[0] and one != gone],
    ):
        if alike:
            return alike[0] if len(alike) == 1 else None
    return None


def _command(start: str, *words: str) -> str:
    return " ".join([start, *map(shlex.quote, words)])
