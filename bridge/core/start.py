"""What a session looks at before it writes anything: its settings, the facts, whether another bridge works.

Apart from protocol.py because nothing here changes anything: a start that ends here leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bridge.core.ledger import Ledger, Registration, SourceFacts, TargetFacts
from bridge.core.requests import Asking, ReadSource, ReadTarget, ask
from bridge.errors import Halt, StandBy


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says about a stream. slot: the prefix, slots are `<prefix>_<n>`."""

    stream: str
    slot: str
    session: str
    capture: Literal["slot", "poll", "auto"] = "slot"
    since: str | None = None  # first start only: earliest (None), a timestamp, or "infinity" for now
    has_xid: bool = True  # False: an outbox of the customer's own without xid: slot-only, no catch-up

    def slot_name(self, incarnation: int) -> str:
        return f"{self.slot}_{incarnation}"


def facts(settings: Settings, ledger: Ledger) -> ReadSource:
    name = settings.slot_name(ledger.incarnation) if ledger.incarnation else None
    return ReadSource(name, ledger.witness_id, ledger.witness_xid)


def stand_by(settings: Settings, target: TargetFacts, registration: Registration | None) -> Asking[None]:
    """Do not fence a bridge that works: wait for it to go. Only politeness; the fence gives safety."""
    if target.busy:
        raise StandBy(f"another bridge is applying stream {settings.stream} to this target")
    incarnation = target.ledger.incarnation if target.ledger else 0
    name = settings.slot_name(incarnation or 1)
    source = yield from ask(ReadSource(name, None, None))
    if source.slot is None:
        return
    if registration is None and target.ledger is None:
        if (yield from ask(ReadTarget())).ledger is not None:
            raise StandBy(f"another bridge has just begun stream {settings.stream}")
        raise Halt(
            f"slot {name} exists, but neither the source nor the target knows stream {settings.stream}: "
            "it belongs to something else",
            reason="slot_in_use",
            hint=f"choose another source.slot in bridge.yaml, or: select pg_drop_replication_slot('{name}')",
        )
    if source.slot.active:
        raise StandBy(f"another bridge reads slot {name}")


def slot_wanted(settings: Settings, source: SourceFacts) -> bool:
    if settings.capture == "poll":
        return False
    if source.slot_refused is None:
        return True
    if settings.capture == "auto":
        return False
    raise Halt(
        f"no replication slot can be had on the source: {source.slot_refused}",
        reason="slot_refused",
        hint="mend that, or set source.capture to poll",
    )
