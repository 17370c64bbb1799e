"""Can the bridge listen at the configured addresses? If an address is in use: by this bridge?

A bridge identifies itself in every answer (INSTANCE_HEADER), without authentication: no secret, such as admin.token,
is sent to what may be another program.
"""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Iterator

from bridge.doctor.check import Check, ok
from bridge.errors import ConfigError
from bridge.observe.listen import INSTANCE_HEADER, bind
from bridge.quantity import Listen

_SECONDS = 2.0
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where to ask, not to listen


def listens(key: str, listen: Listen, instance: str) -> Iterator[Check]:
    """Is the address of `key` free, or does the bridge of this configuration answer there?"""
    try:
        bind(listen.host, listen.port, key).close()
    except ConfigError as error:
        if getattr(error.__cause__, "errno", None) == errno.EADDRINUSE:
            yield _taken(key, listen, instance, error)
        else:
            yield _refused(key, str(error.args[0]), error)
    else:
        yield ok("bridge", key, f"{listen} is free")


def _taken(key: str, listen: Listen, instance: str, error: ConfigError) -> Check:
    """The address is in use: which program listens there?"""
    try:
        found = _instance_of(listen)
    except (OSError, http.client.HTTPException) as failure:
        return _refused(key, _no_bridge(listen, failure), error)
    if found is None:
        return _refused(key, _no_bridge(listen), error)
    if found == instance:
        return ok("bridge", key, f"this bridge runs and answers on {listen}")
    if found.partition("-")[0] != instance.partition("-")[0]:
        said = f"a bridge of another version answers on {listen}: it is unknown whose it is"
        fix = f"restart it with this version; if it is not this one, choose another address in `{key}`"
        return Check("warn", "bridge", key, said, fix, "advice")
    said = f"another bridge answers on {listen}, with another source or slot"
    fix = f"choose another address in `{key}`; if it is this one and `source` has changed since its start, restart it"
    return Check("error", "bridge", key, said, fix, "config")


def _no_bridge(listen: Listen, failure: Exception | None = None) -> str:
    if isinstance(failure, TimeoutError):
        return (
            f"{listen} is in use, and the program that listens there does not answer within {_SECONDS:.0f} s"
        )
    if isinstance(failure, ConnectionRefusedError):
        return f"{listen} overlaps an address of this machine where another program listens on port {listen.port}"
    if isinstance(failure, ConnectionError):
        return f"{listen} is in use, and its connections are closed, as a bridge does when it has too many"
    return f"another program listens on {listen}"


def _refused(key: str, said: str, error: ConfigError) -> Check:
    return Check("error", "bridge", key, said, error.hint, "config")


def _instance_of(listen: Listen) -> str | None:
    """The identity that the listening program reports; None: it answers HTTP and is not a bridge."""
    host = _EVERY_INTERFACE.get(listen.host, listen.host)
    connection = http.client.HTTPConnection(host, listen.port)
    # of the family that the bridge listens with: another program may have this port of localhost on the other one
    connection.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        connection.sock.settimeout(_SECONDS)
        connection.sock.connect((host, listen.port))
        connection.request("GET", "/livez")
        return connection.getresponse().getheader(INSTANCE_HEADER)
    finally:
        connection.close()
