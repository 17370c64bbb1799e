"""A stream goes on under another name, exactly: its connection or `source.slot` was renamed in bridge.yaml.

A stream's name stands in both databases and in its slot's name, which Postgres cannot change: the slot is copied at its
position. The target's row is locked and written first, then the source's, then the target commits. What is interrupted
is finished by running it again; until then the stream halts, because one side does not know it.
"""

from __future__ import annotations

import psycopg

from bridge.errors import BridgeError
from bridge.postgres.slots import copy_slot, drop_slot
from bridge.repair.recover import check_stopped

_TABLES = ("applied", "dead_letter", "delivery", "sink_pause", "sink", "sink_hold")
_LATER = frozenset({"sink", "sink_hold"})  # an older ledger has none


def rename_stream(
    source: psycopg.Connection, target: psycopg.Connection, old: str, new: str, *, copy: bool = True
) -> str | None:
    """Rename it on both sides. The slot that it streams from now; None: there is none, and the next start catches up
    from the table. copy: False where a new slot is wanted. Raises BridgeError and changes nothing if the stream runs,
    if there is no stream `old`, or if `new` is another."""
    for name in (old, new):
        check_stopped(target, name)
    with target.transaction():
        number = _rename_ledger(target, old, new)
        before, after = f"{old}_{number}", f"{new}_{number}"
        made = bool(number) and copy and copy_slot(source, before, after)
        known = source.execute(
            "update outbox.stream set stream = %(new)s, session = '', updated_at = now(),"
            " slot = case when slot is null then null else %(slot)s end where stream = %(old)s",
            {"old": old, "new": new, "slot": after},
        ).rowcount
        if (
            not known
            and not source.execute("select 1 from outbox.stream where stream = %s", [new]).fetchone()
        ):
            raise BridgeError(
                f"the source does not know stream {old}: nothing was changed",
                hint="bridge doctor names the streams that are registered there",
            )
    if number:
        drop_slot(source, before)
    return after if made else None


def _rename_ledger(target: psycopg.Connection, old: str, new: str) -> int:
    """The number of its slot."""
    if target.execute("select 1 from bridge.checkpoint where stream = %s", [new]).fetchone():
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
    for table in _TABLES:
        if table in _LATER and target.execute("select to_regclass(%s)", [f"bridge.{table}"]).fetchone() == (
            None,
        ):
            continue
        target.execute(f"update bridge.{table} set stream = %s where stream = %s", [new, old])
    return int(row[0])
