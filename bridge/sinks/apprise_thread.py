"""The Apprise library, in its own threads so that it never blocks the dispatcher's loop. Importing this module
imports the library (ImportError if it is not installed).

It makes its own HTTP requests, not through http.py. Still enforced:

- addresses: an audit hook (PEP 578) sees each connect() of the sending thread with the numeric address, and refuses
  addresses that the guard does not permit, so that no second resolution comes in between;
- redirects are not followed; retries and `optional=yes` of the URL are switched off, so that a failure is a failure;
- proxies of the environment are ignored; log entries of the library and urllib3 are discarded.

Not enforced: how much of an answer is read, `verify=no` in the URL, and a thread's deadline: a thread whose server
answers slowly stays until the server ends it, at most BEHIND of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apprise

from bridge import __version__
from bridge.sinks.reachable import AddressGuard

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore", DeprecationWarning
    )  # it imports what the standard library is about to drop
    import apprise

BEHIND = 16
"""Maximum number of threads, including abandoned ones."""

_LONGEST_CONNECT = 5.0
_STATUS = re.compile(r"\berror=(\d{3})\b")  # how the library's own warning ends where HTTP said no
_CONNECTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})

_places = threading.BoundedSemaphore(BEHIND)
_thread = threading.local()
_setting_up = threading.Lock()
_ready = False


@dataclass(frozen=True, slots=True)
class Notification:
    """One message. identity: the delivery's id."""

    url: str
    identity: str
    text: str
    title: str
    level: str


def service(url: str) -> str:
    """The service's name, such as ntfy; empty when the library cannot read the URL."""
    _set_up()
    plugin = _plugin(url)
    return "" if plugin is None else str(plugin.service_name)


def version() -> str:
    """The library's."""
    return str(apprise.__version__)


async def notify(notification: Notification, guard: AddressGuard, timeout: float) -> str | int:
    """Send once: sent, refused (the address), timeout, busy, failed, or an HTTP status that is not 2xx."""
    if not _places.acquire(blocking=False):
        return "busy"
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str | int] = loop.create_future()

    def settle(said: str | int) -> None:
        if not answer.done():
            answer.set_result(said)

    def body() -> None:
        said: str | int = "failed"
        try:
            said = _send(notification, guard, timeout)
        except Exception:  # of a plugin: its text can hold the message
            said = "failed"
        finally:
            _places.release()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, said)

    threading.Thread(target=body, name="apprise", daemon=True).start()
    try:
        async with asyncio.timeout(timeout):
            return await answer
    except TimeoutError:
        return "timeout"


def _send(notification: Notification, guard: AddressGuard, timeout: float) -> str | int:
    _set_up()
    plugin = _plugin(notification.url)
    if plugin is None:
        return "failed"
    plugin.redirects = plugin.optional = False
    plugin.retry = 0
    plugin.socket_connect_timeout = min(timeout, _LONGEST_CONNECT)
    plugin.socket_read_timeout = timeout + 1  # the deadline comes first
    if isinstance(getattr(plugin, "headers", None), dict):  # json, xml and form: an endpoint of one's own
        plugin.headers["Idempotency-Key"] = notification.identity
    sender = apprise.Apprise(asset=plugin.asset)
    sender.add(plugin)
    _thread.guard, _thread.refused = guard, False
    try:
        result = sender.notify(
            body=notification.text,
            title=notification.title,
            notify_type=notification.level,
            body_format=apprise.NotifyFormat.TEXT,
        )
    finally:
        _thread.guard = None
    if result:
        return "sent"
    if _thread.refused:
        return "refused"
    return next(_statuses(result), "failed")


def _statuses(result: Iterable[Any]) -> Iterator[int]:
    for each in result:
        for entry in each.logs():
            if found := _STATUS.search(entry.message):
                yield int(found[1])


def _plugin(url: str) -> Any:
    asset = apprise.AppriseAsset(
        app_id=f"outbox-bridge/{__version__}",
        app_desc="Outbox Bridge",
        async_mode=False,  # in the thread that the guard watches
        http_redirects=False,
        interpret_emojis=False,
        pgp_autogen=False,
        pem_autogen=False,
        service_timeout=0,
    )
    return apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)


def _set_up() -> None:
    """Once per process, before anything is read or sent."""
    global _ready  # noqa: PLW0603  # of the process, as what it stands for is
    with _setting_up:
        if _ready:
            return
        library = logging.getLogger("apprise")
        library.propagate = False  # its entries hold addresses and messages
        library.addHandler(logging.NullHandler())
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # below, it logs paths, and so tokens
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"  # the other sinks ignore proxies anyway
        sys.addaudithook(_judge)
        with warnings.catch_warnings():  # its plugins import what the standard library is about to drop
            warnings.simplefilter("ignore", DeprecationWarning)
            _plugin("json://localhost")  # loads them all
        _ready = True


def _judge(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _CONNECTS:
        return
    guard: AddressGuard | None = getattr(_thread, "guard", None)
    if guard is None:
        return
    address = arguments[1]
    if not (isinstance(address, tuple) and guard.permits(str(address[0]))):
        _thread.refused = True
        raise PermissionError("this address may not be reached")
