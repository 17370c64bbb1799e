"""`bridge status`: asks the running bridge; if none runs, reads the ledger and the source."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge import __version__
from bridge.cli.options import config_option, read_config

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.planning.taken import TypesTaken
    from bridge.postgres.left_behind import LeftBehind
    from bridge.postgres.sharing import Member
    from bridge.postgres.target_rules import Finding
    from bridge.stream.spec import RelaySpec, StreamSpec

_TYPES_TOLD = 10

# What only a bridge that runs knows, or only the servers, as it stands where it is not known: one shape for programs.
_UNKNOWN: dict[str, Any] = {
    **dict.fromkeys(
        ("pid", "config", "python", "started_at", "now", "last_reload_successful", "reload_refused")
    ),
    "live": False,
    "others": [],
    "deliveries": {},
    "left_alone": [],
    "by_source": {},
    "shared": None,
}
_UNKNOWN_OF_STREAM: dict[str, Any] = {
    **dict.fromkeys(
        ("since", "reason", "last_event_at", "oldest_pending_event_age_seconds", "events", "batches")
    ),
    **dict.fromkeys(("events_per_second", "pending_events", "floor", "last_change_at", "registered")),
    **dict.fromkeys(("message", "hint", "waiting_for", "altered", "group"), ""),
    "relay": None,
}
_UNKNOWN_OF_PIPELINE: dict[str, Any] = {
    "events": {},
    **dict.fromkeys(("latency_p50_seconds", "latency_p99_seconds")),
}
_UNKNOWN_OF_SLOT: dict[str, Any] = dict.fromkeys(
    ("name", "active", "retained_wal_bytes", "safe_wal_bytes", "full_in_seconds", "wal_status", "lag_bytes")
)


@click.command(panel="Run and watch")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs: the answer of GET /status.")
def status(config_path: Path, as_json: bool) -> None:
    """Show whether the bridge works: streams, lag, dead letters. Exit code 1 if it is not ready, or has refused its
    last reload.

    Asks the running bridge (by its socket on this machine, or admin.listen with admin.token); if none runs, reads the
    ledgers and the source.
    """
    state = state_of(read_config(config_path))
    if as_json:
        click.echo(json.dumps(state, indent=2))
    else:
        for line in lines(state):
            click.echo(line)
    sys.exit(0 if state["ready"] and not state.get("reload_refused") else 1)


def state_of(config: Config) -> dict[str, Any]:
    """From the running bridge, otherwise from the servers. Raises CannotConnect if neither answers."""
    from bridge.cli.running import status_of  # noqa: PLC0415  `--help` does not look for bridges

    state = status_of(config)
    if state is None:
        from bridge.plans import relay_plans, stream_plans, types_taken  # noqa: PLC0415  (loads psycopg)

        plans = stream_plans(config)
        state = _from_servers(plans, types_taken(config), _why_not(config))
        relays = relay_plans(config)
        state["streams"] = [*map(relay_of, relays), *state["streams"]]
        if config.scale is not None and (config.scale.share or config.scale.log is not None):
            state["shared"] = shared_of(plans)
    streams = [
        {**_UNKNOWN_OF_STREAM, **one, "slot": {**_UNKNOWN_OF_SLOT, **one["slot"]}} for one in state["streams"]
    ]
    pipelines = [{**_UNKNOWN_OF_PIPELINE, **one} for one in state["pipelines"]]
    told = state.get("unmatched")  # an older bridge may answer
    unmatched = told and {"newest": None, **told}
    return {**_UNKNOWN, **state, "streams": streams, "pipelines": pipelines, "unmatched": unmatched}


def _why_not(config: Config) -> tuple[str, str]:
    """Why no running bridge was asked, and the fix."""
    from bridge.cli.running import who_listens  # noqa: PLC0415  as in state_of

    if who_listens(config) is None:
        return "no bridge answers on admin.listen", "bridge run"
    said = f"this bridge does not run: another bridge answers on {config.admin.listen}, with another source or slot"
    return said, "bridge run, after another address in `admin.listen`; to ask the other one: its file with -c"


def _from_servers(plans: list[StreamSpec], taken: TypesTaken, why: tuple[str, str]) -> dict[str, Any]:
    """why: no running bridge was asked, and the fix."""
    from bridge.observe.unmatched import of_newest  # noqa: PLC0415
    from bridge.operate.connect import connect_ledger, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres import left_behind as left  # noqa: PLC0415
    from bridge.postgres.dead_letters import open_letters  # noqa: PLC0415
    from bridge.postgres.delivery import WAITING  # noqa: PLC0415
    from bridge.postgres.target_rules import Finding  # noqa: PLC0415
    from bridge.postgres.versions import newer  # noqa: PLC0415

    streams = []
    dead: dict[str, int] = {}
    waiting: dict[str, dict[str, float]] = {}
    suppressed: dict[str, int] = {}
    by_source: dict[str, dict[str, Any]] = {}
    asked: set[str] = set()  # sources
    types: dict[str, int] = {}
    later: list[Finding] = []
    behind: list[LeftBehind] = []
    at_source: list[LeftBehind] = []
    for plan in plans:
        with target_errors("status"), connect_ledger(plan, "status", whose=False) as target:
            every = [_stream(each, target) for each in plan.each()]
            repeats, own, newest = (every[0][key] for key in ("suppressed", "left_behind", "types"))
            newer_source, halt = every[0]["newer"], every[0]["another"]
            for one in every:
                for key in ("suppressed", "left_behind", "types", "newer", "another"):
                    one.pop(key)
            streams += every
            of = by_source.setdefault(
                plan.source, {"events": {}, "dead_letters": {}, "deliveries": {}, "waiting_deliveries": {}}
            )
            if plan.source not in asked:
                asked.add(plan.source)
                at_source += own
                for into, some in ((suppressed, repeats), (types, newest)):
                    into.update({name: into.get(name, 0) + count for name, count in (some or {}).items()})
            later += [found for found in (newer(target, "target"), newer_source) if found is not None]
            if halt is not None:
                later.append(Finding(halt.reason, str(halt.args[0]), halt.hint))
                continue
            if any(one["mode"] is not None for one in every):
                parameters = left.target_parameters(plan.stream, plan.family, plan.units(), plan.sinks)
                behind += left.from_target(target.execute(left.TARGET, parameters), plan.stream, plan.sinks)
            for pipeline, letters in open_letters(target, plan.stream).items():
                for counts in (dead, of["dead_letters"]):
                    counts[pipeline] = counts.get(pipeline, 0) + letters
            for destination, messages, age in target.execute(WAITING, [plan.stream]).fetchall():
                for waits in (waiting, of["waiting_deliveries"]):
                    known = waits.get(destination, {"messages": 0, "oldest_seconds": 0.0})
                    waits[destination] = {
                        "messages": known["messages"] + messages,
                        "oldest_seconds": max(known["oldest_seconds"], round(age, 1)),
                    }
    return {
        "running": False,
        "version": __version__,
        "ready": False,
        "problems": [
            {
                "where": "bridge",
                "reason": "not_running",
                "message": why[0],
                "hint": why[1],
            },
            *(
                {"where": "bridge", "reason": one.reason, "message": one.message, "hint": one.fix}
                for one in dict.fromkeys(later)
            ),
        ],
        "streams": streams,
        "pipelines": [{"pipeline": name, "dead_letters": letters} for name, letters in dead.items()],
        "waiting_deliveries": waiting,
        "by_source": by_source if len(by_source) > 1 else {},
        "suppressed": suppressed,
        "unmatched": of_newest(taken, types),
        "left_behind": [one.as_dict() for one in (*at_source, *behind)],
    }


def shared_of(plans: list[StreamSpec]) -> dict[str, Any]:
    """Who runs which stream, as the targets' locks tell it. Raises as a connection does."""
    from bridge.operate.connect import target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.sharing import who_claims  # noqa: PLC0415  only where bridges share
    from bridge.sharing import picture  # noqa: PLC0415

    members: dict[str, Member] = {}
    claims: dict[str, str] = {}
    for dsn in dict.fromkeys(plan.target_dsn for plan in plans):
        with target_errors("status"):
            seen = who_claims(dsn, [row for plan in plans if plan.target_dsn == dsn for row in plan.rows])
        members |= seen.members
        claims |= seen.claims
    return picture([row for plan in plans for row in plan.rows], claims, members, me=None)


def relay_of(relay: RelaySpec) -> dict[str, Any]:
    """A relay as the source tells it, in the shape of a stream. Raises as a connection does."""
    from bridge.postgres import progress  # noqa: PLC0415
    from bridge.postgres.connect import connect  # noqa: PLC0415
    from bridge.postgres.profiles import SOURCE  # noqa: PLC0415
    from bridge.postgres.relay import lags_of, read_relay  # noqa: PLC0415

    with connect(relay.source_dsn, SOURCE, "status") as source:
        known = read_relay(source, relay.relay)
        slot = f"{relay.relay}_{known.incarnation}" if known is not None and known.incarnation else None
        found = progress.slot(source, slot) if slot else None
        return {
            "stream": relay.relay,
            "source": relay.source,
            "connection": relay.bus.connection,
            "phase": "stopped" if found is None or not found["active"] else "streaming",
            "mode": None,
            "epoch": known.incarnation if known else 0,
            "applied_lsn": "0/0",
            "safe_lsn": "0/0",
            "registered": known is not None,
            "slot": found or {"name": slot, "active": None},
            "relay": {
                **dict.fromkeys(("frames", "rows", "log_bytes", "log_limit_bytes")),
                "partitions": known.partitions if known else None,
                "lag_bytes": lags_of(source, relay.relay, known.incarnation if known else 0),
            },
        }


def _stream(plan: StreamSpec, target: Any) -> dict[str, Any]:
    """One stream as its ledger and the source tell it."""
    from bridge.postgres import left_behind as left  # noqa: PLC0415
    from bridge.postgres import progress  # noqa: PLC0415
    from bridge.postgres.connect import connect  # noqa: PLC0415
    from bridge.postgres.outbox import suppressed  # noqa: PLC0415
    from bridge.postgres.parts import partition_in  # noqa: PLC0415
    from bridge.postgres.profiles import SOURCE  # noqa: PLC0415
    from bridge.postgres.source import require_outbox  # noqa: PLC0415
    from bridge.postgres.versions import newer  # noqa: PLC0415
    from bridge.postgres.whose import another  # noqa: PLC0415

    with connect(plan.source_dsn, SOURCE, "status") as source:
        require_outbox(source, plan.outbox)
        halt = another(source, target, plan.stream)
        row = progress.checkpoint(target, plan.stream) if halt is None else None
        applied = progress.listed(target, plan.stream) if halt is None else []
        slot = f"{plan.stream}_{row['slot_incarnation']}" if row and row["slot_incarnation"] else None
        slot = None if plan.group else slot  # the relay's
        floor = row["floor"] if row else "3:3:"
        return {
            "group": plan.group,
            "stream": plan.stream,
            "source": plan.source,
            "connection": plan.connection,
            "phase": "stopped",
            "mode": row["mode"] if row else None,
            "epoch": row["epoch"] if row else 0,
            "applied_lsn": row["applied_lsn"] if row else "0/0",
            "safe_lsn": row["safe_lsn"] if row else "0/0",
            "floor": row["floor"] if row else None,
            "last_change_at": row["updated_at"] if row else None,
            "registered": progress.registered(source, plan.stream) is not None,
            "pending_events": progress.pending(
                source, plan.outbox, floor, applied, partition_in(plan.stream)
            ),
            "slot": (progress.slot(source, slot) if slot else None) or {"name": slot, "active": None},
            "suppressed": suppressed(source),
            "another": halt,
            "newer": newer(source, "source"),
            "types": progress.newest_types(source, plan.outbox),
            "left_behind": left.from_source(
                source.execute(left.SOURCE, left.source_parameters(plan.publication, plan.family))
            ),
        }


def _of_stream(stream: dict[str, Any], *, several: bool) -> Iterator[str]:
    """What stands below the line of a stream or a relay."""
    if several:
        yield f"  of source {stream['source']}"
    slot = stream["slot"]
    if slot.get("name"):
        active = {True: "active", False: "not read", None: "not there"}[slot.get("active")]
        yield f"  slot {slot['name']}: {active}, retains {size(slot.get('retained_wal_bytes'))} of WAL"
    if stream.get("waiting_for"):
        yield f"  {stream['waiting_for']}"
    if stream.get("altered"):
        yield f"  altered while it ran: {stream['altered']}"


def lines(state: dict[str, Any]) -> list[str]:
    """The status as text."""
    from bridge.observe.unmatched import lines as unmatched_lines  # noqa: PLC0415

    found = ["ready" if state["ready"] else "not ready"]
    for problem in state["problems"]:
        found.append(f"  {problem['where']}: {problem['reason']}  {problem['message']}".rstrip())
        if problem["hint"]:
            found.append(f"    fix: {problem['hint']}")
    found += _told_process(state)
    several = len({stream["source"] for stream in state["streams"]}) > 1
    from bridge.cli.scale_lines import partition_lines, relay_lines  # noqa: PLC0415  as above

    groups = dict.fromkeys(stream.get("group", "") for stream in state["streams"])
    for stream in state["streams"]:
        if stream.get("relay") is not None:
            found += [*relay_lines(stream), *_of_stream(stream, several=several)]
        elif not stream.get("group"):
            found.append(f"stream {stream['stream']}: {stream['phase']}, {_position(stream)}")
            found += _of_stream(stream, several=several)
    for group in filter(None, groups):
        found += partition_lines(group, [one for one in state["streams"] if one.get("group") == group])
    for pipeline in state["pipelines"]:
        name = pipeline["pipeline"] or "(no pipeline)"
        events = ", ".join(f"{count} {what}" for what, count in pipeline.get("events", {}).items())
        letters = f"{pipeline['dead_letters']} open dead letters" if pipeline["dead_letters"] else ""
        found.append(f"pipeline {name}: {', '.join(filter(None, (events, letters))) or 'nothing yet'}")
        found += [
            f"  source {source}: {count} open dead letters"
            for source, of in state.get("by_source", {}).items()
            if (count := of["dead_letters"].get(pipeline["pipeline"], 0))
        ]
    found += unmatched_lines(state.get("unmatched"))
    if repeats := state.get("suppressed"):
        found.append(f"skipped, because the idempotency key was used before: {_repeats(repeats)}")
    for one in state.get("left_behind", ()):
        found += [f"left behind: {one['message']}", f"  to end it: {one['fix']}"]
    sent, waiting = state.get("deliveries", {}), state.get("waiting_deliveries", {})
    for destination in sorted(sent.keys() | waiting.keys()):
        found.append(f"sink {destination}: {_messages(destination, sent, waiting) or 'nothing yet'}")
        found += [
            f"  source {source}: {words}"
            for source, of in state.get("by_source", {}).items()
            if (words := _messages(destination, of["deliveries"], of["waiting_deliveries"]))
        ]
        found += [
            f"  {left_alone(one, several=several)}"
            for one in state.get("left_alone", ())
            if one["destination"] == destination
        ]
    return found


def _messages(destination: str, sent: dict[str, Any], waiting: dict[str, Any]) -> str:
    words = [f"{count} {outcome}" for outcome, count in sent.get(destination, {}).items()]
    if at := waiting.get(destination):
        words.append(f"{at['messages']} wait, the oldest for {at['oldest_seconds']:.0f} s")
    return ", ".join(words)


def _told_process(state: dict[str, Any]) -> list[str]:
    """What the last reload refused, and who else runs this file."""
    others, refused = state.get("others"), state.get("reload_refused")
    beside = [f"others with this file stand by: pid {', '.join(map(str, others))}"] if others else []
    if shared := state.get("shared"):
        beside = _told_shared(shared)
    if not refused:
        return beside
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(refused["at"]))
    said = refused["message"].splitlines()
    return [
        *beside,
        f"the reload of {at} was refused; the configuration of before is in use:",
        *(f"  {line.strip()}" for line in said),
        f"    fix: correct the file, then: kill -HUP {refused['pid']}",
    ]


def _told_shared(shared: dict[str, Any]) -> list[str]:
    """Who runs which of the streams that are shared."""
    members = shared["members"]
    found = [f"{len(members)} bridge{'s share' if len(members) != 1 else ' shares'} this file's streams"]
    for one in members:
        where = f"{one['host']}, pid {one['pid']}" if one["pid"] else one["member"]
        mark = " (this one)" if one["member"] == shared["member"] else ""
        found.append(f"  {where}{mark}: {', '.join(one['streams']) or 'stands by'}")
    if shared["free"]:
        found.append(f"  nobody runs {', '.join(shared['free'])}")
    return found


def left_alone(one: dict[str, Any], *, several: bool) -> str:
    """Who gets nothing, until when, and why. several: sources."""
    who = f"recipient {one['recipient']}" if one["recipient"] else "the destination"
    if one["recipient"].startswith("cause "):
        who = f"what was refused with {one['recipient'].removeprefix('cause ')}"
    if several and "source" in one:  # an older bridge may answer
        who = f"source {one['source']}: {who}"
    if one["until"] is None:
        return f"{who} of pipeline {one['pipeline']} is paused: {one['code']}"
    until = time.strftime("%H:%M:%S", time.localtime(one["until"]))
    return f"{who} of pipeline {one['pipeline']} is left alone until {until}: {one['code']}"


def _repeats(counts: dict[str, int]) -> str:
    """The most frequent types. Producers choose the names, so control characters are not printed."""
    most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    told = [
        f"{count} {''.join(letter if letter.isprintable() else '?' for letter in event_type)}"
        for event_type, count in most[:_TYPES_TOLD]
    ]
    rest = sum(count for _, count in most[_TYPES_TOLD:])
    return ", ".join([*told, *([f"{rest} of {len(most) - _TYPES_TOLD} other types"] if rest else [])])


def _position(stream: dict[str, Any]) -> str:
    words = [f"applied to {stream['applied_lsn']}", f"epoch {stream['epoch']}"]
    if not stream["epoch"] and stream["phase"] != "stopped":  # it has not read its ledger
        words = ["what is applied is not known yet"]
    if stream.get("pending_events") is not None:
        words.append(f"{stream['pending_events']} events wait")
    if (age := stream.get("oldest_pending_event_age_seconds")) is not None:
        words.append(f"oldest event waits {age:.1f} s" if age else "nothing waits")
    elif stream.get("pending_events") is None:
        words.append("what waits is not known yet")
    if stream.get("events_per_second") is not None:
        words.append(f"{stream['events_per_second']:.0f} events/s")
    return ", ".join(words)


def size(count: int | None) -> str:
    left = float(count or 0)
    for unit in ("B", "KiB", "MiB"):
        if left < 1024:
            return f"{left:.0f} {unit}"
        left /= 1024
    return f"{left:.1f} GiB"
