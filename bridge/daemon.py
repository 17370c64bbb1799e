"""`bridge run`: the composition root. Connects streams, admin server, ingress, dispatchers and signals. asyncio
supervises; each stream has its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge import hangup
from bridge.config.model import Config
from bridge.config.several import instance_of, one_source
from bridge.errors import BridgeError, ConfigError
from bridge.log import Log
from bridge.observe import operators
from bridge.observe.backlog import watch_backlog
from bridge.observe.listen import bind, is_taken
from bridge.observe.metrics import Metrics
from bridge.observe.state import Health, StreamState
from bridge.observe.watch import DispatchWatch, StreamWatch
from bridge.plans import dispatch_plans, stream_plans, types_taken
from bridge.postgres.login import try_again
from bridge.postgres.safe_error import safe_error
from bridge.postgres.whose import Owned
from bridge.repair.upkeep import Upkeep
from bridge.stream.lookup_check import require_columns
from bridge.stream.planned import FailureGuard
from bridge.stream.spec import StreamSpec
from bridge.stream.worker import Worker

if TYPE_CHECKING:  # only a configuration that has an ingress, or sinks, pays for their libraries
    from bridge.config.model import IngressSection
    from bridge.dispatch.dispatcher import Dispatchers
    from bridge.ingress.app import Ingress
    from bridge.ingress.settings import IngressSettings
    from bridge.quantity import Listen

GRACE_SECONDS = 20.0
"""Seconds that SIGTERM waits for batches in flight. The end of the process rolls back those that have not settled."""

PORT_SECONDS = 1.0
"""Between two attempts at a port that another program has."""

SECRETS_SECONDS = 5.0
"""Between two looks at the files of secrets."""


class Daemon:
    """One process: one worker per stream, the admin server, signals."""

    def __init__(self, config: Config, reread: Callable[[], Config], *, guarded: bool = True) -> None:
        """guarded: False dead-letters whatever fails, however much it is (`--allow-storm`)."""
        self._config = config
        self._reread = reread
        self._guarded = guarded
        self._health = Health()
        self._metrics = Metrics(self._health)
        self._workers: dict[str, Worker] = {}
        self._owned = Owned()
        self._upkeep = Upkeep(self._plans, self._owned)
        self._ingress: Ingress | None = None
        self._log = Log("bridge.daemon")
        self._dispatchers: Dispatchers | None = None
        self._stop = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._failed: BaseException | None = None
        self._taken: set[str] = set()  # keys of the addresses whose port another program has

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises ConfigError if a part cannot start, Fenced when another bridge takes
        over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        plans = stream_plans(self._config)
        self._health.unmatched.use(types_taken(self._config))
        admin = self._config.admin
        # An address that cannot be listened on must be reported before anything is fenced.
        listening = self._bind(admin.listen, "admin.listen")
        with listening or contextlib.nullcontext():
            taking = self._open_ingress()
            self._dispatch(self._config)
            for plan in plans:
                self._start(plan)
            self._upkeep.start()
            self._log.info("running", streams=[plan.stream for plan in plans], admin=str(admin.listen))
            if hangup.was_asked():
                self._reload_asked.set()
            serving = asyncio.create_task(self._serve_admin(listening), name="admin")
            looking = asyncio.create_task(watch_backlog(self._metrics, self._plans, self._owned, self._stop))
            following = asyncio.create_task(self._follow_secrets())
            answering = asyncio.create_task(self._answer_operators())
            reloading = asyncio.create_task(self._follow_reloads())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait(
                [serving, stopping, *([taking] if taking else [])], return_when=asyncio.FIRST_COMPLETED
            )
            self._stop.set()
            reloading.cancel()
            sending = [self._dispatchers.stop()] if self._dispatchers is not None else []
            await asyncio.gather(self._drain(), *sending)
            await looking
            await following
            await answering
            await serving
        if taking is not None:
            await taking
        if self._failed is not None:
            raise self._failed
        self._log.info("stopped")

    def _bind(self, listen: Listen, key: str) -> socket.socket | None:
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
                self._health.part_failed(
                    key, BridgeError(str(error.args[0]), reason="port_in_use", hint=error.hint)
                )
            return None
        if key in self._taken:
            self._taken.discard(key)
            self._log.info("the port is free", key=key, listen=str(listen))
            self._health.part_works(key)
        return bound

    async def _port(self, bound: socket.socket | None, listen: Listen, key: str) -> socket.socket | None:
        """As _bind(), again and again. None: told to stop."""
        while bound is None and not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), PORT_SECONDS)
                return None
            bound = self._bind(listen, key)
        return bound

    async def _serve_admin(self, bound: socket.socket | None) -> None:
        """Metrics, health and the status page, until told to stop."""
        listening = await self._port(bound, self._config.admin.listen, "admin.listen")
        if listening is None:
            return
        # Only now, because no stream has to wait for an HTTP server to be imported.
        from bridge.observe.admin import build_admin, serve_admin  # noqa: PLC0415

        admin = self._config.admin
        app = build_admin(
            self._metrics,
            host=admin.listen.host,
            token=admin.token,
            openapi=lambda: self._ingress.settings.openapi if self._ingress is not None else None,
        )
        quiet_collector()
        await serve_admin(app, listening, self._stop, instance=instance_of(self._config))

    def _open_ingress(self) -> asyncio.Task[None] | None:
        """Listen for events, if the configuration says so. Raises ConfigError when it cannot."""
        settings, ingress = _ingress_settings(self._config), self._config.ingress
        if settings is None or ingress is None:
            return None
        from bridge.ingress.app import Ingress  # noqa: PLC0415  as at TYPE_CHECKING

        self._ingress = Ingress(
            settings,
            one_source(self._config, ingress.source).source.dsn,
            count=lambda endpoint, code: self._metrics.ingress_requests.labels(endpoint, str(code)).inc(),
            failed=lambda error: self._health.part_failed("ingress", error),
            works=lambda: self._health.part_works("ingress"),
        )
        bound = self._bind(ingress.listen, "ingress.listen")
        return asyncio.create_task(self._serve_ingress(self._ingress, ingress, bound), name="ingress")

    async def _serve_ingress(
        self, app: Ingress, settings: IngressSection, bound: socket.socket | None
    ) -> None:
        listening = await self._port(bound, settings.listen, "ingress.listen")
        if listening is None:
            return
        self._log.info("ingress", listen=str(settings.listen))
        instance = instance_of(self._config)
        await serve_ingress(app, listening, self._stop, settings.max_connections, instance=instance)

    def _dispatch(self, config: Config) -> None:
        """From now on, send the deliveries of this configuration."""
        plans = dispatch_plans(config)
        if plans and self._dispatchers is None:
            from bridge.dispatch.dispatcher import Dispatchers  # noqa: PLC0415  as at TYPE_CHECKING

            self._dispatchers = Dispatchers(DispatchWatch(self._metrics), self._owned)
        if self._dispatchers is not None:
            self._dispatchers.use(plans)

    def _plans(self) -> list[StreamSpec]:
        return [worker.plan for worker in self._workers.values()]

    def _start(self, plan: StreamSpec) -> None:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.call_soon_threadsafe(self._ended, plan.stream)

        state = StreamState(
            plan.stream,
            plan.connection,
            plan.source,
            alive=lambda: self._alive(plan.stream),
            max_retained_wal=plan.max_retained_wal,
        )
        watch = StreamWatch(self._metrics, state, self._nudge)
        worker = Worker(plan, watch, FailureGuard(on=self._guarded), ended)
        self._workers[plan.stream] = worker
        self._health.add(state)
        worker.start()

    def _nudge(self, stream: str) -> None:
        """A stream committed deliveries; called from its thread."""
        if self._dispatchers is not None:
            self._dispatchers.nudge(stream)

    def _alive(self, stream: str) -> bool:
        return stream in self._workers and self._workers[stream].thread.is_alive()

    def _ended(self, stream: str) -> None:
        """A stream's thread has ended. Unless it was asked to stop, this ends the process."""
        worker = self._workers.get(stream)
        if worker is not None and worker.failed is not None and not self._stop.is_set():
            error = worker.failed
            self._failed = error
            if isinstance(error, BridgeError):
                self._log.error("ended", stream=stream, reason=error.reason, message=str(error.args[0]))
            self._stop.set()

    async def _drain(self) -> None:
        self._upkeep.stop()
        for worker in self._workers.values():
            worker.stop()
        end = asyncio.get_running_loop().time() + GRACE_SECONDS
        for worker in self._workers.values():
            left = max(0.0, end - asyncio.get_running_loop().time())
            await asyncio.to_thread(worker.thread.join, left)
            if worker.thread.is_alive():
                self._log.warning(
                    "grace period is over: batches in flight are rolled back", stream=worker.plan.stream
                )

    async def _answer_operators(self) -> None:
        """Answer the commands of this machine, until told to stop."""
        path = os.path.abspath(self._config.original.file)
        try:
            listening = operators.listen(Path(path))
        except OSError as error:
            self._log.warning("commands on this machine cannot ask this bridge", message=str(error))
            return

        def config() -> dict[str, Any]:
            made_of = self._config.original
            return {
                "file": path,
                "text": made_of.text,
                "variables": made_of.variables,
                "files": made_of.files,
            }

        def status() -> dict[str, Any]:
            from bridge.observe.admin import status_of  # noqa: PLC0415  as in _serve_admin

            return {"config": path, **status_of(self._metrics)}

        await operators.serve(listening, {"config": config, "status": status}, self._stop)

    async def _follow_secrets(self) -> None:
        """Use the secrets of sinks and the ingress as their files have them now."""
        said = ""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), SECRETS_SECONDS)
            config = self._config
            if not config.original.files or self._stop.is_set():
                continue
            from bridge.config.rotated import rotated  # noqa: PLC0415  only for secrets in files

            try:
                fresh = await asyncio.to_thread(rotated, config)
                if fresh is None or config is not self._config:
                    continue
                ingress = _ingress_settings(fresh)
            except ConfigError as error:
                if str(error) != said:
                    self._log.error("a secret's file cannot be used; the old value stays", message=str(error))
                said = str(error)
                continue
            said = ""
            self._config = fresh
            self._dispatch(fresh)
            if ingress is not None and self._ingress is not None:
                self._ingress.reload(ingress)
            self._log.info("secrets were read again")

    async def _follow_reloads(self) -> None:
        """One reload after another; a SIGHUP that comes meanwhile asks for one more."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            try:
                await self._reload()
            except Exception as error:  # the next SIGHUP is heard all the same
                self._log.error("defect", **safe_error(error))

    async def _reload(self) -> None:
        """SIGHUP: reload. If the file has errors, or reads what a lookup does not have, the old configuration stays."""
        try:
            config = self._reread()
            plans = {plan.stream: plan for plan in stream_plans(config)}
            ingress = _ingress_settings(config)
            await asyncio.to_thread(require_columns, list(plans.values()))
        except ConfigError as error:
            self._metrics.config_last_reload_successful.set(0)
            self._health.reload_refused = {
                "at": self._health.clock(),
                "message": str(error),
                "pid": os.getpid(),
            }
            self._log.error("reload refused; the old configuration stays", message=str(error))
            return
        self._metrics.config_last_reload_successful.set(1)
        self._health.reload_refused = None
        try_again()
        self._health.unmatched.use(types_taken(config))
        for name in [name for name in self._workers if name not in plans]:
            self._workers.pop(name).stop()
            self._health.remove(name)
        for name, plan in plans.items():
            if name in self._workers:
                self._workers[name].reload(plan)
            else:
                self._start(plan)
        self._dispatch(config)
        if config.admin != self._config.admin:
            self._log.warning("admin changed: restart the bridge to use it")
        if _socket(config) != _socket(self._config):
            self._log.warning("ingress was added, removed or moved: restart the bridge to use it")
        if ingress is not None and self._ingress is not None:
            self._ingress.reload(ingress)
        self._config = config
        self._log.info("reloaded", streams=list(plans))


def _ingress_settings(config: Config) -> IngressSettings | None:
    """Raises ConfigError if the ingress cannot use the configuration."""
    if config.ingress is None:
        return None
    from bridge.ingress.settings import settings_of  # noqa: PLC0415  as at TYPE_CHECKING

    return settings_of(config)


def _socket(config: Config) -> object:
    """Ingress settings that need a restart."""
    ingress = config.ingress
    if ingress is None:
        return None
    source = one_source(config, ingress.source).source  # without its password, which is followed
    return (
        ingress.listen,
        ingress.max_connections,
        source.place(),
        source.parameters().get("user"),
    )


async def serve_ingress(
    ingress: Ingress, listening: socket.socket, stop: asyncio.Event, connections: int, *, instance: str
) -> None:
    """Accept events until `stop` is set; the writer ends after the last answer."""
    from bridge.observe.server import serve  # noqa: PLC0415  as in Daemon._serve_admin

    writing = asyncio.create_task(ingress.writer.run(), name="ingress-writer")
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


def run_daemon(path: Path, read: Callable[[Path], Config], *, guarded: bool = True) -> None:
    """Read the configuration and run until told to stop. guarded: as Daemon."""
    config = read(path)
    asyncio.run(Daemon(config, lambda: read(path), guarded=guarded).run())
