"""From the configuration to one plan per stream: which target database gets which units.

A sink's deliveries are rows of a ledger: the ledger of the first table destination in its pipeline, otherwise of the
first postgres connection, otherwise of the source itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bridge.config.connection import PostgresConnection, table_names
from bridge.config.model import Config
from bridge.config.nats import NatsConnection
from bridge.config.several import each_source, source_sections
from bridge.config.specs import contract_specs, pipeline_specs
from bridge.dispatch.noise import Quiet
from bridge.dispatch.schedule import DispatchSpec, LaneSpec
from bridge.errors import ConfigError
from bridge.planning.pipeline import entity_units
from bridge.planning.planner import Planner
from bridge.planning.rows import Literal, classify
from bridge.planning.spec import ContractSpec, PipelineSpec, SinkSpec, SubjectSpec, TableSpec
from bridge.planning.taken import TypesTaken
from bridge.postgres.outbox import Outbox
from bridge.protocol.events import Event
from bridge.section import SOURCE
from bridge.sinks.model import SinkConnection
from bridge.stream.spec import LogSpec, RelaySpec, StreamSpec

if TYPE_CHECKING:
    from bridge.bus.settings import BusSettings

_NOTHING = "name one in a pipeline, or begin with one of ours: bridge recipe add usage-limits"


def stream_plans(config: Config) -> list[StreamSpec]:
    """One plan a source and target database, in the order of the configuration: of all its partitions, with a log."""
    plans = [plan for one in each_source(config) for plan in _of_source(one)]
    scale = config.scale
    if scale is not None and scale.log is not None:
        plans = [replace(plan, partitions=scale.partitions) for plan in plans]
    if not plans:
        raise ConfigError("no pipeline has a destination", hint=_NOTHING)
    if len({plan.stream for plan in plans}) < len(plans):
        raise ConfigError(
            f"two streams are called {_twice(plan.stream for plan in plans)}: a stream is called "
            "<source.slot>_<connection>",
            hint="give each source a slot of its own",
        )
    several = len({plan.source for plan in plans}) > 1
    family = frozenset(name for plan in plans for name in (plan.stream, *plan.rows))
    if scale is not None and scale.log is not None:
        family |= {_relay_name(one, scale.log) for one in each_source(config)}
    return [replace(plan, family=family, several=several) for plan in plans]


HELD_BYTES = 64 << 20
"""Of frames that a worker has read and not applied, where it runs every partition of the file."""
_LEAST_HELD = 1 << 20  # of a partition: a few frames


def partition_plans(config: Config) -> list[StreamSpec]:
    """What a process runs: stream_plans, or with a log one for each partition of each."""
    scale = config.scale
    if scale is None or scale.log is None:
        return stream_plans(config)
    of, bus = scale.partitions, _bus(config, scale.log)
    relays = {one.source_name: _relay_name(one, scale.log) for one in each_source(config)}
    plans = stream_plans(config)
    held = max(_LEAST_HELD, HELD_BYTES // sum(len(plan.rows) for plan in plans))
    return [
        replace(
            plan,
            stream=name,
            group=plan.stream,
            partitions=0,
            max_bytes=max(_LEAST_HELD, plan.max_bytes // of),  # one process may have all of them
            log=LogSpec(relays[plan.source], bus, number, of, held),
            outbox=_with_xid(plan.outbox),
        )
        for plan in plans
        for number, name in enumerate(plan.rows, 1)
    ]


def relay_plans(config: Config) -> list[RelaySpec]:
    """One a source, where the configuration has a log and reads slots."""
    scale = config.scale
    if scale is None or scale.log is None:
        return []
    several = len(each_source(config)) > 1
    return [
        RelaySpec(
            relay=_relay_name(one, scale.log),
            source=one.source_name,
            source_dsn=one.source.dsn,
            publication=one.source.slot,
            outbox=_with_xid(outbox_of(one)),
            bus=_bus(config, scale.log),
            partitions=scale.partitions,
            max_log_bytes=scale.log_size,
            max_retained_wal=one.source.max_retained_wal,
            failover=one.source.failover,
            several=several,
        )
        for one in each_source(config)
        if one.source.capture != "poll"
    ]


def _relay_name(config: Config, log: str) -> str:
    return f"{config.source.slot}_{log}"


def _bus(config: Config, name: str) -> BusSettings:
    from bridge.bus.settings import bus_settings  # noqa: PLC0415  only where there is a log

    connection = config.connections.get(name)
    if isinstance(connection, NatsConnection):
        return bus_settings(name, connection)
    what = "there is no such connection" if connection is None else "it is not one of type nats"
    raise ConfigError(
        f"scale.log: {name}: {what}",
        hint=f"connections: {{ {name}: {{ type: nats, servers: [nats://localhost:4222] }} }}",
    )


def _with_xid(outbox: Outbox) -> Outbox:
    if not outbox.has_xid:
        raise ConfigError(
            "scale.log needs an outbox with a column xid: partitions find their place in the table by it",
            hint="bridge doctor prints the column to add; or leave scale.log out",
        )
    return outbox


def _twice(names: Iterable[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)


def _of_source(config: Config) -> list[StreamSpec]:
    targets = {
        name: connection.dsn
        for name, connection in config.connections.items()
        if isinstance(connection, PostgresConnection)
    }
    pipelines = pipeline_specs(config)
    homes = {unit: home for pipeline in pipelines for unit, home in _homes(pipeline, list(targets)).items()}
    kept = _entity_homes(pipelines, homes, list(targets))
    used = dict.fromkeys([*homes.values(), *kept.values()])
    buses = _buses(config, pipelines)
    source = config.source
    start = str(source.start)
    check_compiles(pipelines, contract_specs(config))
    return [
        StreamSpec(
            stream=f"{source.slot}_{name}",
            connection=name,
            source=config.source_name,
            retention=source.retention,
            publication=source.slot,
            source_dsn=source.dsn,
            target_dsn=source.dsn if name == SOURCE else targets[name],
            dsns={SOURCE: source.dsn, **targets},
            pipelines=pipelines,
            contracts=contract_specs(config),
            sinks=_units(pipelines, list(targets), name, SinkSpec),
            subjects=_units(pipelines, list(targets), name, SubjectSpec),
            entities=frozenset(unit for unit, home in kept.items() if home == name),
            outbox=outbox_of(config),
            capture=source.capture,
            since={"earliest": None, "now": "infinity"}.get(start, start),
            unmatched=source.unmatched,
            ignored=source.ignore_types,
            counts_unmatched=name == next(iter(used)),
            max_events=source.batch.max_events,
            max_bytes=source.batch.max_bytes,
            max_payload=source.max_payload,
            max_retained_wal=source.max_retained_wal,
            failover=source.failover,
            poll_interval=source.poll_interval.total_seconds(),
            strict=config.strict,
            buses=buses,
        )
        for name in used
    ]


def _units(
    pipelines: Sequence[PipelineSpec], targets: list[str], home: str, kind: type[SinkSpec | SubjectSpec]
) -> frozenset[tuple[str, str]]:
    """Those of a kind whose ledger is this connection's."""
    return frozenset(
        unit
        for pipeline in pipelines
        for unit, where in _homes(pipeline, targets).items()
        if where == home and isinstance(pipeline.destinations[unit[1]], kind)
    )


def _buses(config: Config, pipelines: Sequence[PipelineSpec]) -> dict[str, NatsConnection]:
    """The nats connections that these pipelines publish to. Raises ConfigError where their library is missing."""
    named = dict.fromkeys(
        spec.connection
        for pipeline in pipelines
        for spec in pipeline.destinations.values()
        if isinstance(spec, SubjectSpec)
    )
    if named and find_spec("nats") is None:
        raise ConfigError(
            f"connection {next(iter(named))}: type nats needs the nats-py library",
            hint="pip install 'outbox-bridge[scale]'",
        )
    found = {name: config.connections[name] for name in named}
    return {name: one for name, one in found.items() if isinstance(one, NatsConnection)}


def types_taken(config: Config) -> TypesTaken:
    """Which event types the configuration's pipelines take."""
    ignored = [pattern for section in source_sections(config).values() for pattern in section.ignore_types]
    return TypesTaken.of(pipeline_specs(config), config.events, tuple(ignored))


def check_compiles(pipelines: Sequence[PipelineSpec], contracts: Mapping[str, ContractSpec]) -> None:
    """Compile every expression, template and contract before anything is started or replaced. Raises ConfigError."""
    for pipeline in pipelines:
        tables = [spec for spec in pipeline.destinations.values() if isinstance(spec, TableSpec)]
        sinks = [(pipeline.name, name) for name in pipeline.destinations]
        try:
            Planner([pipeline], contracts, {}, sinks=sinks)
            for table in tables:
                for value in (*(table.columns or {}).values(), table.version):
                    classify(value)
        except ConfigError as error:
            raise ConfigError(
                f"pipeline {pipeline.name}: {error.args[0]}", reason=error.reason, hint=error.hint
            ) from None


def dispatch_plans(config: Config) -> list[DispatchSpec]:
    """One plan per ledger that has deliveries, in the order of the configuration."""
    plans = []
    for stream in stream_plans(config):
        lanes = [
            _lane(pipeline.name, spec, config, stream.source)
            for pipeline in stream.pipelines
            for name, spec in pipeline.destinations.items()
            if isinstance(spec, SinkSpec) and (pipeline.name, name) in stream.sinks
        ]
        if lanes:
            plans.append(
                DispatchSpec(
                    stream.stream,
                    stream.source_dsn,
                    stream.target_dsn,
                    lanes,
                    source=stream.source,
                    several=stream.several,
                )
            )
    return plans


def _lane(pipeline: str, spec: SinkSpec, config: Config, source: str) -> LaneSpec:
    sink = config.connections[spec.connection]
    if not isinstance(sink, SinkConnection):
        raise ConfigError(f"{spec.connection} is not a sink")
    named = [spec.fields.get(key) for key in (sink.message.address, "fallback")]
    return LaneSpec(
        pipeline,
        spec.name,
        spec.connection,
        sink,
        max_age=spec.max_age_seconds,
        timeout=spec.timeout_seconds,
        by_recipient=any(one is not None and not isinstance(classify(one), Literal) for one in named),
        digest=spec.digest,
        throttle=spec.throttle,
        quiet=None if spec.quiet is None else Quiet(*spec.quiet),
        source=source,
    )


def _homes(pipeline: PipelineSpec, targets: list[str]) -> dict[tuple[str, str], str]:
    """(pipeline, destination) -> the connection whose ledger the unit belongs to."""
    tables = [spec.connection for spec in pipeline.destinations.values() if isinstance(spec, TableSpec)]
    home = next(iter([*tables, *targets, SOURCE]))
    return {
        (pipeline.name, name): spec.connection if isinstance(spec, TableSpec) else home
        for name, spec in pipeline.destinations.items()
    }


def _entity_homes(
    pipelines: Sequence[PipelineSpec], homes: Mapping[tuple[str, str], str], targets: list[str]
) -> dict[tuple[str, str], str]:
    """Unit of upsert.entity -> the connection whose ledger has its dead letters: the pipeline's own if it has
    destinations, otherwise one that has a ledger anyway."""
    first = next(iter([*homes.values(), *targets, SOURCE]))
    return {
        unit: homes.get((pipeline.name, next(iter(pipeline.destinations), "")), first)
        for pipeline in pipelines
        for unit in entity_units(pipeline)
    }


def outbox_of(config: Config) -> Outbox:
    """The outbox table of a configuration with one source. A customer's own outbox has the columns that are named."""
    schema, table = table_names(config.source.table)
    columns = config.source.columns
    if columns is None:
        return Outbox(schema, table)
    named = {name: getattr(columns, name) for name in Event._fields}
    return Outbox(schema, table, {name: column for name, column in named.items() if column})
