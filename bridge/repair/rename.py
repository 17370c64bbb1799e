"""A stream goes on under another name, exactly: its connection or `source.slot` was renamed in bridge.yaml.

A stream's name stands in both databases and in its slot's name, which Postgres cannot change: the slot is copied at its
position. The target's row is locked and written first, then the source's, then the target commits, then the old slot
goes. What is interrupted is finished by running it again; until then the stream halts, because one side does not know
it, or an old slot is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from bridge.errors import BridgeError
from bridge.failpoints import hit
from bridge.postgres.progress import checkpoint, here, registered
from bridge.postgres.slots import copy_slot, drop_slot, slots_of
from bridge.postgres.whose import another
from bridge.repair.decommission import check_unused

_ROWS = ("dead_letter", "delivery")
_SINKS = {  # the rest of each table's key; an older ledger lacks some
    "sink_pause": ("pipeline", "destination"),
    "sink": ("pipeline", "destination"),
    "sink_hold": ("pipeline", "destination", "kind", "value"),
    "sample": ("at",),
}


def rename_partitions(
    source: psycopg.Connection, target: psycopg.Connection, old: str, new: str, partitions: int
) -> None:
    """The same of a stream over a log: the rows of all its partitions. They have no slot; the relay of the new name
    begins one, and each partition reads the table until it is heard."""
    pairs = [(f"{old}.{i}of{partitions}", f"{new}.{i}of{partitions}") for i in range(1, partitions + 1)]
    for name in (name for pair in ((old, new), *pairs) for name in pair):
        check_unused(source, target, name)
    if (halt := another(source, target, old)) is not None:
        raise BridgeError(f"{halt.args[0]}", reason=halt.reason, hint=halt.hint)
    _check_registered_here(source, target, pairs[0][0])
    with target.transaction():
        for before, after in pairs:
            _rename_ledger(target, before, after)
        _rename_kept(target, old, new)
        for before, after in pairs:
            known = source.execute(
                "update outbox.stream set stream = %s, session = '', relay = null, incarnation = null,"
                " confirmed = null, updated_at = now() where stream = %s",
                [after, before],
            ).rowcount
            if not known and registered(source, after) is None:
                raise BridgeError(
                    f"the source does not know stream {before}: nothing was changed in the target",
                    hint="bridge doctor names the streams that are registered there",
                )
        hit("rename.source")


def rename_stream(
    source: psycopg.Connection, target: psycopg.Connection, old: str, new: str, *, copy: bool = True
) -> str | None:
    """Rename it on both sides. The slot that it streams from now; None: there is none, and the next start catches up
    from the table. copy: False where a new slot is wanted. Raises BridgeError and changes nothing if the stream is in
    use or another source's or target's, if there is no stream `old`, or if `new` is another."""
    for name in (old, new):
        check_unused(source, target, name)
    left = slots_of(source, old)
    if reading := [name for name, _, active in left if active]:
        raise BridgeError(
            f"slot {', '.join(reading)} is being read: nothing was changed",
            hint=f"stop what reads it: select pg_terminate_backend(active_pid) from pg_replication_slots where "
            f"slot_name = '{reading[0]}';",
        )
    if _is_done(source, target, old, new):
        return _drop(source, left, new)
    if (halt := another(source, target, old)) is not None:
        raise BridgeError(f"{halt.args[0]}", reason=halt.reason, hint=halt.hint)
    _check_registered_here(source, target, old)
    with target.transaction():
        number = _rename_ledger(target, old, new)
        _rename_kept(target, old, new)
        made = bool(number) and copy and copy_slot(source, f"{old}_{number}", f"{new}_{number}")
        hit("rename.copied")
        known = source.execute(
            "update outbox.stream set stream = %(new)s, session = '', updated_at = now(),"
            " slot = case when slot is null then null else %(slot)s end where stream = %(old)s",
            {"old": old, "new": new, "slot": f"{new}_{number}"},
        ).rowcount
        if not known and registered(source, new) is None:
            raise BridgeError(
                f"the source does not know stream {old}: nothing was changed",
                hint="bridge doctor names the streams that are registered there",
            )
        hit("rename.source")
    hit("rename.target")
    _drop(source, left, new)
    return f"{new}_{number}" if made else None


def _is_done(source: psycopg.Connection, target: psycopg.Connection, old: str, new: str) -> bool:
    """Both sides know only the new name: it was interrupted before the old slot was dropped."""
    names = (new, old)
    here, there = [registered(source, one) for one in names], [checkpoint(target, one) for one in names]
    return (
        here[0] is not None
        and there[0] is not None
        and here[1] is None
        and there[1] is None
        and bool(slots_of(source, old))
    )


def _drop(source: psycopg.Connection, left: Sequence[tuple[str, int, bool]], new: str) -> str | None:
    """Drop the old name's slots; the slot that the new one is registered with, if it exists."""
    for name, _, _ in left:
        drop_slot(source, name)
    slot = (registered(source, new) or {}).get("slot")
    return slot if slot in {name for name, _, _ in slots_of(source, new)} else None


def _check_registered_here(source: psycopg.Connection, target: psycopg.Connection, old: str) -> None:
    """A copy of the target has the same ledger rows: the registration says which of the two is filled."""
    row = registered(source, old)
    if row is not None and here(target) != (row["target_system"], row["target_database"]):
        raise BridgeError(
            f"stream {old} is registered for another target, database {row['target_database']}: nothing was changed",
            hint="point the connection at that database; or, if this copy is the target now, under the old name "
            "first: bridge recover --accept-target",
        )


def _rename_ledger(target: psycopg.Connection, old: str, new: str) -> int:
    """The number of its slot."""
    if checkpoint(target, new) is not None:
        if checkpoint(target, old) is None:
            raise BridgeError(f"stream {old} is {new} already: nothing was changed", hint="start the bridge")
        raise BridgeError(
            f"stream {new} exists already in this target: nothing was changed",
            hint=f"bridge decommission {old} ends the other for good",
        )
    row = target.execute(
        "update bridge.checkpoint set stream = %s, epoch = epoch + 1, updated_at = now() where stream = %s"
        " returning slot_incarnation",
        [new, old],
    ).fetchone()
    if row is None:
        raise BridgeError(
            f"this target has no ledger of stream {old}: nothing was changed",
            hint="bridge doctor names the streams that are registered, and for which database",
        )
    target.execute("update bridge.applied set stream = %s where stream = %s", [new, old])
    return int(row[0])


def _rename_kept(target: psycopg.Connection, old: str, new: str) -> None:
    """Dead letters and messages, and what is known of the destinations."""
    for table in _ROWS:
        target.execute(f"update bridge.{table} set stream = %s where stream = %s", [new, old])
    for table, key in _SINKS.items():
        if target.execute("select to_regclass(%s)", [f"bridge.{table}"]).fetchone() == (None,):
            continue
        same = " and ".join(f"o.{column} = n.{column}" for column in key)
        target.execute(  # what is known of the same destination under the new name is not older than the stream
            f"delete from bridge.{table} n using bridge.{table} o where n.stream = %s and o.stream = %s and {same}",
            [new, old],
        )
        target.execute(f"update bridge.{table} set stream = %s where stream = %s", [new, old])
