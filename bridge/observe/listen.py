"""Sockets to listen on, for the admin server and the ingress: bound before a stream starts, served when it has begun.

uvicorn would exit the process if a port is in use; here that is an error that names the key to change. No server is
imported.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from bridge.errors import ConfigError

INSTANCE_HEADER = "outbox-bridge-instance"
"""On every answer, a refusal too: which bridge this is (config/source.py). `bridge doctor` knows its own by it."""


def bind(host: str, port: int, key: str) -> socket.socket:
    """A listening socket. Raises ConfigError naming `host:port` and the configuration `key`; its cause is the
    system's error."""
    try:
        return _listening(host, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {_address(host, port)}: {getattr(error, 'strerror', None) or error}",
            hint=f"choose another address in `{key}`{_advice(error, port)}",
        ) from error


def is_loopback(host: str) -> bool:
    """True for localhost and the addresses that only this machine reaches."""
    host = host.strip("[]")
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_taken(error: ConfigError) -> bool:
    """Whether bind() failed because another program listens there: it may end."""
    return getattr(error.__cause__, "errno", None) == errno.EADDRINUSE


def _listening(host: str, port: int) -> socket.socket:
    """As socket.create_server() makes one, whose error repeats the address, and hides that a name has none."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        made.listen(128)
    except BaseException:
        made.close()
        raise
    return made


def _advice(error: Exception, port: int) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f", or find who listens there: ss -ltnp 'sport = :{port}'"
    if number in (errno.EACCES, errno.EPERM):
        return ": a port of 1024 or more needs no rights"
    if number == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return ": one that this machine has (ip -brief address)"
    return ""


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
