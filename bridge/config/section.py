"""What every part of bridge.yaml has in common: frozen, its keys known, no value shown in an error."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from bridge.docstrings import describe


class Section(BaseModel):
    """A mapping of the file whose keys are all known."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, json_schema_extra=describe
    )


class OpenSection(BaseModel):
    """A mapping whose further keys belong to somebody else: a vendor, or the names of destinations."""

    model_config = ConfigDict(
        extra="allow", frozen=True, hide_input_in_errors=True, json_schema_extra=describe
    )


def _slot_word(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]{1,63}", name):
        raise ValueError("must be lower-case letters, digits and _ only: it becomes part of a slot's name")
    return name


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise ValueError("must be letters, digits, _ . and - only, at most 63, a letter or digit first")
    return name


def _event_type(name: str) -> str:
    if not re.fullmatch(r"[^\s*?\[\]/\x00-\x1f]{1,200}", name):
        raise ValueError("must be an event type such as usage.limit_reached: no blanks, no / and no * ? [ ]")
    return name


_RESERVED = {
    "event",
    "meta",
    "true",
    "false",
    "none",
    "null",
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "else",
    "loop",
}


def _root_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", name):
        raise ValueError("must be letters, digits and _ only, no digit first: expressions call it by $name")
    if name.lower() in _RESERVED:
        raise ValueError("is a name that expressions have taken: choose another")
    return name


SlotWord = Annotated[str, AfterValidator(_slot_word)]
"""A part of a replication slot's name (PostgreSQL manual, 26.2.6.1)."""
PlainName = Annotated[str, AfterValidator(_plain_name)]
"""The name of a pipeline, branch, destination or webhook: it stands in metric labels, URLs and unit ids."""
EventType = Annotated[str, AfterValidator(_event_type)]
"""The exact type of an event."""
RootName = Annotated[str, AfterValidator(_root_name)]
"""A name that expressions can use as $name."""
