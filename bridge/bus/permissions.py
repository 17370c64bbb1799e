"""What a relay and a worker need of a NATS server's permissions, and nothing more. `bridge schema log` prints it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.bus.journal import again_of
from bridge.bus.settings import BusSettings


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects, as a server's file has them."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        for what in ("publish", "subscribe"):
            yield f"  {what}: {{ allow: ["
            yield from (f'    "{subject}",' for subject in getattr(self, what))
            yield "  ] }"


def relay_permissions(settings: BusSettings, relays: Sequence[str]) -> Permissions:
    """Make the stream, fill it, forget what is applied."""
    api = _api(settings)
    publish = [f"{api}.INFO"]
    for name in relays:
        publish += [f"{name}.frames.*"]
        publish += [f"{api}.STREAM.{verb}.{name}" for verb in ("INFO", "CREATE", "PURGE")]
        publish += [f"{api}.DIRECT.GET.{name}", f"{api}.DIRECT.GET.{name}.>"]
    return Permissions(tuple(publish), (f"{settings.inbox}.>", *map(again_of, relays)))


def worker_permissions(settings: BusSettings, relays: Sequence[str]) -> Permissions:
    """Read the stream, and ask for frames again."""
    api = _api(settings)
    publish: list[str] = []
    for name in relays:
        publish += [again_of(name), f"{api}.STREAM.INFO.{name}", f"{api}.DIRECT.GET.{name}"]
        publish += [f"{api}.CONSUMER.CREATE.{name}", f"{api}.CONSUMER.CREATE.{name}.>"]
        publish += [f"{api}.CONSUMER.{verb}.{name}.*" for verb in ("MSG.NEXT", "DELETE")]
    return Permissions(tuple(publish), (f"{settings.inbox}.>",))


def _api(settings: BusSettings) -> str:
    return f"$JS.{settings.domain}.API" if settings.domain else "$JS.API"
