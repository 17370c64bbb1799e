"""The OpenAPI document of the admin server's API, made of its operations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bridge import __version__
from bridge.console.operations import Field, Operation

_TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "time": {"type": "string", "examples": ["2026-01-31T12:00:00Z", "24h"]},
    "texts": {"type": "array", "items": {"type": "string"}},
    "flag": {"type": "boolean"},
    "number": {"type": "integer"},
    "object": {"type": "object"},
}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for one in operations:
        paths.setdefault(f"/api{one.path}", {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Outbox Bridge, admin",
            "version": __version__,
            "description": "What the console shows and does. An action needs an operator's token, and leaves a row in "
            "bridge.audit.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Problem": {
                    "type": "object",
                    "required": ["status", "reason", "message", "hint"],
                    "properties": {
                        "status": {"type": "integer"},
                        "reason": {"type": "string"},
                        "message": {"type": "string"},
                        "hint": {"type": "string", "description": "The command or SQL that fixes it."},
                    },
                }
            },
        },
    }


def _operation(one: Operation) -> dict[str, Any]:
    inside = set(re.findall(r"\{(\w+)\}", one.path))
    rest = [field for field in one.every_field if field.name not in inside]
    told: dict[str, Any] = {
        "operationId": "_".join([one.method.lower(), *re.findall(r"\w+", one.path)]),
        "summary": one.summary,
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}},
            "401": {"description": "A token is needed."},
            **({"403": _problem("The token may only read.")} if one.acts else {}),
            "409": _problem("It is refused; hint says what fixes it."),
            "422": _problem("A field is wrong."),
            "502": _problem("A server cannot be reached."),
        },
    }
    parameters = [_parameter(field, "path") for field in one.every_field if field.name in inside] + (
        [] if one.method == "POST" else [_parameter(field, "query") for field in rest]
    )
    if parameters:
        told["parameters"] = parameters
    if one.method == "POST":
        told["requestBody"] = {"content": {"application/json": {"schema": _body(rest)}}}
    return told


def _schema(field: Field) -> dict[str, Any]:
    choices = {"enum": list(field.choices)} if field.choices else {}
    return {**_TYPES[field.kind], **choices, "description": field.about}


def _parameter(field: Field, place: str) -> dict[str, Any]:
    return {
        "name": field.name,
        "in": place,
        "required": place == "path" or field.needed,
        "description": field.about,
        "schema": {name: value for name, value in _schema(field).items() if name != "description"},
    }


def _body(fields: Sequence[Field]) -> dict[str, Any]:
    needed = [field.name for field in fields if field.needed]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {field.name: _schema(field) for field in fields},
        **({"required": needed} if needed else {}),
    }


def _problem(about: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": about, "content": {"application/problem+json": {"schema": schema}}}
