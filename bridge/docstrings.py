"""The docstring under a field of a model, as the field's description in the model's JSON Schema.

Apart from pydantic's own way (`use_attribute_docstrings`), which reads and parses every module's source when the
models are made: a third of the time that a command takes to start. Here that happens when a schema is asked for.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel


def describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """A `json_schema_extra` of pydantic's: adds the descriptions to the schema's properties."""
    words = descriptions(model)
    for name, field in model.model_fields.items():
        found = schema.get("properties", {}).get(field.alias or name)
        if found is not None and name in words and field.description is None:
            found["description"] = words[name]


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """By field, the docstring under it; inherited, unless the field is declared again."""
    words: dict[str, str] = {}
    for base in reversed(model.__mro__):
        for name in inspect.get_annotations(base):
            words.pop(name, None)
        words |= _fields(base.__module__).get(base.__qualname__, {})
    return words


@cache
def _fields(module: str) -> dict[str, dict[str, str]]:
    """By class, the docstring of each of its annotated fields. None of modules that are not ours."""
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
