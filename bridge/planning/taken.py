"""Which event types the pipelines take, which types are ignored on purpose, and which type a misspelt one may mean.

One reading of `pipelines.*.event` and `source.ignore_types` for the planner's count and for everybody who reports it:
status, tail, explain, doctor, `bridge emit` and the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bridge.planning.spec import PipelineSpec
from bridge.problem import nearest

LONGEST_NAME = 120
"""Characters of a type that are kept and shown. Producers choose types, and text has no limit in Postgres."""

UNMATCHED_FIX = (
    "correct the producer, or name the type in a pipeline's event (or in source.ignore_types, if it is not for the "
    "bridge); then, for the events that were passed over: bridge replay --destination PIPELINE/DESTINATION --since TIME"
)


@dataclass(frozen=True, slots=True)
class TypesTaken:
    """patterns: of all pipelines, in order. names: of the contracts. ignored: `source.ignore_types`."""

    patterns: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, pipelines: Iterable[PipelineSpec], names: Collection[str], ignored: Collection[str]
    ) -> TypesTaken:
        patterns = dict.fromkeys(pattern for one in pipelines for pattern in one.events)
        return cls(tuple(patterns), tuple(names), tuple(ignored))

    def takes(self, event_type: str) -> bool:
        """Does a pipeline take events of this type?"""
        return any(fnmatchcase(event_type, pattern) for pattern in self.patterns)

    def ignores(self, event_type: str) -> bool:
        """Is the type ignored on purpose? A pipeline that takes it comes first."""
        return any(fnmatchcase(event_type, pattern) for pattern in self.ignored)

    def unmatched(self, event_type: str) -> bool:
        """Is an event of this type passed over, and nobody has said that it may be?"""
        return not self.takes(event_type) and not self.ignores(event_type)

    def near(self, event_type: str) -> str:
        """The nearest type (or glob) that a pipeline takes; empty: none is similar."""
        found = nearest(event_type[:LONGEST_NAME], self._candidates(event_type))
        return found.removeprefix("did you mean ").removesuffix("?")

    def _candidates(self, event_type: str) -> Iterator[str]:
        yield from (name for name in self.names if self.takes(name))
        for pattern in self.patterns:
            start = re.split(r"[*?[]", pattern, maxsplit=1)[0]
            if start == pattern:
                yield pattern
            elif start.endswith(
                "."
            ):  # usage.*: the type with these first words in place of its own, if they are near
                words = event_type.split(".")
                count = start.count(".")
                if words[count:] and nearest(".".join(words[:count]), [start[:-1]]):
                    yield start + ".".join(words[count:])

    def said(self, event_type: str) -> str:
        """What becomes of an event that no pipeline takes, in one line."""
        if self.ignores(event_type):
            return "no pipeline takes it; ignored (source.ignore_types)"
        return "; ".join(filter(None, ("no pipeline takes it", did_you_mean(self.near(event_type)))))

    def passed_over(self, counts: Mapping[str, int]) -> list[tuple[str, int, str]]:
        """Of these types, those that nothing takes: (type, events, near), the most frequent first."""
        found = [(name, count) for name, count in counts.items() if self.unmatched(name)]
        return [
            (name, count, self.near(name)) for name, count in sorted(found, key=lambda one: (-one[1], one))
        ]


def did_you_mean(near: str) -> str:
    """The question, if there is a near type."""
    return f"did you mean {near}?" if near else ""


def name_of(event_type: bytes) -> str:
    """The type as it is kept for people: not longer than LONGEST_NAME."""
    text = event_type[: 4 * LONGEST_NAME + 4].decode(errors="replace")
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"


def shown(event_type: str) -> str:
    """A type in a line of text: quoted and escaped where spaces or control characters would deceive the eye."""
    plain = event_type.isprintable() and event_type and not any(letter.isspace() for letter in event_type)
    return event_type if plain else json.dumps(event_type)
