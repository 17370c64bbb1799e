"""Every step there is, by its word in bridge.yaml: each module here but those of what steps share."""

from __future__ import annotations

from bridge.discover import made_in, modules_of
from bridge.planning.steps.step import StepSection

_HERE = __name__.rpartition(".")[0]

STEPS: dict[str, type[StepSection]] = {
    section.word: section
    for section in (made_in(_HERE, name, StepSection) for name in modules_of(_HERE, but=("kinds", "step")))
}
