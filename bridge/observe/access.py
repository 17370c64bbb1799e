"""Who may use the admin server: tokens, sessions of browsers, and what each may do.

A token is sent as `Authorization: Bearer`, as the password of HTTP Basic, or typed into the sign-in form, which begins
a session. What changes something needs an operator's token, sent as Bearer, or an operator's session and its CSRF
token: another site can make a browser send neither a bearer header nor that token. Basic is for reading only, because a
browser repeats it to whoever asks.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from typing import Literal, Protocol

from starlette.datastructures import Headers

from bridge.observe.listen import is_loopback

Role = Literal["viewer", "operator"]

SESSION_SECONDS = 12 * 3600.0
"""A working day: then it is to be signed in again."""
SESSIONS = 200
"""At a time; the oldest ends first."""


class Granted(Protocol):
    """A token of the configuration."""

    @property
    def token(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def show_values(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Person:
    """name: the token's in bridge.yaml, which the audit keeps. show_values: of events."""

    name: str
    role: Role
    show_values: bool = False


ANYBODY_HERE = Person("local", "viewer")
"""Whoever reaches a loopback address, where there is no token."""
ADMIN = "admin"
"""The name of who has admin.token: it reads, as Prometheus does."""


@dataclass(frozen=True, slots=True)
class Session:
    """csrf: what a form of this session sends along."""

    person: Person
    csrf: str
    ends: float


@dataclass(frozen=True, slots=True)
class Visit:
    """Who asks, and how. session: None where the request itself has the token."""

    person: Person
    way: Literal["bearer", "basic", "session", "loopback"]
    session: Session | None = None

    @property
    def csrf(self) -> str:
        return "" if self.session is None else self.session.csrf

    @property
    def may_act(self) -> bool:
        """Also a session's form must prove where it comes from: see proves()."""
        return self.person.role == "operator" and self.way in ("bearer", "session")

    def proves(self, csrf: str, headers: Headers) -> bool:
        """Does the request come from a page of ours?"""
        if self.session is None:
            return self.way == "bearer"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        return hmac.compare_digest(csrf.encode(), self.session.csrf.encode())


@dataclass(slots=True)
class Access:
    """The tokens of the configuration, and the sessions of this process. A restart ends them."""

    token: str | None = field(default=None, repr=False)
    tokens: Mapping[str, Granted] = field(default_factory=dict, repr=False)
    cookie: str = "outbox_bridge"
    clock: Callable[[], float] = time.monotonic
    _sessions: dict[str, Session] = field(default_factory=dict, repr=False)

    @property
    def is_guarded(self) -> bool:
        return self.token is not None or bool(self.tokens)

    def visit(self, headers: Headers) -> Visit | None:
        """None: nobody that we know."""
        if not self.is_guarded:
            return Visit(ANYBODY_HERE, "loopback") if _names_loopback(headers) else None
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (person := self._known(value.strip())):
            return Visit(person, "bearer")
        if scheme.lower() == "basic":
            with contextlib.suppress(binascii.Error, ValueError):
                given = base64.b64decode(value.strip(), validate=True).partition(b":")[2]
                if person := self._known(given.decode()):
                    return Visit(person, "basic")
        if session := self._session(headers):
            return Visit(session.person, "session", session)
        return None

    def sign_in(self, token: str) -> str | None:
        """The cookie of a new session; None: no such token."""
        person = self._known(token.strip())
        if person is None:
            return None
        while len(self._sessions) >= SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        secret = secrets.token_urlsafe(32)
        ends = self.clock() + SESSION_SECONDS
        self._sessions[_digest(secret)] = Session(person, secrets.token_urlsafe(32), ends)
        return f"{self.cookie}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS:.0f}"

    def sign_out(self, headers: Headers) -> str:
        """The cookie that ends the session."""
        for secret in _cookies(headers, self.cookie):
            self._sessions.pop(_digest(secret), None)
        return f"{self.cookie}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"

    def _session(self, headers: Headers) -> Session | None:
        for secret in _cookies(headers, self.cookie):
            name = _digest(secret)
            session = self._sessions.get(name)
            if session is not None and session.ends > self.clock():
                return session
            self._sessions.pop(name, None)
        return None

    def _known(self, token: str) -> Person | None:
        """Compares with each, whatever the first ones say, so that the time tells nothing."""
        given = token.encode()
        found = None
        if self.token is not None and hmac.compare_digest(given, self.token.encode()):
            found = Person(ADMIN, "viewer")
        for name, one in self.tokens.items():
            if hmac.compare_digest(given, one.token.encode()):
                found = Person(name, one.role, one.show_values)
        return found


def _digest(secret: str) -> str:
    """What is kept of it."""
    return sha256(secret.encode()).hexdigest()


def _cookies(headers: Headers, name: str) -> Iterator[str]:
    with contextlib.suppress(CookieError):
        for called, morsel in SimpleCookie(headers.get("cookie", "")).items():
            if called == name and morsel.value:
                yield morsel.value


def _names_loopback(headers: Headers) -> bool:
    """A web page can read this server through a host name of its own that resolves to 127.0.0.1: that name is no
    loopback."""
    host = headers.get("host", "")
    if host.startswith("["):
        return is_loopback(host.partition("]")[0] + "]")
    return is_loopback(host.rpartition(":")[0] if ":" in host else host)
