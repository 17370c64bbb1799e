"""Event contracts: the fields an event type promises.

A contract has two forms. Flat: every key is a field. Long: exactly when `unknown` is `payload` or `reject` (neither
is a type of a field), with the fields under `fields`. A flat event whose only key is `fields` with a mapping below
could be meant as either, and is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from bridge.planning.spec import FieldType
from bridge.problem import nearest
from bridge.quantity import Boolean
from bridge.section import Section

FIELD_TYPES: tuple[str, ...] = get_args(FieldType)
_UNKNOWN = ("payload", "reject")
EnumValue = str | int | float | bool
_FITS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "any": (str, int, float, bool),
}


def _scalars(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not all(isinstance(value, str | int | float | bool) for value in values):
        raise ValueError("must be a list of texts, numbers or booleans")
    return values


class EventField(Section):
    """One field. In the file: a type (`string`, `number?`), or a mapping of these keys."""

    type: FieldType
    """string, number, integer, boolean, object, array, timestamp or any. With `enum`, the type follows from its
    values."""
    enum: Annotated[tuple[Any, ...], Field(min_length=1), AfterValidator(_scalars)] | None = None
    """The allowed values."""
    required: Boolean = True
    """An absent field breaks the contract. `?` after the type sets this to false."""
    nullable: Boolean = False
    """Null is allowed. `?` after the type sets this to true."""

    @model_validator(mode="after")
    def _enum_fits(self) -> EventField:
        fits = _FITS.get(self.type, ())
        for value in self.enum or ():
            if not isinstance(value, fits) or (isinstance(value, bool) and bool not in fits):
                raise ValueError(f"enum has a value that is not a {self.type}: no event could have it")
        return self


def _read_field(value: Any) -> Any:
    if isinstance(value, str):
        name, optional = (value[:-1], True) if value.endswith("?") else (value, False)
        if name not in FIELD_TYPES:
            hint = nearest(name, FIELD_TYPES)
            raise ValueError(f"must be a type: {', '.join(FIELD_TYPES)}{f'; {hint}' if hint else ''}")
        return {"type": name, "required": not optional, "nullable": optional}
    if not isinstance(value, dict):
        return value
    field = dict(value)
    if "enum" in field and field["enum"] is None:
        raise ValueError("`enum` is empty: any value would do")
    kind = field.get("type")
    if isinstance(kind, str) and kind.endswith("?"):
        field["type"] = kind[:-1]
        field.setdefault("required", False)
        field.setdefault("nullable", True)
    if "type" not in field and "enum" in field:
        field["type"] = _type_of(field["enum"])
    return field


def _type_of(values: Any) -> str:
    kinds = {type(value) for value in values} if isinstance(values, list) else set()
    if kinds == {str}:
        return "string"
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "integer"
    return "number" if kinds and kinds <= {int, float} else "any"


ContractField = Annotated[EventField, BeforeValidator(_read_field)]


class EventContract(Section):
    """The fields that an event type promises, and what to do with others."""

    fields: dict[str, ContractField]
    """Name to type. In the flat form they are directly below the event's type."""
    unknown: Literal["payload", "reject"] = "payload"
    """A field that is not listed: payload keeps it in the payload, reject breaks the contract."""

    @model_validator(mode="before")
    @classmethod
    def _either_form(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("unknown") in _UNKNOWN:
            return value
        if set(value) == {"fields"} and isinstance(value["fields"], dict):
            raise ValueError(
                "is ambiguous: for several fields add unknown: payload beside fields; for one "
                "field write fields: object"
            )
        return {"fields": value}


_FIELD_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": f"^({'|'.join(FIELD_TYPES)})\\??$"},
        {
            "type": "object",
            "properties": {
                "type": {"type": "string", "pattern": f"^({'|'.join(FIELD_TYPES)})\\??$"},
                "enum": {"type": "array", "minItems": 1},
                "required": {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}]},
                "nullable": {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}]},
            },
            "additionalProperties": False,
        },
    ]
}
_EVENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "description": "Long form: fields, and what to do with others.",
            "properties": {
                "fields": {"type": "object", "additionalProperties": _FIELD_SCHEMA},
                "unknown": {"enum": list(_UNKNOWN)},
            },
            "required": ["fields", "unknown"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "description": "Flat form: field to type.",
            "additionalProperties": _FIELD_SCHEMA,
        },
    ]
}
ContractSection = Annotated[EventContract, WithJsonSchema(_EVENT_SCHEMA)]
