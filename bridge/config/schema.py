"""JSON Schemas (draft 2020-12) of bridge.yaml and of an event type's payload, and contracts as TypeScript declarations.

TypeScript: text in, text out, so that a wrong `ingest` call does not compile; it fills in `interface Events` of
sdk/typescript.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from bridge.config.editor_schema import as_written
from bridge.config.model import Config
from bridge.errors import ConfigError
from bridge.planning.spec import ContractSpec, FieldSpec
from bridge.problem import nearest

PACKAGE = "outbox-bridge"

_TYPES = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "object": "{ [name: string]: unknown }",
    "array": "unknown[]",
    "timestamp": "string",
    "any": "unknown",
}
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


def typescript_declarations(contracts: Iterable[ContractSpec], module: str = PACKAGE) -> str:
    """A .d.ts file. module: the package's import name, which an npm alias changes."""
    lines = [
        "// Made by `bridge schema event --typescript` from the contracts in bridge.yaml.",
        "export {};",
        f"declare module {json.dumps(module)} {{",
        "  interface Events {",
    ]
    for contract in contracts:
        lines.append(f"    {json.dumps(contract.event)}: {{")
        lines += [f"      {line}" for field in contract.fields for line in _typescript_field(field)]
        if contract.unknown == "payload":
            lines.append("      [name: string]: unknown;")
        lines.append("    };")
    return "\n".join([*lines, "  }", "}", ""])


def _typescript_field(field: FieldSpec) -> list[str]:
    name = field.name if _IDENTIFIER.fullmatch(field.name) else json.dumps(field.name)
    kind = _TYPES[field.type]
    if field.enum is not None:
        kind = " | ".join(json.dumps(value) for value in field.enum)
    if field.nullable and kind != "unknown":
        kind += " | null"
    line = f"{name}{'' if field.required else '?'}: {kind};"
    return ["/** RFC 3339, as Date.toISOString() gives it. */", line] if field.type == "timestamp" else [line]


_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_JSON_TYPES: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "object": {"type": "object"},
    "array": {"type": "array"},
    "timestamp": {"type": "string", "format": "date-time"},
    "any": {},
}


def config_json_schema() -> dict[str, Any]:
    """The schema of bridge.yaml as people write it, for editors (yaml-language-server)."""
    return {"$schema": _DIALECT, "title": "bridge.yaml", **as_written(_of_models())}


@lru_cache(maxsize=1)
def _of_models() -> dict[str, Any]:
    return Config.model_json_schema(by_alias=True)


def event_json_schema(config: Config, event_type: str) -> dict[str, Any]:
    """The schema of an event type's payload. Raises ConfigError if the configuration has no contract for it."""
    return contract_json_schema(event_contract(config, event_type))


def event_contract(config: Config, event_type: str) -> ContractSpec:
    """The contract of an event type. Raises ConfigError if the configuration has none."""
    from bridge.config.specs import contract_specs  # noqa: PLC0415  # specs needs nothing from here

    contract = contract_specs(config).get(event_type)
    if contract is None:
        hint = nearest(event_type, config.events) or f"contracts are: {', '.join(config.events) or 'none'}"
        raise ConfigError(f"{event_type} has no contract under events", hint=hint)
    return contract


def contract_json_schema(contract: ContractSpec) -> dict[str, Any]:
    """The schema of one contract."""
    return {
        "$schema": _DIALECT,
        "title": contract.event,
        "type": "object",
        "properties": {field.name: _field(field) for field in contract.fields},
        "required": [field.name for field in contract.fields if field.required],
        "additionalProperties": contract.unknown == "payload",
    }


def _field(field: FieldSpec) -> dict[str, Any]:
    schema = dict(_JSON_TYPES[field.type])
    if field.enum is not None:
        schema["enum"] = [*field.enum, *([None] if field.nullable else [])]
    if field.nullable and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    return schema


def keys_at(path: tuple[str | int, ...]) -> set[str]:
    """The keys that bridge.yaml allows at `path`; empty if names are free."""
    schema = _of_models()
    places = [schema]
    for step in path:
        places = [
            below for place in places for choice in _choices(place, schema) for below in _below(choice, step)
        ]
    return {
        key for place in places for choice in _choices(place, schema) for key in choice.get("properties", {})
    }


def _choices(place: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in place:
        return _choices(schema["$defs"][place["$ref"].rsplit("/", 1)[1]], schema)
    found = [place]
    for choice in place.get("anyOf", []):
        found += _choices(choice, schema)
    return found


def _below(place: dict[str, Any], step: str | int) -> list[dict[str, Any]]:
    if isinstance(step, int):
        items = place.get("items")
        return [items] if isinstance(items, dict) else []
    if step in place.get("properties", {}):
        return [place["properties"][step]]
    extra = place.get("additionalProperties")
    named = list(place.get("patternProperties", {}).values())
    return [*named, extra] if isinstance(extra, dict) else named
