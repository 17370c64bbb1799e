"""What the ingress takes from a configuration (API keys included); replaced as a whole by a reload."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

from bridge.config.model import Config
from bridge.config.several import hook_source, ingress_sources, one_source, rest_sources
from bridge.config.specs import contract_specs
from bridge.errors import ConfigError
from bridge.ingress.openapi import openapi_document
from bridge.ingress.problem import Refusal
from bridge.ingress.webhook import Endpoint
from bridge.planning.contract import Contract
from bridge.problem import nearest, suggestion

BURST_SECONDS = 1.0  # an idle key has saved up so much


class Keys:
    """The valid keys. Only digests are kept, not the keys."""

    def __init__(
        self, keys: Iterable[str], rate: int | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """rate: events a second for each key; None: no limit."""
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._rate = rate
        self._clock = clock
        self._levels: dict[bytes, tuple[float, float]] = {}  # digest -> (events saved up, when)

    def find(self, authorization: bytes) -> bytes | None:
        """The digest of the key in an Authorization header; None for a wrong or malformed one. Takes the same time
        for every key, because all digests are compared."""
        scheme, _, token = authorization.partition(b" ")
        given = sha256(token.strip()).digest()
        found = None
        for digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = digest
        return found if scheme.lower() == b"bearer" else None

    def take(self, digest: bytes, events: int) -> float:
        """Take this many events from the key's rate. Returns 0.0, or the seconds to wait. More events than a burst
        are allowed if the burst is full; the excess is subtracted later."""
        if self._rate is None:
            return 0.0
        now, most = self._clock(), self._rate * BURST_SECONDS
        level, at = self._levels.get(digest, (most, now))
        level = min(most, level + (now - at) * self._rate)
        wanted = min(float(events), most)
        if level < wanted:
            self._levels[digest] = (level, now)
            return (wanted - level) / self._rate
        self._levels[digest] = (level - events, now)
        return 0.0


OUTBOX = "outbox.event"
SOURCE_HEADER = "x-outbox-source"


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """max_payload: bytes. patterns: event types, exact or globs, that pipelines take. cors: origins of web pages.
    sources: those that a request may name. hook_sources: by webhook."""

    keys: Keys
    max_payload: int
    contracts: Mapping[str, Contract]
    patterns: tuple[str, ...]
    webhooks: Mapping[str, Endpoint]
    openapi: Mapping[str, Any]
    sources: tuple[str, ...]
    hook_sources: Mapping[str, str]
    cors: tuple[str, ...] = ()

    def source(self, named: str | None) -> str:
        """The source that a request writes to. named: what its header says. Raises Refusal 400."""
        if named is None and len(self.sources) == 1:
            return self.sources[0]
        if named in self.sources:
            return named
        if named is None:
            detail = f"there are several sources: {SOURCE_HEADER} names one of {', '.join(self.sources)}"
        elif len(self.sources) == 1:
            detail = f"this ingress does not write to that source: leave {SOURCE_HEADER} out"
        else:
            detail = f"no such source; {nearest(named, self.sources) or suggestion('', self.sources)}"
        raise Refusal(400, "malformed", detail, field=SOURCE_HEADER)

    def contract(self, event_type: str) -> Contract | None:
        """The type's contract; None: it has none but is accepted. Raises Refusal 404 if there are contracts and
        neither they nor a pipeline know the type: then it is probably a typing error, and no pipeline would take the
        event."""
        found = self.contracts.get(event_type)
        if found is not None or not self.contracts:
            return found
        if any(fnmatchcase(event_type, pattern) for pattern in self.patterns):
            return None
        hint = nearest(event_type, self.contracts) or "GET /openapi.json lists the known types"
        raise Refusal(404, "unknown-event", f"no event of this type is under `events`; {hint}")


def settings_of(config: Config) -> IngressSettings | None:
    """None: the configuration has no ingress. Raises ConfigError if it cannot have one."""
    ingress = config.ingress
    if ingress is None:
        return None
    for name in ingress_sources(config):
        table = one_source(config, name).source.table
        if table != OUTBOX:
            path = f"sources.{name}.table" if config.sources else "source.table"
            raise ConfigError(
                f"ingress inserts events into {OUTBOX}, but {path} is {table}, your own table",
                hint=f"remove ingress, or remove {path} to use the outbox that `bridge install` creates",
            )
    specs = contract_specs(config)
    return IngressSettings(
        keys=Keys(ingress.api_keys, ingress.rate_limit),
        max_payload=ingress.max_payload,
        contracts={name: Contract(spec) for name, spec in specs.items()},
        patterns=tuple(pattern for pipeline in config.pipelines.values() for pattern in pipeline.events),
        webhooks={name: Endpoint(name, webhook) for name, webhook in ingress.webhooks.items()},
        openapi=openapi_document(
            specs, ingress.max_payload, tuple(ingress.webhooks), sources=rest_sources(config)
        ),
        sources=tuple(rest_sources(config)),
        hook_sources={name: hook_source(config, hook.source) for name, hook in ingress.webhooks.items()},
        cors=ingress.cors,
    )
