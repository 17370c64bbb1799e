"""The statements that write a replayed batch to its destination, whichever way it can be filled again.

Apart from replay.py, which runs them: here a plan becomes SQL, and nothing is connected to.
"""

from __future__ import annotations

from psycopg import sql

from bridge.apply.replay_order import Order, Way, identity_of
from bridge.core.fold import arrange
from bridge.core.plan import Planned, Write, unit_id
from bridge.postgres.arrays import text_array
from bridge.postgres.target import Statement
from bridge.postgres.write import compile_write, delivery_statement, write_statement

# Of the dead letters of these units: their effect is there now.
_RESOLVE = b"""
    update bridge.dead_letter set state = 'resolved', retry_at = null, updated_at = now()
    where id = any($1::text[]::uuid[]) and state = 'open'"""


def effects(stream: str, order: Order, way: Way, planned: Planned) -> list[Statement]:
    """The writes, the deliveries under this replay's ids, and the dead letters that are resolved by it."""
    statements = [_write(write, way) for write in arrange(planned.writes)]
    if planned.deliveries:
        statements.append(delivery_statement(stream, planned.deliveries, again=order.name))
    events = [event for write in planned.writes for event in write.events]
    events += [delivery.event for delivery in planned.deliveries]
    if events:
        ids = [str(unit_id(event.id.decode(errors="backslashreplace"), *order.unit)) for event in events]
        statements.append(Statement(_RESOLVE, [text_array([name.encode() for name in ids])], binary=True))
    return statements


def _write(write: Write, way: Way) -> Statement:
    if way != "absent":
        return write_statement(write)
    identity = identity_of(write.spec, write.shape) or ""
    place = sql.Identifier(f"c{write.names.index(identity)}")
    text = compile_write(write.spec, write.shape, write.names, ["text"] * len(write.names))
    absent = sql.SQL(" where not exists (select from {} as there where there.{} = r.{}::{})").format(
        sql.Identifier(write.shape.schema, write.shape.table),
        sql.Identifier(identity),
        place,
        sql.SQL(write.shape.columns[identity].type_sql),
    )
    return Statement(
        text + absent.as_string().encode(), [text_array(column) for column in write.columns], binary=True
    )


def part_of(planned: Planned, chosen: set[bytes]) -> Planned:
    """The part of the plan that these events make."""
    writes = [
        write.pick([row for row, event in enumerate(write.events) if event.id in chosen])
        for write in planned.writes
    ]
    deliveries = [delivery for delivery in planned.deliveries if delivery.event.id in chosen]
    return Planned([write for write in writes if write.events], deliveries)
