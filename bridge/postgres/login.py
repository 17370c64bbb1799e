"""Which connection string to log in with, and when: passwords are rotated, and a wrong one is not tried without end.

What a server refuses is read again from its files (`${file:...}`), and tried at once if they have another value by now;
from then on, every connection of the process uses it. A value that is in the files already, and that the server does
not take yet, costs nothing: the old one stays until it is refused. (libpq itself reads `passfile`, the service file and
the certificates at every connect.)

A command is a process of its own, and may begin when only the files are new: what its server refuses, it asks the
bridge that runs beside it for (`others`), whose login works.

A process has a dozen connections to a server, each with a back-off of its own. Where a login is refused, they share
one: fail2ban, an account lock and auth_delay count what all of them try. There is no SQLSTATE before a session exists,
and the server's message may be in any language (lc_messages), so a password that was sent counts as well as the words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bridge.attempts import NO_JITTER, Backoff, Retries
from bridge.config.from_files import FromFiles
from bridge.errors import CannotConnect
from bridge.postgres.advice import cause_of

_BACKOFF = Backoff(first=1.0, longest=30.0, jitter=NO_JITTER)
"""Between two logins that are refused. What is mended on the server is noticed within `longest`; a
password that is mended in a file, with the next attempt of any connection."""

_ELSEWHERE = frozenset(
    {"name", "database", "replication", "pooler", "connections", "starting", "port", "closed", "timeout"}
)
"""Causes (advice.py) that no other value of a file mends. Any other may be about the login, in any language."""

_REFUSED = frozenset({"password", "role", "login", "pg_hba"})
"""Causes for which the server is left alone."""


Recipe = tuple[str, ...]
"""How a connection string is made from files (FromFiles), without the name of the configuration."""

others: Callable[[], Mapping[Recipe, str]] | None = None
"""For a command: what connection strings a running bridge logs in with."""


@dataclass(slots=True)
class Login:
    """The state of one connection string, for all connections of this process that are given it.

    text: what to log in with. refused: the last refusal, for whoever asks before `again`, a time of time.monotonic().
    """

    given: str
    text: str
    refused: CannotConnect | None = None
    again: float = 0.0
    retries: Retries = field(default_factory=lambda: Retries(_BACKOFF))
    works: bool = False
    asked_others: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> str:
        """What to log in with. Raises CannotConnect, without a login, for as long as the server is to be left alone."""
        with self.lock:
            if self.refused is None or time.monotonic() >= self.again or self._changed():
                return self.text
            raise CannotConnect(str(self.refused.args[0]), hint=self.refused.hint)

    def failed(self, text: str, error: CannotConnect) -> str:
        """The attempt with `text` ended so. What to try at once; if there is nothing else, raises the error."""
        said = str(error.args[0])
        cause = cause_of(said)
        if cause is not None and cause.name in _ELSEWHERE:
            raise error
        with self.lock:
            if text != self.text or self._changed():  # another connection may have been faster
                return self.text
            refused = error.sent_password if cause is None else cause.name in _REFUSED
            if refused and self._others_know():
                return self.text
            self.works = False
            if refused and time.monotonic() >= self.again:
                self.again = time.monotonic() + self.retries.failed()
                self.refused = error
        raise error

    def worked(self) -> None:
        """A login with `text` has worked."""
        self.works = True
        if self.refused is not None:
            with self.lock:
                self.refused = None
                self.retries.worked()

    def _changed(self) -> bool:
        """Whether the files have another value than `text`, which is `text` then."""
        if not isinstance(self.given, FromFiles):
            return False
        try:
            fresh = self.given.reread()
        except ValueError:  # a file that is being replaced is away for a moment, or has nothing in it yet
            return False
        changed = fresh != self.text
        if changed:
            self.text, self.refused = fresh, None
            self.retries.worked()
        return changed

    def _others_know(self) -> bool:
        """Whether a running bridge logs in otherwise, which is `text` then. It is asked once."""
        if others is None or self.asked_others or not isinstance(self.given, FromFiles):
            return False
        self.asked_others = True
        known = others().get(self.given.recipe[1:])
        if known is None or known == self.text:
            return False
        self.text = known
        return True


_logins: dict[tuple[str, ...], Login] = {}
_making = threading.Lock()
_MOST = 1000  # reloads with other passwords; then the oldest is forgotten


def login_of(dsn: str) -> Login:
    """The one login of this process with this connection string."""
    known = (dsn, *(dsn.recipe if isinstance(dsn, FromFiles) else ()))
    with _making:
        login = _logins.get(known)
        if login is None:
            if len(_logins) >= _MOST:
                del _logins[next(iter(_logins))]
            login = _logins[known] = Login(dsn, str(dsn))
        return login


def in_use() -> dict[Recipe, str]:
    """The connection strings from files that servers take: what works now, whatever is in the files by now."""
    return {
        login.given.recipe[1:]: login.text
        for login in list(_logins.values())
        if isinstance(login.given, FromFiles) and login.works
    }


def try_again() -> None:
    """Somebody has mended something, and says so (SIGHUP): no login waits."""
    for login in list(_logins.values()):
        login.again = 0.0
