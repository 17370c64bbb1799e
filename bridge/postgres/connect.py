"""Opens every connection of the bridge: psycopg's, sync and async, pools of them, and libpq's own (`pq`).

A profile (profiles.py) names a connection's use and its settings. No setting is sent in the startup packet, because
PgBouncer refuses or ignores it there. The first statement makes the settings, but only if it runs in the server
process that the login named. If it runs in another one, a pooler is in between:

- For a profile that needs a session, the settings are made if the pooler gives one. If it can change the server
  process between two statements, the connection is refused (`target_pooled`) before anything is set, because other
  clients get the same server process next.
- For every other profile, the settings are made in each transaction and end with it. A statement outside of a
  transaction gets one of its own. This is right for any pooler, so its mode does not matter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import replace
from typing import Any, Self, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGconn

from bridge.errors import CannotConnect, Halt
from bridge.postgres import wire
from bridge.postgres.advice import advice
from bridge.postgres.login import login_of
from bridge.postgres.profiled import (
    FIRST_ANSWER_SECONDS,
    AsyncProfiledConnection,
    AsyncProfiledCursor,
    ProfiledConnection,
    ProfiledCursor,
)
from bridge.postgres.profiles import Profile

CONNECT_SECONDS = 10
"""Per host, where the dsn has no connect_timeout."""

# A link without an acknowledgement for this long is dead (half-open).
_KEEPALIVE = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "connect_timeout": str(CONNECT_SECONDS),
}
_PROBE_ROUNDS = 3
_PROBE_SECONDS = 5.0  # a pool in session mode may have no free server, and the probe waits


def complete(dsn: str, profile: Profile, part: str = "", **parameters: str) -> str:
    """The conninfo for this profile, with our defaults for parameters that the dsn does not have."""
    given = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    ours = {"application_name": profile.session_name(part), "client_encoding": "UTF8", **parameters}
    if profile.connect_seconds is not None:
        ours["connect_timeout"] = str(profile.connect_seconds)
    return make_conninfo(**{**_KEEPALIVE, **given, **ours})


def cannot_connect(
    where: str, dsn: str, error: Exception | str, *, sent_password: bool = False
) -> CannotConnect:
    """libpq's message, which names hosts and roles but no passwords, and its fix."""
    said = " ".join(str(error).split())
    found = CannotConnect(f"cannot connect to {where}: {said}", hint=advice(said, dsn))
    link = error.pgconn if isinstance(error, psycopg.Error) else None
    found.sent_password = sent_password or (link is not None and link.used_password)
    return found


def connect(dsn: str, profile: Profile, part: str = "", *, where: str = "") -> ProfiledConnection:
    """part: for the profile's application_name. where: the server's name in errors, if not the profile's.

    Raises CannotConnect, and Halt (target_pooled) if a pooler gives no session and the profile needs one.
    """
    return _logged_in(dsn, lambda text: _connect(text, profile, part, where or profile.where))


_Made = TypeVar("_Made")


def _logged_in(dsn: str, attempt: Callable[[str], _Made]) -> _Made:
    """What the attempt makes of the connection string that is valid by now. Raises its error."""
    login = login_of(dsn)
    text = login.begin()
    while True:
        try:
            made = attempt(text)
        except CannotConnect as error:
            text = login.failed(text, error)
        else:
            login.worked()
            return made


def _connect(dsn: str, profile: Profile, part: str, where: str) -> ProfiledConnection:
    conninfo = complete(dsn, profile, part)
    try:
        connection = ProfiledConnection.connect(
            conninfo, autocommit=True, prepare_threshold=None, cursor_factory=ProfiledCursor
        )
    except psycopg.OperationalError as error:
        raise cannot_connect(where, dsn, error) from None
    try:
        connection.profile = profile
        settling = _settle(profile, conninfo, where, connection.info.backend_pid)
        step = _next(settling, None)
        while isinstance(step, str):
            cursor = connection.execute(step.encode())
            step = _next(settling, cursor.fetchone() if cursor.description else None)
        _settled(connection, lent=step)
    except BaseException as error:
        connection.close()
        if isinstance(error, psycopg.OperationalError):  # a pooler may log in to the server only now
            raise cannot_connect(where, dsn, error) from None
        raise
    return connection


Prepare = Callable[[AsyncProfiledConnection], Awaitable[None]]
_Opened = TypeVar("_Opened", bound=AsyncProfiledConnection)


async def _logged_in_async(dsn: str, attempt: Callable[[str], Awaitable[_Opened]]) -> _Opened:
    """As _logged_in()."""
    login = login_of(dsn)
    text = login.begin()
    while True:
        try:
            made = await attempt(text)
        except CannotConnect as error:
            text = login.failed(text, error)
        else:
            login.worked()
            return made


async def _connect_async(
    kind: type[_Opened], dsn: str, profile: Profile, part: str, prepare: Prepare | None
) -> _Opened:
    conninfo = complete(dsn, profile, part)
    try:
        connection = await super(AsyncProfiledConnection, kind).connect(
            conninfo, autocommit=True, prepare_threshold=None, cursor_factory=AsyncProfiledCursor
        )
    except psycopg.OperationalError as error:
        raise cannot_connect(profile.where, dsn, error) from None
    try:
        connection.profile = profile
        settling = _settle(profile, conninfo, profile.where, connection.info.backend_pid)
        step = _next(settling, None)
        while isinstance(step, str):
            cursor = await connection.execute(step.encode())
            row = await cursor.fetchone() if cursor.description else None
            step = await asyncio.to_thread(_next, settling, row)  # it may open a second connection, and wait
        _settled(connection, lent=step)
        if prepare is not None:
            await prepare(connection)
    except BaseException as error:
        await connection.close()
        if isinstance(error, psycopg.OperationalError):
            raise cannot_connect(profile.where, dsn, error) from None
        raise
    return connection


def _settled(connection: ProfiledConnection | AsyncProfiledConnection, *, lent: bool) -> None:
    profile = connection.profile
    connection.lent = lent
    connection.answer_seconds = profile.answer_seconds
    if profile.prepares and not lent:
        connection.prepare_threshold = 5


def connect_pq(dsn: str, profile: Profile, part: str = "", **parameters: str) -> PGconn:
    """A nonblocking connection of libpq's own, with a session. parameters: of the conninfo. Raises as connect()."""
    return _logged_in(dsn, lambda text: _connect_pq(text, profile, part, **parameters))


def _connect_pq(dsn: str, profile: Profile, part: str, **parameters: str) -> PGconn:
    conninfo = complete(dsn, profile, part, **parameters)
    link = _link(conninfo, profile.where)
    try:
        settling = _settle(replace(profile, needs_session=True), conninfo, profile.where, link.backend_pid)
        step = _next(settling, None)
        while isinstance(step, str):
            step = _next(settling, _ask(link, step, FIRST_ANSWER_SECONDS))
    except BaseException as error:
        link.finish()
        if isinstance(error, psycopg.OperationalError | TimeoutError):
            raise cannot_connect(profile.where, dsn, str(error) or _NO_ANSWER) from None
        raise
    return link


def _link(conninfo: str, where: str) -> PGconn:
    """Connect, with at most connect_timeout per host.

    Not with PGconn.connect(), which holds the interpreter's lock while the server is silent: the whole process would
    block, health checks included.
    """
    given = conninfo_to_dict(conninfo)
    hosts = 1 + str(given.get("host") or "").count(",")
    patience = int(given["connect_timeout"] or 0) or CONNECT_SECONDS
    end = wire.deadline(hosts * patience + (hosts - 1) * 20)  # tcp_user_timeout leads on to the next host
    link = pq.PGconn.connect_start(conninfo.encode())
    status: int = pq.PollingStatus.WRITING if link.status != pq.ConnStatus.BAD else pq.PollingStatus.FAILED
    while status in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
        left = end - wire.deadline(0)
        if left <= 0:
            break
        socket = [link.socket]
        reading = status == pq.PollingStatus.READING
        wire.wait(socket if reading else [], [] if reading else socket, left)
        status = link.connect_poll()
    if status != pq.PollingStatus.OK:
        failed = status == pq.PollingStatus.FAILED
        message = link.get_error_message() if failed else "connection timeout expired"
        sent_password = failed and link.used_password
        link.finish()
        raise cannot_connect(where, conninfo, message, sent_password=sent_password)
    link.nonblocking = 1
    return link


_Answer = tuple[Any, ...] | None
_NO_ANSWER = f"no answer in {FIRST_ANSWER_SECONDS:.0f} s"
_PID = "select pg_catalog.pg_backend_pid()::text"


def _settle(profile: Profile, conninfo: str, where: str, login: int) -> Generator[str, _Answer, bool]:
    """Make the profile's settings. Yields statements for the connection, and is sent the first row of each, if any.
    Returns whether a pooler only lends the server. login: the process id that the login named."""
    if (yield profile.set_for_session(login)) is not None:
        return False
    if not profile.needs_session:
        yield f"begin; {profile.set_in_transaction()}"  # fails now, not at the first use
        yield "commit"
        return True
    if (yield from _is_shared(conninfo, where)):
        raise Halt(
            f"{where} is behind a pooler in transaction mode: two statements of one connection can run in two "
            "server processes, so the settings of a session would not apply",
            reason="target_pooled",
            hint="change this connection's dsn to the server itself, or to a pool with pool_mode = session",
        )
    yield profile.set_for_session()
    return False


def _next(settling: Generator[str, _Answer, bool], answer: _Answer) -> str | bool:
    try:
        return settling.send(answer)
    except StopIteration as end:
        return bool(end.value)


def _is_shared(conninfo: str, where: str) -> Generator[str, _Answer, bool]:
    """Can the pooler change the server between two statements? A second connection that gets our server, or takes it
    from us, proves it. Sets nothing."""
    ours = yield _PID
    for _ in range(_PROBE_ROUNDS):
        other = _link(conninfo, where)
        try:
            theirs: _Answer = None
            with contextlib.suppress(TimeoutError):
                theirs = _ask(other, f"begin; {_PID}", _PROBE_SECONDS)
            if theirs == ours or (yield _PID) != ours:
                return True
        except psycopg.OperationalError as error:
            if "statement pooling mode" in str(error):
                return True
            raise
        finally:
            other.finish()
    return False


def _ask(link: PGconn, statements: str, seconds: float) -> _Answer:
    """The first row of the result, if any. Raises psycopg's errors, and TimeoutError."""
    link.send_query(statements.encode())
    end = wire.deadline(seconds)
    row: _Answer = None
    while True:
        while link.is_busy():
            left = end - wire.deadline(0)
            if left <= 0:
                raise TimeoutError
            wire.wait([link.socket], [], left)
            wire.consume(link)
        result = link.get_result()
        if result is None:
            return row
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result)
        if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples and row is None:
            cells = (result.get_value(0, n) for n in range(result.nfields))
            row = tuple(None if cell is None else cell.decode() for cell in cells)


_TAKE_SECONDS = 3600.0  # not the limit: each attempt to connect ends earlier, and its error is raised
_GIVE_UP_SECONDS = 5.0
"""psycopg-pool's back-off (1, 2, ... s) starts again then, so that a restart is noticed soon."""


class Pool:
    """Keeps async connections of one profile, checks them before each use, and reconnects with a back-off. It is a
    context manager."""

    def __init__(
        self,
        dsn: str,
        profile: Profile,
        part: str = "",
        *,
        least: int = 1,
        most: int = 1,
        prepare: Prepare | None = None,
    ) -> None:
        """least, most: the number of connections. prepare: called with each new one; if it raises, it is closed."""
        from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415  only for those that use a pool

        failed = self._failed
        self._waiting: set[asyncio.Future[None]] = set()

        class Opened(AsyncProfiledConnection):
            @classmethod
            async def connect(cls, *_: Any, **_ignored: Any) -> Self:
                try:
                    return await _logged_in_async(
                        dsn, lambda text: _connect_async(cls, text, profile, part, prepare)
                    )
                except Exception as error:
                    failed(error)
                    raise

        self._pool = AsyncConnectionPool(
            connection_class=Opened,
            check=AsyncConnectionPool.check_connection,
            min_size=least,
            max_size=most,
            reconnect_timeout=_GIVE_UP_SECONDS,
            num_workers=most,
            open=False,
            name=profile.session_name(part),
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Connections in use are closed when they are returned."""
        await self._pool.close(timeout=1.0)

    def _failed(self, error: Exception) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(error)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncProfiledConnection]:
        """A connection for the block; a closed one is replaced afterwards. If there is none and the next attempt to
        connect fails, raises its error at once: CannotConnect, Halt, or that of `prepare`."""
        connection = await self._take()
        try:
            yield connection
        finally:
            await self._pool.putconn(connection)

    async def _take(self) -> Any:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(failed)
        taking: asyncio.Future[Any] = asyncio.ensure_future(self._pool.getconn(timeout=_TAKE_SECONDS))
        try:
            await asyncio.wait({taking, failed}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                await failed
            return taking.result()
        except BaseException:
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError, psycopg.Error):
                await self._pool.putconn(await taking)
            raise
        finally:
            self._waiting.discard(failed)
            if not failed.cancel():
                failed.exception()  # asyncio warns about an exception that is never read
