"""Every step by its key in bridge.yaml: the modules of this package, except those that steps share."""

from __future__ import annotations

from bridge.discover import Kinds
from bridge.planning.steps.step import StepSection

STEPS: dict[str, type[StepSection]] = {
    section.word: section for section in Kinds(__name__, StepSection, but=("kinds", "step")).values()
}
