"""`/openapi.json` (OpenAPI 3.1): one path for each event contract, to generate clients from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge import __version__
from bridge.config.schema import contract_json_schema
from bridge.planning.spec import ContractSpec
from bridge.signatures.scheme import FORM

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "field": {"type": "string", "description": "The field or header that is refused."},
    },
    "required": ["type", "title", "status", "detail"],
}
_STORED = {
    "type": "object",
    "properties": {"id": {"type": "string", "format": "uuid"}, "duplicate": {"const": True}},
    "required": ["id"],
}
_REFUSALS = {
    "400": "A body or header that cannot be read.",
    "401": "No valid API key.",
    "404": "No such event type.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "Wrong media type, or a content-encoding.",
    "422": "The payload breaks its contract or cannot be stored; `field` names where.",
    "429": "Over the key's rate; retry-after says when to retry.",
    "503": "The event may not be stored; send the same idempotency key again after retry-after.",
}


def openapi_document(
    contracts: Mapping[str, ContractSpec],
    max_payload: int,
    webhooks: Iterable[str],
    sources: Sequence[str] = (),
) -> dict[str, Any]:
    """The document of one configuration. max_payload: bytes. sources: those that a request names one of."""
    paths: dict[str, Any] = {
        f"/v1/events/{name}": {"post": _events(name, _schema(spec), max_payload)}
        for name, spec in contracts.items()
    }
    paths["/v1/events/{type}"] = {
        "parameters": [{"name": "type", "in": "path", "required": True, "schema": {"type": "string"}}],
        "post": _events("any other type", {"type": "object"}, max_payload),
    }
    if len(sources) > 1:
        named = {
            "name": "x-outbox-source",
            "in": "header",
            "required": True,
            "schema": {"enum": [*sources]},
            "description": "The source whose outbox gets the event.",
        }
        for path in paths.values():
            path["post"]["parameters"].append(named)
    for name in webhooks:
        paths[f"/v1/webhooks/{name}"] = {"post": _webhook(name)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Outbox Bridge ingress", "version": __version__},
        "security": [{"apiKey": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Stored": _STORED, "Problem": _PROBLEM},
        },
    }


def _schema(spec: ContractSpec) -> dict[str, Any]:
    return {name: value for name, value in contract_json_schema(spec).items() if name != "$schema"}


def _header(name: str, longest: int, meaning: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": longest}
    return {"name": name, "in": "header", "schema": schema, "description": meaning}


def _events(name: str, payload: dict[str, Any], max_payload: int) -> dict[str, Any]:
    line = {
        "type": "object",
        "properties": {"payload": payload, "idempotency_key": {"type": "string"}, "key": {"type": "string"}},
        "required": ["payload"],
        "additionalProperties": False,
    }
    return {
        "summary": f"Send {name}",
        "parameters": [
            _header("idempotency-key", 255, "The same key for this type: the same event."),
            _header("x-outbox-key", 500, "Ordering key: events with the same key stay in order."),
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {max_payload} bytes. x-ndjson: one object per line.",
            "content": {"application/json": {"schema": payload}, "application/x-ndjson": {"schema": line}},
        },
        "responses": _responses(),
    }


def _webhook(name: str) -> dict[str, Any]:
    one = {"type": "object"}
    bodies = {"application/json": {"oneOf": [one, {"type": "array", "items": one}]}, FORM.decode(): one}
    content = {media_type: {"schema": schema} for media_type, schema in bodies.items()}
    stored = {"$ref": "#/components/schemas/Stored"}
    many = {"type": "object", "properties": {"events": {"type": "array", "items": stored}}}
    responses = {code: answer for code, answer in _responses().items() if code not in ("404", "429")}
    for code in ("200", "202"):
        schema = {"application/json": {"schema": {"oneOf": [stored, many]}}}
        responses[code] = {
            "description": "Committed; `events` for an array. Some senders get another body.",
            "content": schema,
        }
    return {
        "summary": f"Signed webhook {name}",
        "security": [],
        "description": "Authenticated by the provider's signature.",
        "requestBody": {"required": True, "content": content},
        "responses": responses,
    }


def _responses() -> dict[str, Any]:
    stored = {"application/json": {"schema": {"$ref": "#/components/schemas/Stored"}}}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "202": {"description": "Committed.", "content": stored},
        "200": {
            "description": "The event existed already (the first event's id); or results by line.",
            "content": stored,
        },
        **{code: {"description": text, "content": problem} for code, text in _REFUSALS.items()},
    }
