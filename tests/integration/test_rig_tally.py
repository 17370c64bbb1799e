"""The checker of many streams sees what it is there for: each kind of damage, made by hand."""

from __future__ import annotations

from tests.support.producers import Producer
from tests.support.servers import Database
from tests.torture.tally import Tally, tally

_ARRIVE = """
insert into events.usage_limits (event_id, customer_id, payload)
values (%s, 'cus_1', %s::jsonb)"""
_STREAM = "outbox_bridge_warehouse"


def test_it_sees_every_kind_of_damage(source: Database, target: Database) -> None:
    with Producer(source.dsn) as producer:
        events = producer.transaction(3, key="one")
    target.execute(
        "insert into bridge.checkpoint (stream, epoch, session, mode, floor, source_database, system_identifier)"
        " select %s, 1, gen_random_uuid(), 'stream', '1:1:', %s, %s",
        [_STREAM, source.name, source.value("select system_identifier::text from pg_control_system()")],
    )
    payloads = dict(source.execute("select event_id, payload::text from rig.truth"))

    def found() -> Tally:
        return tally({"s": source.dsn}, {"t": target.dsn}, {_STREAM: ("s", "t")})

    for event in events:
        target.execute(_ARRIVE, [event, payloads[event]])
    assert found().holds, found()
    assert (found().expected, found().applied) == (3, 3)
    target.execute("update events.usage_limits set plan = 'free' where event_id = %s", [events[0]])
    assert (found().doubled, found().wrong, found().out_of_order) == (1, 1, 1)
    target.execute("delete from rig.effects")
    assert (found().lost, found().applied) == (3, 0)
    target.execute(_ARRIVE, ["00000000-0000-0000-0000-000000000001", "{}"])
    target.execute(
        "insert into rig.effects (table_name, operation, row) values ('a', 'INSERT', %s)",
        ['{"event_id": null}'],
    )
    assert found().unexpected == 2
    target.execute("update bridge.checkpoint set source_database = 'another'")
    assert found().strangers
    assert not found().holds
