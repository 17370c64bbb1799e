"""What every step is: a section of bridge.yaml, the plain value it becomes, and the generator that runs.

A step is one module in this package, named as it likes, with a class of each kind:

- a StepSection, which is what is written. Its `word` is the step's key in the file. It says what lint, the recipes'
  page and the check of names want to know, and makes the
- StepSpec: frozen, what the planner, `explain`, `prove` and `doctor` ask. It compiles to a
- Step: rows in, rows out, failures told. It may yield a Lookup and is sent the answer; the waiting is elsewhere.

steps() finds the module; nothing else has to name it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from bridge.discover import Kinds
from bridge.planning.entity import Entity, Kept
from bridge.planning.lookup import Answer, Lookup, LookupSpec
from bridge.planning.rows import Failures, Rows
from bridge.problem import KeyPath, Remark

# -- what runs ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Answers:
    """What is known in this batch so far. rows: the answers of lookups; None: there is no such row. kept: the
    entities that its events write."""

    rows: dict[LookupSpec, dict[Any, Any]] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)


@dataclass(slots=True)
class Passed:
    """A step's result: the rows that continue, the rows that failed, and how many it filtered out."""

    rows: Rows
    failures: Failures = field(default_factory=list)
    filtered: int = 0


class Step(ABC):
    """A step, compiled. `reads`: the dotted names whose values it looks at."""

    reads: frozenset[str]

    @abstractmethod
    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        """One batch. Whatever fails costs only its own row."""

    def lookup(self) -> Lookup | None:
        """What it will ask, without keys."""
        return None

    def result(self, passed: Passed, answers: Answers) -> Any:
        """For the trace of one event: what came of it. passed: what run() has just left of that event."""
        return None


# -- the plain value ----------------------------------------------------------------------------------

Effect = Literal["adds", "drops", "rewrites"]
"""What a step does to events: adds names at most, leaves some out, or changes `$event` for those behind it."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step is compiled for. reads: every dotted name that the pipeline reads. keeps: what it says of entities is
    wanted; False where other units are planned."""

    pipeline: str = ""
    reads: frozenset[str] = frozenset()
    keeps: bool = False


class StepSpec(ABC):
    """A step as a frozen value."""

    __slots__ = ()

    effect: ClassVar[Effect]

    @abstractmethod
    def compile(self, context: StepContext) -> Step:
        """Raises ConfigError for an expression or template that cannot be read."""

    @abstractmethod
    def words(self) -> str:
        """For the trace of an event: the step in a line."""

    @property
    def makes(self) -> Mapping[str, frozenset[str]]:
        """The names it adds, each with the dotted names that it is made from."""
        return {}

    @property
    def lookup(self) -> LookupSpec | None:
        """What it looks up."""
        return None

    @property
    def keeps(self) -> str:
        """The entity that it writes; empty: none."""
        return ""

    def offline(self) -> StepSpec:
        """The same step for whoever can look nothing up and goes on without."""
        return self


# -- what is written ----------------------------------------------------------------------------------


class Scope(Protocol):
    """What lint knows at one place of a pipeline. Methods tell what is wrong with what stands at `path`."""

    @property
    def fields(self) -> Collection[str] | None:
        """The fields that contracts promise; None: anything may come."""

    def expression(self, path: KeyPath, expression: str, *, makes: str = "") -> Iterator[Remark]:
        """makes: the name that its value gets."""

    def value(self, path: KeyPath, value: Any) -> Iterator[Remark]: ...

    def may_lack(self, name: str) -> None:
        """From here on `$name` is a row that may be missing; then each of its fields is null."""


class Names(Protocol):
    """What a step's names can lead to, for a file of which any other part may be wrong."""

    @property
    def entities(self) -> Collection[str]: ...

    @property
    def kept(self) -> Collection[str]:
        """Those of the entities that events keep."""

    @property
    def looked_up(self) -> list[str]:
        """Entities that events keep and that the steps above look up."""

    @property
    def ordered(self) -> bool:
        """Has the outbox a number that orders its events?"""

    def database(self, path: KeyPath, lookup: Any) -> Iterator[Remark]:
        """What is wrong with the `from` of a lookup."""


class Made(NamedTuple):
    """A name that a step makes, where it is written below the step, and what helps when it is taken."""

    name: str
    at: KeyPath
    key: bool = False  # it is written as a key
    hint: str = ""


class StepSection:
    """What is written of a step; beside it, a pydantic model is the other base. The first line of its docstring
    describes the step in the JSON Schema of bridge.yaml."""

    word: ClassVar[str]

    def spec(self, entities: Mapping[str, Entity]) -> StepSpec:
        """The plain value. entities: those of the file."""
        raise NotImplementedError

    @property
    def makes(self) -> Collection[str]:
        """The names that expressions below can use."""
        return ()

    @property
    def looks_up(self) -> str | None:
        """One of `entities` that it looks up."""
        return None

    @property
    def keeps(self) -> str | None:
        """One of `entities` that it writes."""
        return None

    @property
    def says(self) -> Collection[str] | None:
        """The fields that it writes of `keeps`; None: all of the event's."""
        return ()

    @property
    def asks(self) -> str | None:
        """The connection that it asks; `source` for the source."""
        return None

    def lint(self, path: KeyPath, scope: Scope) -> Iterator[Remark]:
        """What is wrong with its expressions and values. path: of the step's key."""
        yield from ()

    def told(self) -> Iterator[str]:
        """For the recipes' page: what it does, a line of Markdown each."""
        yield from ()

    # As written, before anything has judged it: nothing here can rely on a type.

    @classmethod
    def check_names(cls, path: KeyPath, written: Any, names: Names) -> Iterator[Remark]:
        """Names in it that lead nowhere."""
        yield from ()

    @classmethod
    def made(cls, written: Any) -> Iterator[Made]:
        """The names that it makes."""
        yield from ()

    @classmethod
    def finds(cls, written: Any) -> str | None:
        """What a test of the configuration calls the row that it finds."""
        return None

    @classmethod
    def kept(cls, written: Any) -> str | None:
        """The entity that it writes."""
        return None


@cache
def steps() -> dict[str, type[StepSection]]:
    """Every step by its word: the modules of this package."""
    return {section.word: section for section in Kinds(__name__, StepSection, but=("step",)).values()}
