"""Event contracts as TypeScript declarations, so that a wrong `ingest` call does not compile.

Text in, text out; nothing here runs TypeScript. What it fills in is `interface Events` of sdk/typescript.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from bridge.core.spec import ContractSpec, FieldSpec

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
    """A .d.ts file. module: the name that the package is imported by, which an npm alias changes."""
    lines = [
        "// Made by `bridge schema event --typescript` from the contracts in bridge.yaml.",
        "export {};",
        f"declare module {json.dumps(module)} {{",
        "  interface Events {",
    ]
    for contract in contracts:
        lines.append(f"    {json.dumps(contract.event)}: {{")
        lines += [f"      {line}" for field in contract.fields for line in _field(field)]
        if contract.unknown == "payload":
            lines.append("      [name: string]: unknown;")
        lines.append("    };")
    return "\n".join([*lines, "  }", "}", ""])


def _field(field: FieldSpec) -> list[str]:
    name = field.name if _IDENTIFIER.fullmatch(field.name) else json.dumps(field.name)
    kind = _TYPES[field.type]
    if field.enum is not None:
        kind = " | ".join(json.dumps(value) for value in field.enum)
    if field.nullable and kind != "unknown":
        kind += " | null"
    line = f"{name}{'' if field.required else '?'}: {kind};"
    return ["/** RFC 3339, as Date.toISOString() gives it. */", line] if field.type == "timestamp" else [line]
