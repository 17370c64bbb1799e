"""`bridge run`: the composition root. Connects streams, admin server, ingress, dispatchers and signals. asyncio
supervises; each stream has its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge import hangup
from bridge.config.model import Config
from bridge.config.several import each_source
from bridge.errors import BridgeError, ConfigError, Fenced
from bridge.log import Log
from bridge.observe import operators
from bridge.observe.metrics import Metrics
from bridge.observe.state import Health
from bridge.observe.watch import ShareWatch
from bridge.plans import dispatch_plans, partition_plans, relay_plans, types_taken
from bridge.postgres.login import in_use, try_again
from bridge.postgres.safe_error import safe_error
from bridge.postgres.whose import Owned
from bridge.serving import Serving, ingress_settings, ingress_socket
from bridge.stream.lookup_check import require_columns
from bridge.stream.spec import StreamSpec
from bridge.streams import GRACE_SECONDS, Streams, chosen

if TYPE_CHECKING:
    import socket

    from starlette.types import ASGIApp

    from bridge.observe.access import Access
    from bridge.observe.backlog import BacklogWatch
    from bridge.sharing import Sharing

SECRETS_SECONDS = 5.0
"""Between two looks at the files of secrets."""

_SWITCH_SECONDS = 0.0005
"""After which a stream's thread gets the interpreter from another one that works: a stream runs for a fraction of a
millisecond and waits again, and the standard 5 ms of whoever serves a page or imports a module would be most of an
event's latency."""


class Part(Enum):
    """What a process is, where the configuration has a log: `bridge run` is all of it."""

    ALL = "run"
    RELAY = "relay"
    WORKER = "worker"


class Daemon:
    """One process: one worker per stream, the admin server, signals."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config],
        *,
        guarded: bool = True,
        only: Collection[str] = (),
        parts: Part = Part.ALL,
    ) -> None:
        """guarded: False dead-letters whatever fails, however much it is (`--allow-storm`). only: the streams to run
        (`--stream`); empty: all of the file. parts: what of it this process is."""
        self._parts = parts
        self._config = config
        self._reread = reread
        self._health = Health()
        self._metrics = Metrics(self._health)
        self._stop = asyncio.Event()
        self._owned = Owned()
        self._streams = Streams(self._metrics, self._owned, self._ended, guarded=guarded)
        self._serving = Serving(self._metrics, self._stop, self._fresh, self._console)
        self._log = Log("bridge.daemon")
        self._only = only
        self._sharing: Sharing | None = None
        self._reload_asked = asyncio.Event()
        self._failed: BaseException | None = None

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises ConfigError if a part cannot start, Fenced when another bridge takes
        over."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        plans = self._plans(self._config)
        self._use_names(self._config)
        admin = self._config.admin
        # An address that cannot be listened on must be reported before anything is fenced.
        listening = self._serving.bind(admin.listen, "admin.listen")
        with listening or contextlib.nullcontext():
            taking = self._serving.open_ingress(self._config) if self._parts is not Part.RELAY else None
            self._dispatch(self._config)
            self._run_relays(self._config)
            self._run_streams(self._config, plans)
            self._log.info("running", streams=[plan.stream for plan in plans], admin=str(admin.listen))
            if hangup.was_asked():
                self._reload_asked.set()
            serving = asyncio.create_task(self._serve(listening), name="admin")
            looking = asyncio.create_task(self._look())
            following = asyncio.create_task(self._follow_secrets())
            answering = asyncio.create_task(self._answer_operators())
            reloading = asyncio.create_task(self._follow_reloads())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait(
                [serving, stopping, *([taking] if taking else [])], return_when=asyncio.FIRST_COMPLETED
            )
            self._stop.set()
            reloading.cancel()
            await asyncio.gather(
                self._streams.drain(), *([self._sharing.stop(GRACE_SECONDS)] if self._sharing else [])
            )
            await looking
            await following
            await answering
            await serving
        if taking is not None:
            await taking
        if self._failed is not None:
            raise self._failed
        self._log.info("stopped")

    async def _serve(self, listening: socket.socket | None) -> None:
        await self._streams.begun(self._stop)
        await self._serving.admin(self._config, listening)

    async def _look(self) -> None:
        """What is done beside the streams, once they have begun."""
        await self._streams.begun(self._stop)
        from bridge.repair.upkeep import Upkeep  # noqa: PLC0415  no stream has to wait for it

        upkeep = Upkeep(self._streams.targets, self._owned)
        upkeep.start()
        try:
            await self._backlog.run()
        finally:
            upkeep.stop()

    @cached_property
    def _backlog(self) -> BacklogWatch:
        from bridge.observe.backlog import BacklogWatch  # noqa: PLC0415  no stream has to wait for it

        return BacklogWatch(self._metrics, self._streams.targets, self._owned, self._stop)

    async def _fresh(self) -> None:
        """Count anew what a status is about to tell."""
        await self._backlog.fresh()

    def _run_streams(self, config: Config, plans: Sequence[StreamSpec]) -> None:
        """These, or this bridge's share of them."""
        if self._parts is Part.RELAY:
            return
        shares = config.scale is not None and (config.scale.share or self._parts is Part.WORKER)
        if self._sharing is None and (not shares or self._streams.plans()):
            self._streams.use(plans)
            return
        if self._sharing is None:
            from bridge.sharing import Sharing  # noqa: PLC0415  only where bridges share

            self._sharing = Sharing(self._streams, ShareWatch(self._metrics))
        every = partition_plans(config)  # those of others too: `bridge status` shows them
        self._streams.share(every)
        only = [plan.stream for plan in chosen(every, self._only)] if self._only else ()
        self._sharing.use(every, most=config.scale.max_streams if config.scale else None, only=only)

    def _plans(self, config: Config) -> list[StreamSpec]:
        return [] if self._parts is Part.RELAY else chosen(partition_plans(config), self._only)

    def _run_relays(self, config: Config) -> None:
        if self._parts is not Part.WORKER:
            self._streams.use_relays(relay_plans(config))

    def _use_names(self, config: Config) -> None:
        """The sources and types that metrics and status tell apart."""
        self._metrics.use_sources([one.source_name for one in each_source(config)])
        self._health.unmatched.use(types_taken(config))

    def _dispatch(self, config: Config) -> None:
        plans = dispatch_plans(config) if self._parts is not Part.RELAY else []
        here = {plan.name for plan in self._plans(config)} if self._only else set()
        self._streams.dispatch([plan for plan in plans if not self._only or plan.stream in here])

    def _ended(self, stream: str, error: BaseException | None) -> None:
        """A stream's thread has ended. Unless it was asked to stop, or lost a stream that is shared, this ends the
        process."""
        if self._sharing is not None:
            self._sharing.stopped(stream, fenced=isinstance(error, Fenced))
            error = None if isinstance(error, Fenced) else error
        if error is None or self._stop.is_set():
            return
        self._failed = error
        if isinstance(error, BridgeError):
            self._log.error("ended", stream=stream, reason=error.reason, message=str(error.args[0]))
        self._stop.set()

    async def _answer_operators(self) -> None:
        """Answer the commands of this machine, until told to stop."""
        path = os.path.abspath(self._config.original.file)
        try:
            listening = operators.listen(Path(path))
        except OSError as error:
            self._log.warning("commands on this machine cannot ask this bridge", message=str(error))
            return

        async def config() -> dict[str, Any]:
            made_of = self._config.original
            return {
                "file": path,
                "text": made_of.text,
                "variables": made_of.variables,
                "files": made_of.files,
            }

        async def status() -> dict[str, Any]:
            from bridge.observe.status import status_of  # noqa: PLC0415  only when somebody asks

            await self._fresh()
            return {"config": path, **status_of(self._metrics)}

        async def logins() -> dict[str, Any]:
            return {"config": path, "logins": [[recipe, text] for recipe, text in in_use().items()]}

        await operators.serve(listening, {"config": config, "status": status, "logins": logins}, self._stop)

    def _console(self, access: Access) -> ASGIApp:
        from bridge.console.app import build_console  # noqa: PLC0415  only when a page is asked for
        from bridge.console.desk import Desk  # noqa: PLC0415

        desk = Desk(self._metrics, lambda: self._config, self._backlog.sampler, self._backlog.fresh)
        return build_console(desk, access)

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
                ingress = ingress_settings(fresh)
            except ConfigError as error:
                if str(error) != said:
                    self._log.error("a secret's file cannot be used; the old value stays", message=str(error))
                said = str(error)
                continue
            said = ""
            self._config = fresh
            self._dispatch(fresh)
            self._serving.reload_ingress(ingress)
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
            plans = self._plans(config)
            ingress = ingress_settings(config)
            await asyncio.to_thread(require_columns, plans)
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
        self._use_names(config)
        self._run_relays(config)
        self._run_streams(config, plans)
        self._dispatch(config)
        if config.admin != self._config.admin:
            self._log.warning("admin changed: restart the bridge to use it")
        if ingress_socket(config) != ingress_socket(self._config):
            self._log.warning("ingress was added, removed or moved: restart the bridge to use it")
        if (config.scale and config.scale.share) != (self._config.scale and self._config.scale.share):
            self._log.warning("scale.share changed: restart the bridge to use it")
        self._serving.reload_ingress(ingress)
        self._config = config
        self._log.info("reloaded", streams=[plan.stream for plan in plans])


def run_daemon(
    config: Config,
    reread: Callable[[], Config],
    *,
    guarded: bool = True,
    only: Collection[str] = (),
    parts: Part = Part.ALL,
) -> None:
    """Run until told to stop. guarded, only, parts: as Daemon."""
    asyncio.run(Daemon(config, reread, guarded=guarded, only=only, parts=parts).run())
