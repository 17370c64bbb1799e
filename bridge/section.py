"""The base of everything that is written in bridge.yaml: frozen models with known keys and described fields.

A field's description is the docstring under it. pydantic's own way (`use_attribute_docstrings`) reads and parses
every module's source when the models are made, a third of the time that a command takes to start; here that
happens when a JSON Schema is asked for. `defer_build`: only the models that a file has are built, and a model
inside another once; all of them were a fifth of a start.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from functools import cache
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

# Whatever else is installed has no business in how bridge.yaml is read, and to look for plugins, pydantic opens the
# metadata of every distribution (https://docs.pydantic.dev/latest/concepts/plugins/).
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """A pydantic `json_schema_extra` that adds the descriptions to the schema's properties."""
    words = descriptions(model)
    for name, field in model.model_fields.items():
        found = schema.get("properties", {}).get(field.alias or name)
        if found is not None and name in words and field.description is None:
            found["description"] = words[name]


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Field name to its docstring. Inherited unless the field is declared again."""
    words: dict[str, str] = {}
    for base in reversed(model.__mro__):
        for name in inspect.get_annotations(base):
            words.pop(name, None)
        words |= _fields(base.__module__).get(base.__qualname__, {})
    return words


@cache
def _fields(module: str) -> dict[str, dict[str, str]]:
    """Class name to the docstrings of its annotated fields. Empty for modules outside this package."""
    if not module.startswith(f"{__package__}."):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


class Section(BaseModel):
    """A mapping with known keys only."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        json_schema_extra=describe,
        defer_build=True,
    )


class OpenSection(BaseModel):
    """A mapping with additional keys: a vendor's keys, or names of destinations."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        hide_input_in_errors=True,
        json_schema_extra=describe,
        defer_build=True,
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
        raise ValueError("is reserved in expressions: choose another name")
    return name


SlotWord = Annotated[str, AfterValidator(_slot_word)]
"""A part of a replication slot's name (PostgreSQL manual, 26.2.6.1)."""
PlainName = Annotated[str, AfterValidator(_plain_name)]
"""The name of a pipeline, branch, destination or webhook, used in metric labels, URLs and unit ids."""
EventType = Annotated[str, AfterValidator(_event_type)]
"""The exact type of an event."""
RootName = Annotated[str, AfterValidator(_root_name)]
"""A name that expressions can use as $name."""


def _expression(value: Any) -> Any:
    """YAML reads `when: true` and `filter: 1` as values; expressions need their text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str, Field(min_length=1)]
ExpressionText = Annotated[
    str, Field(min_length=1), BeforeValidator(_expression, json_schema_input_type=str | int | float | bool)
]
"""An expression over $event, $meta, enrichments and names defined by `set`."""


def as_list(value: Any) -> Any:
    """For a list of one, which may be written without its brackets."""
    return [value] if isinstance(value, str) else value


SOURCE = "source"
"""What the source is called where the file has one. Of several, the one of this name is called as it was alone: its
slots, and the ids of its messages."""

ONE_OR_MORE = BeforeValidator(as_list, json_schema_input_type=Text | list[Text])
"""Texts; one of them may be written without brackets."""
