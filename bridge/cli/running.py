"""What a command takes from a bridge that runs on this machine (observe/operators.py): the configuration it runs with,
when the file cannot be used here, and its status.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.errors import CannotConnect, ConfigError
from bridge.observe import operators
from bridge.observe.listen import INSTANCE_HEADER

if TYPE_CHECKING:
    from bridge.config.model import Admin, Config

_SECONDS = 4.0
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  where to ask, not to listen
_SECRETS = (Path("/etc/outbox-bridge/secrets.env"),)
_A_FILE = "FILE (the unit's EnvironmentFile, such as /etc/outbox-bridge/secrets.env)"
_NEAR = ("secrets.env", ".env")


def borrow(path: Path, error: ConfigError, *, unset_only: bool) -> Config:
    """The configuration for a command whose file cannot be used here: of this file with the values that the running
    bridge has, otherwise the one that it runs with. Says so on standard error.

    error: why not. unset_only: the file is right, and variables or files with secrets are not there. Raises an error
    that has the first one's text and says what to do: CannotConnect if no bridge has been found and only values are
    missing, otherwise ConfigError.
    """
    from bridge.config.load import again, load  # noqa: PLC0415  as in options.read_config
    from bridge.config.original import Original  # noqa: PLC0415

    bridges, hidden = operators.ask("config", _owner(path))
    ours = [one for one in bridges if _same(path, str(one.get("file", "")))]
    if not ours and path == Path("bridge.yaml") and not os.path.exists(path) and len(bridges) == 1:
        ours = bridges  # nobody said which
    if not ours:
        raise _not_found(path, error, bridges, hidden=hidden, unset_only=unset_only)
    one = ours[0]
    original = Original(one["file"], one["text"], one["variables"], one["files"])
    whose = f"the running bridge (pid {one['pid']}, {original.file})"
    if unset_only:
        try:
            config = load(path, {**os.environ, **original.variables})
        except ConfigError:
            pass
        else:
            click.echo(f"bridge: {_first(error)}; using the values that {whose} has", err=True)
            return config
    click.echo(f"bridge: {_first(error)}; using the configuration of {whose}", err=True)
    return again(original, {**os.environ, **original.variables}, original.files)


def follow_logins(path: Path) -> None:
    """Where the files have a password that the server does not take yet, or one that is half written, this command logs
    in as the bridge that runs this file does; it says so on standard error."""
    from bridge.postgres import login  # noqa: PLC0415  (loads psycopg)

    @cache
    def known() -> dict[login.Recipe, str]:
        bridges, _ = operators.ask("logins", _owner(path))
        ours = [one for one in bridges if _same(path, str(one.get("config", ""))) and one.get("logins")]
        if ours:
            click.echo(
                "bridge: the server refuses the login that is in the files; trying the one that the running bridge"
                f" (pid {ours[0]['pid']}) uses",
                err=True,
            )
        return {tuple(recipe): text for one in reversed(ours) for recipe, text in one["logins"]}

    login.others = known


def _by_socket(path: Path) -> dict[str, Any] | None:
    """The status of the bridge that runs this file, first of one that does not stand by; None: none was found."""
    bridges, _ = operators.ask("status", _owner(path))
    ours = [one for one in bridges if _same(path, str(one.get("config", ""))) and "streams" in one]
    ours.sort(key=lambda one: (all(each["phase"] == "standby" for each in one["streams"]), one["started_at"]))
    if not ours:
        return None
    others = [other["pid"] for other in ours[1:]]
    return {"running": True, **ours[0], **({"others": others} if others else {})}


def status_of(config: Config) -> dict[str, Any] | None:
    """The status of the bridge that runs with this configuration, asked by its socket or its port; None: none does.
    Raises BridgeError if it refuses us."""
    return _by_socket(Path(config.original.file)) or _by_port(config)


def who_listens(config: Config) -> str | None:
    """The identity of the bridge that answers on admin.listen (INSTANCE_HEADER); None: no bridge does."""
    answer = _get(config.admin, "/livez", {})  # no token: it may be another program
    return None if answer is None else answer[2]


def _by_port(config: Config) -> dict[str, Any] | None:
    """GET /status of the running bridge; None if none answers, or another configuration's: several on one machine may
    have the default port. Raises BridgeError if it refuses us."""
    from bridge.config.several import instance_of  # noqa: PLC0415
    from bridge.errors import BridgeError  # noqa: PLC0415

    admin, wanted = config.admin, instance_of(config)
    found = who_listens(config)
    if found is None or (found != wanted and found.partition("-")[0] == wanted.partition("-")[0]):
        return None
    headers = {"authorization": f"Bearer {admin.any_token}"} if admin.any_token else {}
    answer = _get(admin, "/status", headers)
    if answer is None:
        return None
    code, text, _ = answer
    if code == 401:
        raise BridgeError(
            f"the bridge on {admin.listen} refuses admin.token",
            hint="it runs with another configuration: give that one with -c, or restart the "
            "bridge (a reload does not change admin)",
        )
    try:
        state = json.loads(text)
    except ValueError:
        return None
    ours = code == 200 and isinstance(state, dict) and "streams" in state
    return {"running": True, **state} if ours else None


def _get(admin: Admin, path: str, headers: Mapping[str, str]) -> tuple[int, bytes, str | None] | None:
    """Status, body and identity of what answers on admin.listen; None: nothing does."""
    host = _EVERY_INTERFACE.get(admin.listen.host.strip("[]"), admin.listen.host.strip("[]"))
    connection = http.client.HTTPConnection(host, admin.listen.port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader(INSTANCE_HEADER)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _same(path: Path, other: str) -> bool:
    if not other:
        return False
    try:
        return os.path.abspath(path) == other or path.samefile(other)
    except OSError:
        return False


def _first(error: ConfigError) -> str:
    """The first of what is wrong, on one line."""
    lines = str(error.args[0]).splitlines()
    return (lines[1] if len(lines) > 1 else lines[0]).strip()


def _typed(path: Path) -> str:
    """The command as it was typed, with the file: sudo takes no BRIDGE_CONFIG along."""
    words = sys.argv[1:] or ["status"]
    given = any(word in ("-c", "--config") or word.startswith(("-c", "--config=")) for word in words)
    return shlex.join(["bridge", *words, *([] if given else ["-c", str(path)])])


def _denied(path: Path) -> bool:
    """Is the file another user's? Also one in a directory that this user may not enter."""
    try:
        path.stat()
        return not os.access(path, os.R_OK)
    except PermissionError:
        return True
    except OSError:
        return False


def _not_found(
    path: Path, error: ConfigError, bridges: list[dict[str, Any]], *, hidden: bool, unset_only: bool
) -> CannotConnect | ConfigError:
    command = _typed(path)
    fixes = []
    secrets = next(
        (each for each in (*_SECRETS, *(path.parent / name for name in _NEAR)) if os.path.exists(each)), None
    )
    if unset_only:
        readable = secrets is not None and os.access(secrets, os.R_OK)
        sudo = "" if secrets is None or readable else "sudo "
        file = _A_FILE if secrets is None else shlex.quote(str(secrets))
        fixes.append(f"{sudo}{command} --env-file {file}")
    if bridges:
        told = ", ".join(f"-c {shlex.quote(one['file'])} (pid {one['pid']})" for one in bridges)
        fixes.append(f"a bridge that runs here has another file: {told}")
    elif hidden:
        fixes.append(f"a bridge that runs here is another user's: sudo {command}")
    elif _denied(path):
        fixes.append(f"sudo {command}")
    elif not unset_only:
        fixes.append("correct the file; `bridge lint` shows every error and its place")
    else:
        fixes.append(
            "start the bridge: a command asks the one that runs with this file, as root or as its user"
        )
    message = f"{error.args[0]}\n  no running bridge was found that could be asked instead"
    kind = CannotConnect if unset_only else ConfigError
    return kind(message, hint="; or ".join(fixes))
