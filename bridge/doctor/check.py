"""One line of doctor's report: what was checked, the result, and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["ok", "warn", "error"]
Kind = Literal["", "sql", "command", "config", "advice"]


@dataclass(frozen=True, slots=True)
class Check:
    """level: an error stops delivery or could lose events; a warning reduces safety or convenience. where: source, a
    connection's name, or bridge. check: the check's name. fix: of kind `sql` (run at `where`, one statement per
    line, by its owner or an administrator), `command` (in a shell), `config` (a change of bridge.yaml) or `advice`.
    unreachable: the server could not be asked."""

    level: Severity
    where: str
    check: str
    message: str
    fix: str = ""
    kind: Kind = ""
    unreachable: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "where": self.where,
            "check": self.check,
            "message": self.message,
            "fix": self.fix,
            "fix_kind": self.kind,
        }


def ok(where: str, check: str, message: str) -> Check:
    return Check("ok", where, check, message)


def kind_of(fix: str) -> Kind:
    """The kind of a fix from another module: SQL, a command of ours, or advice."""
    if "<" in fix or "   or" in fix:
        return "advice"
    if fix.startswith("bridge "):
        return "command"
    return "sql" if fix.rstrip().endswith(";") else "advice"
