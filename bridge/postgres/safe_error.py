"""Describe a server's error without row values.

Postgres puts row values into messages (`invalid input syntax for type integer: "secret"`), into DETAIL (`Failing row
contains (...)`, `Key (email)=(x) already exists`) and into CONTEXT. Logs, /status and the `cause` of a dead letter
are read by people who may not see the rows. Kept: SQLSTATE, names from the catalog, and the message only if the
server composes it from names alone.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors

from bridge.errors import BridgeError

# Classes (PostgreSQL manual, appendix A) whose messages name catalog objects, roles, settings and
# processes but no column values. Everything else, and everything raised inside a function, is rephrased.
_MESSAGE_WITHOUT_VALUES = (
    *("08", "0A", "25", "26", "28", "34", "3D", "3F"),
    *("40", "42", "53", "55", "57", "58"),
)
# Of class 42, these name catalog objects without a position in the statement: a missing privilege, and
# an ON CONFLICT without its constraint.
_NO_POSITION = ("42501", "42P10")
# ... and messages of the data class that are safe because all of the message matches.
_SAFE_DATA_MESSAGE = re.compile(
    r"value too long for type [a-z ]+\(\d+\)|(?:smallint|integer|bigint) out of range|numeric field overflow|"
    r"division by zero|unsupported Unicode escape sequence|"
    r'no partition of relation "[^"]*" found for row|new row for relation "[^"]*" violates partition constraint|'
    r'index row size \d+ exceeds [\w ]*maximum \d+ for index "[^"]*"'
)
_TYPE_NAMED = re.compile(r"invalid input syntax for type ([a-z][a-z ]*?)(?::|$)")
_ENUM_NAMED = re.compile(r'invalid input value for enum ([\w."]+):')
# The head of a CONTEXT line: the function's signature and line. Its remainder can quote statements.
_FUNCTION = re.compile(r'^PL/\w+ function (?:"[^"]*"|[\w.])+(?:\([\w\s,."\[\]]*\))?(?: line \d+)?')
_PASSWORD = re.compile(
    r"(?i)((?:password|passwd|pwd|sslpassword|token|secret|api_?key)\s*[=:]\s*)('(?:[^'\\]|\\.)*'|\"[^\"]*\"|[^\s&,;]+)"
)
_URL_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s/@:]*):[^\s@/]+@")
_DEEPEST = 3  # causes and members of a group that are followed


def mask_secrets(text: str) -> str:
    """Passwords of connection strings and URLs, tokens and keys become ***."""
    return _URL_USER.sub(r"\1:***@", _PASSWORD.sub(r"\1***", text))


def safe_message(error: BaseException) -> str:
    """One line without row values: for a log line, a status page or a dead letter's cause."""
    if isinstance(error, BridgeError):
        return str(error.args[0])
    if isinstance(error, psycopg.Error):
        return _server_message(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__} (its text is withheld, because it can contain row values)"


def with_state(error: psycopg.Error) -> str:
    """safe_message() with its SQLSTATE, said once."""
    said = safe_message(error)
    return said if not error.sqlstate or error.sqlstate in said else f"{said} (SQLSTATE {error.sqlstate})"


def safe_error(error: BaseException, *, depth: int = 0) -> dict[str, Any]:
    """The same as fields: error, message, and where they exist sqlstate, schema, table, column,
    constraint, type, where, reason, hint, frames (file:line function, without source text) and cause."""
    found: dict[str, Any] = {"error": type(error).__name__, "message": safe_message(error)}
    if isinstance(error, psycopg.Error):
        found |= _server_fields(error)
    elif isinstance(error, BridgeError):
        found |= {"reason": error.reason, "hint": error.hint or None}
    else:
        found["frames"] = [
            f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-6:]
        ] or None
    if depth < _DEEPEST:
        if isinstance(error, BaseExceptionGroup):
            found["members"] = [safe_error(one, depth=depth + 1) for one in error.exceptions[:_DEEPEST]]
        if error.__cause__ is not None:
            found["cause"] = safe_error(error.__cause__, depth=depth + 1)
    return {name: value for name, value in found.items() if value is not None}


def _server_fields(error: psycopg.Error) -> dict[str, Any]:
    diag = error.diag
    return {
        "sqlstate": error.sqlstate,
        "schema": diag.schema_name,
        "table": diag.table_name,
        "column": diag.column_name,
        "constraint": diag.constraint_name,
        "type": diag.datatype_name,
        "where": _function(diag.context),
    }


def _function(context: str | None) -> str | None:
    """The innermost function of a CONTEXT, or None."""
    for line in (context or "").splitlines():
        if match := _FUNCTION.match(line):
            return match.group()
    return None


def _server_message(error: psycopg.Error) -> str:
    state, diag = error.sqlstate, error.diag
    primary = diag.message_primary
    if state is None:  # from the client: a connection that failed, or a value that cannot be sent
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return mask_secrets(str(error).strip().partition("\n")[0])
        return f"the client refused a value or a statement ({type(error).__name__})"
    raised_by_user = state.startswith("P0") or (diag.source_function or "") == "exec_stmt_raise"
    in_function = _function(diag.context)
    if primary and not raised_by_user and not in_function:
        if state[:2] in _MESSAGE_WITHOUT_VALUES and not _may_name_a_value(state, diag):
            return mask_secrets(primary)
        if _SAFE_DATA_MESSAGE.fullmatch(primary):
            return primary
    where = f", in {in_function}" if in_function else ""
    return f"{_rephrased(state, primary or '', diag)}{where}"


def _may_name_a_value(state: str, diag: errors.Diagnostic) -> bool:
    """A value cast to regclass fails with `relation "VALUE" does not exist` without a position; a name in the
    statement fails with its position. Values are never written into a statement."""
    return state[:2] in ("42", "3F") and state not in _NO_POSITION and not diag.statement_position


def _rephrased(state: str, primary: str, diag: errors.Diagnostic) -> str:
    """The condition's name, with names from the catalog only."""
    if named := _TYPE_NAMED.match(primary):
        return f"not a valid {named.group(1)}"
    if named := _ENUM_NAMED.match(primary):
        return f"not a value of the enum {named.group(1)}"
    try:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", errors.lookup(state).__name__).lower()
    except KeyError:
        words = "a server error"
    table = ".".join(name for name in (diag.schema_name, diag.table_name) if name)
    names = [
        f"{kind} {name}"
        for kind, name in (
            ("column", diag.column_name),
            ("constraint", diag.constraint_name),
            ("type", diag.datatype_name),
            ("table", table),
        )
        if name
    ]
    return f"{words} ({', '.join([*names, f'SQLSTATE {state}'])})"
