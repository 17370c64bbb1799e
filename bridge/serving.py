"""What the daemon serves over HTTP: the admin server and the ingress. A port may be another program's for a while."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bridge.config.model import Config
from bridge.config.several import ingress_sources, instance_of, one_source
from bridge.errors import BridgeError, ConfigError
from bridge.log import Log
from bridge.observe.listen import bind, is_taken
from bridge.observe.metrics import Metrics

if TYPE_CHECKING:  # only a configuration that has an ingress pays for its libraries
    from starlette.types import ASGIApp

    from bridge.config.model import IngressSection
    from bridge.ingress.app import Ingress
    from bridge.ingress.settings import IngressSettings
    from bridge.observe.access import Access
    from bridge.quantity import Listen

PORT_SECONDS = 1.0
"""Between two attempts at a port that another program has."""


class Serving:
    """The servers of one process, until `stop` is set."""

    def __init__(
        self,
        metrics: Metrics,
        stop: asyncio.Event,
        fresh: Callable[[], Awaitable[None]],
        pages: Callable[[Access], ASGIApp],
    ) -> None:
        """fresh: counts anew what a status is about to tell. pages: makes the console."""
        self._metrics = metrics
        self._fresh = fresh
        self._pages = pages
        self._stop = stop
        self._log = Log("bridge.daemon")
        self._ingress: Ingress | None = None
        self._taken: set[str] = set()  # keys of the addresses whose port another program has

    def bind(self, listen: Listen, key: str) -> socket.socket | None:
        """A socket, or None while another program has the port, which is told once: it may be the bridge that this one
        is to take over from. Raises ConfigError if it is anything else."""
        try:
            bound = bind(listen.host.strip("[]"), listen.port, key)
        except ConfigError as error:
            if not is_taken(error):
                raise
            if key not in self._taken:
                self._taken.add(key)
                self._log.warning("waiting for a port", key=key, listen=str(listen), fix=error.hint)
                self._metrics.health.part_failed(
                    key, BridgeError(str(error.args[0]), reason="port_in_use", hint=error.hint)
                )
            return None
        if key in self._taken:
            self._taken.discard(key)
            self._log.info("the port is free", key=key, listen=str(listen))
            self._metrics.health.part_works(key)
        return bound

    async def _port(self, bound: socket.socket | None, listen: Listen, key: str) -> socket.socket | None:
        """As bind(), again and again. None: told to stop."""
        while bound is None and not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), PORT_SECONDS)
                return None
            bound = self.bind(listen, key)
        return bound

    async def admin(self, config: Config, bound: socket.socket | None) -> None:
        """Metrics, health and the console."""
        admin = config.admin
        listening = await self._port(bound, admin.listen, "admin.listen")
        if listening is None:
            return
        # Only now, because no stream has to wait for an HTTP server to be imported.
        from bridge.observe.access import Access  # noqa: PLC0415
        from bridge.observe.admin import build_admin, serve_admin  # noqa: PLC0415

        app = build_admin(
            self._metrics,
            host=admin.listen.host,
            access=Access(admin.token, admin.tokens, cookie=f"outbox_bridge_{admin.listen.port}"),
            fresh=self._fresh,
            pages=self._pages,
            openapi=lambda: self._ingress.settings.openapi if self._ingress is not None else None,
        )
        quiet_collector()
        await serve_admin(app, listening, self._stop, instance=instance_of(config))

    def open_ingress(self, config: Config) -> asyncio.Task[None] | None:
        """Listen for events, if the configuration says so. Raises ConfigError when it cannot."""
        settings, ingress = ingress_settings(config), config.ingress
        if settings is None or ingress is None:
            return None
        from bridge.ingress.app import Ingress  # noqa: PLC0415  as at TYPE_CHECKING

        several = len(ingress_sources(config)) > 1

        def part(source: str) -> str:
            return f"ingress to {source}" if several else "ingress"

        self._ingress = Ingress(
            settings,
            {name: one_source(config, name).source.dsn for name in ingress_sources(config)},
            count=lambda endpoint, code: self._metrics.ingress_requests.labels(endpoint, str(code)).inc(),
            failed=lambda name, error: self._metrics.health.part_failed(part(name), error),
            works=lambda name: self._metrics.health.part_works(part(name)),
        )
        bound = self.bind(ingress.listen, "ingress.listen")
        serving = self._serve_ingress(self._ingress, ingress, bound, instance_of(config))
        return asyncio.create_task(serving, name="ingress")

    async def _serve_ingress(
        self, app: Ingress, settings: IngressSection, bound: socket.socket | None, instance: str
    ) -> None:
        listening = await self._port(bound, settings.listen, "ingress.listen")
        if listening is None:
            return
        self._log.info("ingress", listen=str(settings.listen))
        await serve_ingress(app, listening, self._stop, settings.max_connections, instance=instance)

    def reload_ingress(self, settings: IngressSettings | None) -> None:
        """From now on, by these settings. Where one was added, removed or moved, a restart is needed."""
        if settings is not None and self._ingress is not None:
            self._ingress.reload(settings)


def ingress_settings(config: Config) -> IngressSettings | None:
    """Raises ConfigError if the ingress cannot use the configuration."""
    if config.ingress is None:
        return None
    from bridge.ingress.settings import settings_of  # noqa: PLC0415  as at TYPE_CHECKING

    return settings_of(config)


def ingress_socket(config: Config) -> object:
    """Ingress settings that need a restart."""
    ingress = config.ingress
    if ingress is None:
        return None
    sources = [(name, one_source(config, name).source) for name in ingress_sources(config)]
    return (
        ingress.listen,
        ingress.max_connections,
        # without their passwords, which are followed
        [(name, source.place(), source.parameters().get("user")) for name, source in sources],
    )


async def serve_ingress(
    ingress: Ingress, listening: socket.socket, stop: asyncio.Event, connections: int, *, instance: str
) -> None:
    """Accept events until `stop` is set; the writer ends after the last answer."""
    from bridge.observe.server import serve  # noqa: PLC0415  as in Serving.admin

    writing = asyncio.create_task(ingress.write(), name="ingress-writers")
    serving = asyncio.create_task(
        serve(ingress.app, listening, stop, instance=instance, limit_concurrency=connections),
        name="ingress-http",
    )
    try:
        await asyncio.wait([serving, writing], return_when=asyncio.FIRST_COMPLETED)
        if writing.done():  # it never ends by itself
            serving.cancel()
            await writing
    finally:
        if not serving.done():
            serving.cancel()
        await asyncio.wait([serving])
        writing.cancel()
        await asyncio.wait([writing])
    await serving


def quiet_collector() -> None:
    """Freeze the objects that are loaded and raise the collector's threshold. Loaded objects stay (to collect first
    would free twenty of them and take longer than to connect), and a batch's objects are freed together. Events and
    documents have no cycles, so nothing accumulates (docs/performance.md)."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
