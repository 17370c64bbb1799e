"""Every connection of the bridge is opened here: psycopg's, sync and async, pools of them, and libpq's own (`pq`).

A profile (profiles.py) says what the connection is for and what must hold in it. Nothing of that travels in the
startup packet, where PgBouncer refuses it or drops it in silence. The first statement sets it, but only in the very
server process that the login named. Where another one answers, a pooler stands between:

- a use that needs a session of its own is refused when the pooler takes the server away between two statements
  (`target_pooled`), before anything is set on a server that strangers get next; else it is set as usual;
- for every other use the settings go with each transaction, and end with it. A statement outside of one gets a
  transaction of its own. That is right behind any pooler, so its kind need not be known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Self, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGconn

from bridge.errors import CannotConnect, Halt
from bridge.postgres import wire
from bridge.postgres.advice import advice
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

# A link on which nothing is acknowledged for so long is dead (half-open), whatever TCP thinks.
_KEEPALIVE = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "connect_timeout": str(CONNECT_SECONDS),
}
_PROBE_ROUNDS = 3
_PROBE_SECONDS = 5.0  # a pool of sessions may have no server left for the probe, and lets it wait


def complete(dsn: str, profile: Profile, part: str = "", **parameters: str) -> str:
    """The conninfo for this use, with our defaults for what the dsn leaves open."""
    given = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    ours = {"application_name": profile.name.format(part), "client_encoding": "UTF8", **parameters}
    if profile.connect_seconds is not None:
        ours["connect_timeout"] = str(profile.connect_seconds)
    return make_conninfo(**{**_KEEPALIVE, **given, **ours})


def cannot_connect(where: str, dsn: str, error: Exception | str) -> CannotConnect:
    """What libpq says, which names hosts and roles but no passwords, and what to do about that."""
    said = " ".join(str(error).split())
    return CannotConnect(f"cannot connect to {where}: {said}", hint=advice(said, dsn))


# --- opening them -----------------------------------------------------------------------------------------


def connect(dsn: str, profile: Profile, part: str = "", *, where: str = "") -> ProfiledConnection:
    """part: what the application_name says beside the use. where: the server in errors; the profile's by default.

    Raises CannotConnect, and Halt (target_pooled) where a pooler gives no session to a use that needs one.
    """
    where = where or profile.where
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
        if isinstance(error, psycopg.OperationalError):  # some poolers log in to the server only now
            raise cannot_connect(where, dsn, error) from None
        raise
    return connection


_Opened = TypeVar("_Opened", bound=AsyncProfiledConnection)


async def connect_async(dsn: str, profile: Profile, part: str = "") -> AsyncProfiledConnection:
    """connect() for asyncio."""
    return await _open_async(AsyncProfiledConnection, dsn, profile, part)


async def _open_async(kind: type[_Opened], dsn: str, profile: Profile, part: str) -> _Opened:
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
            step = await asyncio.to_thread(_next, settling, row)  # it may connect once more, and wait
        _settled(connection, lent=step)
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
    """A connection of libpq's own, not blocking, for a profile that needs a session. parameters: more of the conninfo.
    Raises as connect() does."""
    conninfo = complete(dsn, profile, part, **parameters)
    link = _link(conninfo, profile.where)
    try:
        settling = _settle(profile, conninfo, profile.where, link.backend_pid)
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
    """Connect, for at most connect_timeout a host.

    Not by PGconn.connect(), which holds the interpreter's lock as long as the server is silent: all of the process
    would stand still, health checks included.
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
        link.finish()
        raise cannot_connect(where, conninfo, message)
    link.nonblocking = 1
    return link


# --- settings, and poolers --------------------------------------------------------------------------------

_Answer = tuple[Any, ...] | None
_NO_ANSWER = f"no answer in {FIRST_ANSWER_SECONDS:.0f} s"
_PID = "select pg_catalog.pg_backend_pid()::text"


def _settle(profile: Profile, conninfo: str, where: str, login: int) -> Generator[str, _Answer, bool]:
    """Put the profile into force. Yields statements for the connection and takes the first row of each, if any; its
    value: whether the server is only lent. login: the process id that the login named."""
    if (yield profile.set_for_session(login)) is not None:
        return False
    if not profile.needs_session:
        yield f"begin; {profile.set_in_transaction()}"  # refused now rather than in the first statement
        yield "commit"
        return True
    if (yield from _is_shared(conninfo, where)):
        raise Halt(
            f"{where} is behind a pooler in transaction mode: two statements of one connection meet two servers, "
            "so nothing that a session is set to would hold",
            reason="target_pooled",
            hint="let this connection's dsn name the server itself, or a pool with pool_mode = session",
        )
    yield profile.set_for_session()
    return False


def _next(settling: Generator[str, _Answer, bool], answer: _Answer) -> str | bool:
    try:
        return settling.send(answer)
    except StopIteration as end:
        return bool(end.value)


def _is_shared(conninfo: str, where: str) -> Generator[str, _Answer, bool]:
    """Does the pooler take the server away between two statements? Another connection that is given our server, or
    takes it from us, proves it. Sets nothing."""
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
    """The first row that they give. Raises psycopg's errors, and TimeoutError."""
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


# --- pools ------------------------------------------------------------------------------------------------

_TAKE_SECONDS = 3600.0  # each attempt to connect ends by itself, and is told
_GIVE_UP_SECONDS = 5.0
"""A pool's back-off (1, 2, ... s) begins anew after so long: once the server is back, it is found soon."""


class Pool:
    """Connections of one profile that are kept, looked at before each use, and made again with back-off. Use it as a
    context manager, in the loop that it was opened in."""

    def __init__(
        self,
        dsn: str,
        profile: Profile,
        part: str = "",
        *,
        least: int = 1,
        most: int = 1,
        prepare: Callable[[AsyncProfiledConnection], Awaitable[None]] | None = None,
    ) -> None:
        """least, most: how many there are. prepare: what else a new connection needs; one that raises is not used."""
        from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415  what needs no pool does not load it

        told = self._told
        self._waiting: set[asyncio.Future[None]] = set()

        class Opened(AsyncProfiledConnection):
            @classmethod
            async def connect(cls, *_: Any, **_ignored: Any) -> Self:
                try:
                    connection = await _open_async(cls, dsn, profile, part)
                    if prepare is not None:
                        await _prepared(connection, prepare)
                except Exception as error:
                    told(error)
                    raise
                return connection

        self._pool = AsyncConnectionPool(
            connection_class=Opened,
            check=AsyncConnectionPool.check_connection,
            min_size=least,
            max_size=most,
            reconnect_timeout=_GIVE_UP_SECONDS,
            num_workers=most,
            open=False,
            name=profile.name.format(part),
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Those in use are closed when they come back."""
        await self._pool.close(timeout=1.0)

    def _told(self, error: Exception) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(error)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncProfiledConnection]:
        """One of them, for as long as the block lasts; one that is broken then is replaced. Raises what the next
        attempt to connect raises, as soon as it does: CannotConnect, Halt, or what `prepare` raised."""
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
                failed.exception()  # asyncio complains of one that nobody looked at


async def _prepared(
    connection: AsyncProfiledConnection, prepare: Callable[[AsyncProfiledConnection], Awaitable[None]]
) -> None:
    try:
        await prepare(connection)
    except BaseException:
        await connection.close()
        raise
