"""What the ingress takes from a configuration; replaced as a whole by a reload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bridge.config.model import Config
from bridge.config.problem import nearest
from bridge.config.specs import contract_specs
from bridge.core.contract import Contract
from bridge.errors import ConfigError
from bridge.ingress.keys import Keys
from bridge.ingress.openapi import openapi_document
from bridge.ingress.problem import Refusal
from bridge.ingress.webhook import Endpoint

OUTBOX = "outbox.event"


@dataclass(frozen=True, slots=True)
class Settings:
    """max_payload: bytes. patterns: event types, exact or globs, that pipelines take."""

    keys: Keys
    max_payload: int
    contracts: Mapping[str, Contract]
    patterns: tuple[str, ...]
    webhooks: Mapping[str, Endpoint]
    openapi: Mapping[str, Any]

    def contract(self, event_type: str) -> Contract | None:
        """The type's contract; None: it has none but may come in.

        Raises Refusal 404 where there are contracts and neither they nor a pipeline know the type: then it
        is a typing error, and the event would lead nowhere.
        """
        found = self.contracts.get(event_type)
        if found is not None or not self.contracts:
            return found
        if any(fnmatchcase(event_type, pattern) for pattern in self.patterns):
            return None
        hint = nearest(event_type, self.contracts) or "GET /openapi.json lists those that are"
        raise Refusal(404, "unknown-event", f"no event of this type is under `events`; {hint}")


def settings_of(config: Config) -> Settings | None:
    """None: the configuration has no ingress. Raises ConfigError where it cannot have one."""
    ingress = config.ingress
    if ingress is None:
        return None
    if config.source.table != OUTBOX:
        raise ConfigError(
            f"ingress puts events into {OUTBOX}; source.table is {config.source.table}, a table of yours",
            hint="remove ingress, or remove source.table to use the outbox that `bridge install` makes",
        )
    specs = contract_specs(config)
    return Settings(
        keys=Keys(ingress.api_keys, ingress.rate_limit),
        max_payload=ingress.max_payload,
        contracts={name: Contract(spec) for name, spec in specs.items()},
        patterns=tuple(pattern for pipeline in config.pipelines.values() for pattern in pipeline.events),
        webhooks={name: Endpoint(name, webhook) for name, webhook in ingress.webhooks.items()},
        openapi=openapi_document(specs, ingress.max_payload, tuple(ingress.webhooks)),
    )
