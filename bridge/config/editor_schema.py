"""What the models' JSON Schema lacks to describe bridge.yaml as people write it.

The models are read after references are replaced, and say what a connection's kind decides by code. An editor sees the
text: `${VAR}` in place of any value, and a destination whose vendor it does not know. Everything that the loader takes
must be valid here; keys that no kind has are not.
"""

from __future__ import annotations

from typing import Any

from bridge.section import descriptions
from bridge.sinks.model import SINKS

_REFERENCE = {"type": "string", "pattern": r"\$\{", "description": "A reference to a variable or a file."}
_SCALARS = {"string", "integer", "number", "boolean"}
_LIMITS = {"pattern", "enum", "const", "format", "maxLength"}

EXAMPLES: dict[str, dict[str, list[Any]]] = {
    "PipelineSection": {"event": ["usage.limit_reached", ["user.signed_up", "trial.started"], "usage.*"]},
    "Branch": {"when": ["$event.used / $event.limit >= 0.9"], "to": [["events"], "events", []]},
    "TableDestination": {
        "table": ["events.usage_limits"],
        "key": [["event_id"]],
        "columns": [{"event_id": "$meta.id", "customer_id": "$event.customer_id", "payload": "$event"}],
    },
    "SinkDestination": {
        "digest": [{"by": "$event.customer_id", "every": "15m", "max": 50}],
        "quiet": [{"from": "22:00", "to": "07:00", "time_zone": "Europe/Berlin"}],
    },
    "EnrichSection": {
        "as": ["customer"],
        "key": ["$event.customer_id"],
        "sql": ["select customer_id, mrr from crm.customer where customer_id = any(%(keys)s)"],
    },
    "SourceSection": {
        "dsn": ["${SOURCE_DSN}", "service=app"],
        "start": ["earliest", "now", "2027-03-01T00:00:00Z"],
        "ignore_types": [["audit.*"]],
    },
}


def as_written(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of the file, from the schema of the models."""
    found: dict[str, Any] = _written(schema, "")
    found["$defs"]["reference"] = _REFERENCE
    _of_any_vendor(found["$defs"]["SinkDestination"])
    for name, examples in EXAMPLES.items():
        for key, values in examples.items():
            found["$defs"][name]["properties"][key]["examples"] = values
    return found


def _written(node: Any, key: str) -> Any:
    """key: the name of the property that the node describes. `type: slack` and the like must stand in the file: they
    decide what the other keys are."""
    if isinstance(node, list):
        return [_written(each, key) for each in node]
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for word, below in node.items():
        if word in ("properties", "$defs"):
            found[word] = {name: _written(each, name) for name, each in below.items()}
        elif word == "title" or (word == "default" and not _shows(node, below)):
            continue  # a title repeats the key, and a default is told where it is what people would write
        elif word in ("default", "examples", "enum", "const"):
            found[word] = below
        else:
            found[word] = _written(below, key)
    if not _may_be_reference(found, key):
        return found
    told = {word: found.pop(word) for word in ("description", "default", "examples") if word in found}
    return {"anyOf": [found, {"$ref": "#/$defs/reference"}], **told}


def _shows(node: dict[str, Any], default: Any) -> bool:
    if isinstance(default, bool):
        return True
    if isinstance(default, int | float):
        return node.get("type") in ("integer", "number")
    return isinstance(default, str) and bool(default)


def _may_be_reference(node: dict[str, Any], key: str) -> bool:
    if key in ("type", "scheme") and "const" in node:
        return False
    scalar = node.get("type") in _SCALARS or "enum" in node or "const" in node
    return scalar and (node.get("type") != "string" or bool(_LIMITS & node.keys()))


def _of_any_vendor(section: dict[str, Any]) -> None:
    """The keys of every vendor's message. Lint knows which of them the connection's vendor has."""
    told: dict[str, dict[str, list[str]]] = {}  # key -> what it means -> the vendors that say so
    for vendor, connection in SINKS.items():
        words = descriptions(connection.message)
        for name, field in connection.message.model_fields.items():
            meanings = told.setdefault(field.alias or name, {})
            meanings.setdefault(words.get(name, ""), []).append(vendor)
    for key, meanings in told.items():
        lines = [f"{', '.join(vendors)}: {meaning}" for meaning, vendors in meanings.items()]
        section["properties"].setdefault(key, {"description": "\n\n".join(lines)})
    section["additionalProperties"] = False
    section["not"] = {"required": ["table"]}
