"""What a comparison found, for people and for `--json`. Names events, never their values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

NAMED = 100
"""So many events of each kind are named; counts are exact."""

KINDS = ("lost", "doubled", "differing", "unexpected", "both")


@dataclass(slots=True)
class Named:
    """Events of one kind: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(what)


@dataclass(slots=True)
class Comparison:
    """One table or sink. expected = in the target, or lost, or an open or discarded dead letter."""

    name: str
    units: list[str]
    by: str
    expected: int = 0
    present: int = 0
    dead_open: int = 0
    dead_discarded: list[str] = field(default_factory=list)
    undecided: int = 0  # absent, and only a lookup could tell whether it should be there
    pruned: int = 0  # in the target, no longer in the outbox
    buckets: int = 0
    buckets_differing: int = 0
    lost: Named = field(default_factory=Named)  # in neither the target nor the dead letters
    doubled: Named = field(default_factory=Named)
    differing: Named = field(default_factory=Named)
    unexpected: Named = field(default_factory=Named)  # there, and no applied event says so
    both: Named = field(default_factory=Named)  # in the target and an open dead letter
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def differences(self) -> int:
        return sum(getattr(self, kind).count for kind in KINDS)


@dataclass(slots=True)
class Report:
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def differences(self) -> int:
        return sum(comparison.differences for comparison in self.comparisons)

    def as_json(self) -> dict[str, Any]:
        return {"differences": self.differences, **asdict(self)}

    def as_text(self) -> str:
        lines: list[str] = []
        for one in self.comparisons:
            counts = "  ".join(f"{kind} {getattr(one, kind).count}" for kind in KINDS)
            lines.append(f"{one.name}  ({', '.join(one.units)}; {one.seconds:.1f} s)")
            lines.append(
                f"  expected {one.expected}  present {one.present}  dead letters {one.dead_open} open, "
                f"{len(one.dead_discarded)} discarded"
            )
            lines.append(f"  {counts}")
            for kind in KINDS:
                named: Named = getattr(one, kind)
                lines += [f"    {kind}: {what}" for what in named.first]
                if named.count > len(named.first):
                    lines.append(f"    {kind}: and {named.count - len(named.first)} more")
            lines += [f"    discarded: {what}" for what in one.dead_discarded[:NAMED]]
            if one.pruned:
                lines.append(f"  {one.pruned} rows whose events are no longer in the outbox")
            if one.undecided:
                lines.append(
                    f"  {one.undecided} events undecided: an enrichment says whether they belong here"
                )
            if one.left_out:
                lines.append(f"  not compared, from an enrichment: {', '.join(one.left_out)}")
            lines += [f"  note: {note}" for note in one.notes]
        lines += [f"note: {note}" for note in self.notes]
        verdict = "no difference" if not self.differences else f"{self.differences} differences"
        return "\n".join([*lines, verdict])
