"""Why NATS cannot be reached or does not do what was asked, and the fix for each cause.

The cause is taken from the exception's type, from the server's words or from JetStream's error code
(nats-server/server/errors.json). Nothing of a message stands in a text from here.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors
import nats.js.errors

from bridge.bus.settings import MINIMUM_VERSION, BusSettings
from bridge.errors import BridgeError, CannotConnect, Halt, Retry

REFUSED = "bus_refused"
FULL = "bus_full"
AWAY = "bus_away"

NEEDED = ".".join(map(str, MINIMUM_VERSION))


@dataclass(frozen=True, slots=True)
class BusCause:
    """name: the doctor's check is nats_NAME. what: a sentence's end. fix: a command, a line of a file, or words."""

    name: str
    what: str
    fix: str


def cannot_connect(
    settings: BusSettings, server: str, error: BaseException, greeting: Mapping[str, Any]
) -> CannotConnect:
    """The error of a connection that did not come about. server: its address; of several, the last that was tried.
    greeting: what it said first (INFO), if it did."""
    cause = connect_cause(settings, server, error)
    if isinstance(error, ConnectionError | nats.errors.UnexpectedEOF | TimeoutError) and greeting.get(
        "tls_verify"
    ):
        cause = _client_certificate(
            settings
        )  # in TLS 1.3 it is judged after the handshake, and the server hangs up
    many = f" (and {len(settings.servers) - 1} more)" if len(settings.servers) > 1 else ""
    failure = CannotConnect(f"cannot connect to NATS at {place(server)}{many}: {cause.what}", hint=cause.fix)
    failure.sent_password = cause.name == "login"
    return failure


def place(server: str) -> str:
    """host:port of an address."""
    return server.partition("://")[2] or server


_OF_TYPE: tuple[tuple[type[BaseException], BusCause], ...] = (
    (
        nats.errors.SecureConnWantedError,
        BusCause(
            "plain",
            "the server does not offer TLS, and nothing was sent to it",
            "give the server a tls {{ cert_file, key_file }} block, or, on a network that you trust, remove {at}.tls",
        ),
    ),
    (
        socket.gaierror,
        BusCause(
            "name",
            "its name does not resolve on this machine",
            "correct {at}.servers; to check the DNS: getent hosts {host}",
        ),
    ),
    (
        ConnectionRefusedError,
        BusCause(
            "port",
            "nothing listens there",
            "start the server (nats-server -c FILE), or correct {at}.servers",
        ),
    ),
    (
        TimeoutError,
        BusCause(
            "timeout",
            "no answer",
            "a firewall drops the packets, the address is wrong, or the server expects TLS from the first byte "
            "(handshake_first in its tls block); to see which: nc -v {host} {port}",
        ),
    ),
)
_OF_WORDS = (
    (
        "maximum connections",
        BusCause(
            "connections",
            "it accepts no more connections",
            "raise max_connections in the server's file, or end idle clients: nats server report connections",
        ),
    ),
    (
        "empty response|json parse",
        BusCause(
            "protocol",
            "what answers there is not NATS, or it expects TLS from the first byte",
            "correct {at}.servers: the port for clients is 4222 unless the server's file says otherwise",
        ),
    ),
)


def connect_cause(settings: BusSettings, server: str, error: BaseException) -> BusCause:
    """The step of a connect that failed, of one server."""
    if isinstance(error, ssl.SSLError):
        return _tls_cause(settings, error)
    words = str(error).lower()
    if isinstance(error, nats.errors.Error) and "auth" in words:
        return _login_cause(settings)
    found = [cause for kind, cause in _OF_TYPE if isinstance(error, kind)]
    found += [cause for pattern, cause in _OF_WORDS if re.search(pattern, words)]
    host, _, port = place(server).rpartition(":")
    if found:
        fix = found[0].fix.format(at=f"connections.{settings.connection}", host=host, port=port)
        return BusCause(found[0].name, found[0].what, fix)
    return _file_cause(settings, error) or BusCause(
        "unknown",
        str(getattr(error, "strerror", None) or type(error).__name__),
        f"try the same address with: nats --server {server} server check connection",
    )


def _login_cause(settings: BusSettings) -> BusCause:
    at = f"connections.{settings.connection}"
    what, fix = {
        "password": (
            f"it does not take the password of user {settings.user}",
            f"correct {at}.user and password; the server has them in authorization or accounts (users: [...])",
        ),
        "token": (
            "it does not take the token",
            f"correct {at}.token; the server has it as authorization {{ token: ... }}",
        ),
        "nkey": (
            "it does not know the nkey",
            "add its public key to the server's users: [ { nkey: U... } ]; to see it: "
            f"nk -inkey {settings.nkey} -pubout",
        ),
        "credentials": (
            "it does not take the JWT: it has expired or was revoked, or its account is not the server's",
            f"write {settings.credentials} anew: nsc generate creds --name <user> > {settings.credentials}; to see "
            "what it says: nsc describe jwt --file " + str(settings.credentials),
        ),
        "none": (
            "it wants a login, and the configuration has none",
            f"add user and password, token, nkey or credentials to {at}",
        ),
    }[settings.credential]
    return BusCause("login", what, fix)


def _file_cause(settings: BusSettings, error: BaseException) -> BusCause | None:
    """A file that cannot be read, or holds no key: the nkeys library and nats-py raise whatever happened."""
    fix = f"correct the file of connections.{settings.connection}, or let the bridge's user read it"
    if isinstance(error, OSError):
        file = error.filename
        return BusCause("file", f"{file}: {str(error.strerror).lower()}", fix) if file else None
    file = settings.nkey or settings.credentials
    if file is None or isinstance(error, nats.errors.Error):
        return None
    kind = (
        "an nkey's seed (a line that begins with SU)"
        if settings.nkey
        else "a JWT and its seed, as nsc writes them"
    )
    return BusCause("file", f"{file} does not hold {kind}", fix)


# OpenSSL's verify codes (openssl-verification-options)
_EXPIRED, _HOST, _ADDRESS = 10, 62, 64


def _tls_cause(settings: BusSettings, error: ssl.SSLError) -> BusCause:
    at = f"connections.{settings.connection}.tls"
    shown = (
        "to see what the server has, on its machine: openssl x509 -noout -dates -issuer -subject -ext subjectAltName "
        "-in <cert_file>"
    )
    code = getattr(error, "verify_code", None)
    if code in (_HOST, _ADDRESS):
        return BusCause(
            "tls_name",
            "its certificate is for another host",
            f"use the host in servers that the certificate is issued for, or issue one for this host; {shown}",
        )
    if code == _EXPIRED:
        return BusCause(
            "tls_expired", "its certificate has expired", f"renew the server's certificate; {shown}"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        known = (
            f"not {settings.tls.ca}" if settings.tls and settings.tls.ca else "none that this machine trusts"
        )
        return BusCause(
            "tls_ca",
            f"the authority that signed its certificate is {known}",
            f"name that authority's file: {at}.ca; {shown}",
        )
    words = str(error).lower()
    if "alert" in words or "certificate required" in words:
        return _client_certificate(settings)
    if "key values mismatch" in words or "pem" in words:
        return BusCause(
            "tls_file",
            "a file of the certificate, its key or the authority cannot be used",
            f"{at}: cert and key have to be one pair in PEM, ca a certificate in PEM",
        )
    return BusCause("tls", "TLS cannot be agreed on", f"check {at} and the server's tls block; {shown}")


def _client_certificate(settings: BusSettings) -> BusCause:
    return BusCause(
        "tls_client",
        "it does not take the client certificate, or was given none",
        f"connections.{settings.connection}.tls.cert and key: a certificate that an authority in the server's ca_file "
        "has signed and that has not expired",
    )


# -- after the connect ---------------------------------------------------------------------------------

# nats-server/server/errors.json
_NOT_ENABLED, _NOT_ENABLED_ACCOUNT = 10076, 10039
_FULL_CODES = frozenset({10047, 10028, 10002, 10077})  # store, memory, account, a stream's limit


def problem(settings: BusSettings, error: BaseException, doing: str) -> BridgeError:
    """The error of something that was asked of a connected server. doing: `publish to orders`, for the message."""
    if isinstance(error, BridgeError):
        return error
    at = f"connections.{settings.connection}"
    where = f"NATS ({at}): {doing}"
    silent = isinstance(error, nats.js.errors.ServiceUnavailableError) and error.err_code is None
    if silent or isinstance(error, nats.js.errors.NoStreamResponseError | nats.errors.NoRespondersError):
        return Retry(
            f"{where}: nothing answers: JetStream is off there, has no leader at the moment, or no stream takes "
            "the subject",
            reason=AWAY,
            hint="nats server report jetstream; nats stream ls",
        )
    if isinstance(error, nats.js.errors.APIError):
        return _refused(settings, error, where)
    if isinstance(error, nats.errors.MaxPayloadError):
        return Halt(
            f"{where}: larger than the server's max_payload",
            reason=REFUSED,
            hint="raise max_payload in the server's file, at most 64MB: nats-server --signal reload",
        )
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return Retry(
            f"{where}: no answer",
            reason=AWAY,
            hint="the bridge tries again; nats server report jetstream shows nodes that are away",
        )
    return Retry(
        f"{where}: the connection was lost ({type(error).__name__})",
        reason=AWAY,
        hint="the bridge connects again by itself; if this continues: bridge doctor checks each connection",
    )


_HALTS = {
    10059: ("there is no such stream", "nats stream ls"),
    10074: ("{replicas} replicas need a cluster", "connections.{connection}.replicas: 1, or as many nodes"),
    10054: ("larger than the stream's max_msg_size", "nats stream edit <stream> --max-msg-size ..."),
}


def _refused(settings: BusSettings, error: nats.js.errors.APIError, where: str) -> BridgeError:
    code, words = error.err_code or 0, error.description or ""
    if code in (_NOT_ENABLED, _NOT_ENABLED_ACCOUNT):
        return no_jetstream(settings, account=code == _NOT_ENABLED_ACCOUNT)
    if code in _FULL_CODES or re.search(r"maximum .* exceeded|insufficient|no space", words):
        return Retry(
            f"{where}: the stream or the server's store is full ({words})",
            reason=FULL,
            hint="nats stream info <stream> shows the limits; raise them (nats stream edit <stream> --max-bytes ...), "
            "or max_file of the server, or let consumers work it off",
        )
    if code not in _HALTS and error.code == 503:
        return Retry(
            f"{where}: too few nodes are there ({words or 'no leader'})",
            reason=AWAY,
            hint="nats server report jetstream shows nodes that are away; the bridge tries again",
        )
    what, fix = _HALTS.get(code, (f"{words or 'refused'} (code {code})", "nats stream info <stream>"))
    named = {"replicas": settings.replicas, "connection": settings.connection}
    return Halt(f"{where}: {what.format(**named)}", reason=REFUSED, hint=fix.format(**named))


def no_jetstream(settings: BusSettings, *, account: bool) -> Halt:
    """JetStream is off, on the server or for the account."""
    where = "for this account" if account else "on the server"
    fix = (
        "give the account jetstream: enabled in the server's file (for a JWT: nsc edit account --name <account> "
        "--js-disk-storage 10G)"
        if account
        else "add a block to the server's file: jetstream { store_dir: /var/lib/nats, max_file: 10GB }"
    )
    return Halt(
        f"NATS (connections.{settings.connection}): JetStream is not enabled {where}",
        reason=REFUSED,
        hint=fix,
    )


def too_old(settings: BusSettings, version: str) -> Halt:
    """The server's version lacks what is needed."""
    return Halt(
        f"NATS (connections.{settings.connection}) is {version}; the bridge needs {NEEDED} or newer",
        reason=REFUSED,
        hint=f"upgrade nats-server to {NEEDED} or newer, one node after the other",
    )


def not_permitted(settings: BusSettings, doing: str, subject: str) -> Halt:
    """The server refused a subject to this user. doing: publish or subscription."""
    verb = "publish" if doing.startswith("publish") else "subscribe"
    who = f"user {settings.user}" if settings.user else "this login"
    what = f"{verb} to {subject}"
    return Halt(
        f"NATS (connections.{settings.connection}): {who} may not {what}",
        reason=REFUSED,
        hint=f"add it to the user's permissions in the server's file: {verb}: {{ allow: [\"{subject}\"] }}; for a JWT: "
        f'nsc edit user --name <user> --allow-{verb[:3]} "{subject}"',
    )
