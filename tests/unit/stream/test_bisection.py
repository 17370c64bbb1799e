"""Who is to blame for a refusal: a target that answers as a rule says, every unit in every state."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

from bridge.errors import Halt, Retry
from bridge.planning.plan import Column, TableShape, Write
from bridge.planning.spec import TableSpec
from bridge.postgres.target import Refused, Statement
from bridge.stream.bisection import Bisection
from tests.unit.pipeline.samples import event

SHAPE = TableShape("s", "t", {"v": Column("v", "text", "text")})
SPEC = TableSpec("d", "w", "s", "t", columns={"v": "$event.v"})


class _Diag:
    column_name = schema_name = table_name = constraint_name = datatype_name = source_function = None
    message_primary = "no"
    statement_position = None

    def __init__(self, context: str | None) -> None:
        self.context = context


class _Error(psycopg.Error):
    def __init__(self, sqlstate: str, context: str | None = None) -> None:
        super().__init__("no")
        self.sqlstate = sqlstate
        self._diag = _Diag(context)

    @property
    def diag(self) -> Any:
        return self._diag


class Target:
    """Statements in, refusals out: refuse(values of an insert) says with which error."""

    def __init__(self, refuse: Callable[[list[bytes]], psycopg.Error | None]) -> None:
        self.refuse = refuse
        self.applied: list[bytes] = []
        self._saved: dict[str, list[bytes]] = {}
        self.rolled_back = False

    def run(self, statements: Sequence[Statement]) -> None:
        for number, (text, parameters, _) in enumerate(statements):
            words = text.decode()
            if found := re.fullmatch(r"savepoint (\w+)", words):
                self._saved[found[1]] = list(self.applied)
            elif found := re.fullmatch(r"rollback to savepoint (\w+)", words):
                self.applied = list(self._saved[found[1]])
            elif words == "rollback":
                self.rolled_back = True
            elif words.startswith("insert"):
                values = re.findall(rb"v\d+", bytes(parameters[0] or b""))
                error = self.refuse(values)
                if error is not None:
                    raise Refused(number, error)
                self.applied += values


def dead(target: Target, count: int, recent: int | None = None) -> list[str]:
    events = [event({"v": f"v{n}"}, n) for n in range(1, count + 1)]
    write = Write(
        "p", SPEC, SHAPE, ("v",), events, [[b"v%d" % n for n in range(1, count + 1)]], list(range(count))
    )
    found = Bisection(target.run, [write], recent=lambda _: recent, judged=False).dead_letters()
    return [letter.code for letter in found]


def bad(*names: bytes, code: str = "42601", context: str | None = None) -> Callable[[list[bytes]], Any]:
    return lambda values: _Error(code, context) if set(names) & set(values) else None


ALL = tuple(b"v%d" % n for n in range(1, 9))
IN_FUNCTION = "PL/pgSQL function t.f() line 1 at EXECUTE"


@pytest.mark.parametrize("code", ["42601", "XX000", "42P01", "22P02", "0A000", "42501"])
@pytest.mark.parametrize("context", [None, IN_FUNCTION])
def test_what_neighbours_pass_is_the_values(code: str, context: str | None) -> None:
    target = Target(bad(b"v3", b"v7", code=code, context=context))
    assert dead(target, 8) == [code, code]
    assert target.applied == [b"v1", b"v2", b"v4", b"v5", b"v6", b"v8"]


@pytest.mark.parametrize("code", ["42601", "XX000", "42P01"])
def test_what_passes_without_rows_is_the_values_even_alone(code: str) -> None:
    assert dead(Target(bad(b"v1", code=code)), 1) == [code]


@pytest.mark.parametrize(
    ("code", "context"), [("42P01", IN_FUNCTION), ("42501", None), ("42501", IN_FUNCTION)]
)
def test_what_every_unit_fails_with_halts(code: str, context: str | None) -> None:
    target = Target(bad(*ALL, code=code, context=context))
    with pytest.raises(Halt):
        dead(target, 8)
    assert target.rolled_back


def test_a_statement_that_fails_without_rows_halts_at_once() -> None:
    asked: list[list[bytes]] = []

    def refuse(values: list[bytes]) -> psycopg.Error | None:
        asked.append(values)
        return _Error("42P01")

    with pytest.raises(Halt):
        dead(Target(refuse), 8)
    assert asked == [[]]


def test_an_internal_error_of_the_statement_itself_is_tried_again() -> None:
    with pytest.raises(Retry):
        dead(Target(lambda _: _Error("XX000")), 8)


def test_one_that_fails_alone_where_others_passed_before_is_a_dead_letter() -> None:
    rule = bad(*ALL, code="42P01", context=IN_FUNCTION)
    assert dead(Target(rule), 1, recent=0) == ["42P01"]
    with pytest.raises(Halt):
        dead(Target(rule), 1, recent=2)
    with pytest.raises(Halt):
        dead(Target(rule), 8, recent=0)
