"""Which test runs what the program prints to be typed: SQL, and commands with arguments.

What is printed and stands in neither list fails here: run it in a test, as it is printed, and name the test.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.fixes import ELSEWHERE, RUN, begin, missing, note
from tests.support.printed import typed

TESTS = Path(__file__).parents[1]


def test_everything_that_is_printed_is_run_by_a_test() -> None:
    printed, told = typed(), RUN.keys() | ELSEWHERE.keys()
    assert {one: where for one, where in printed.items() if one not in told} == {}
    assert told - printed.keys() == set(), "it is printed no more"


def test_the_tests_that_are_named_exist() -> None:
    for name in set(RUN.values()):
        path, _, function = name.partition("[")[0].partition("::")
        tree = ast.parse((TESTS / path).read_text())
        assert function in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}, name


def test_what_is_typed_was_printed_before() -> None:
    """`typed` is given what a program said, never a text of the test's own."""
    written = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "typed"
        and any(isinstance(one, ast.Constant | ast.JoinedStr) for one in node.args[:1])
    ]
    assert written == []


def test_no_fix_is_told_to_be_run_and_not_to_be_run() -> None:
    assert RUN.keys() & ELSEWHERE.keys() == set()
    assert len(ELSEWHERE) <= 11, "run it in a test"


def test_a_command_that_was_begun_otherwise_was_not_run() -> None:
    test = "integration/ops/test_printed_run.py::test_commands_that_are_printed_are_run_as_printed"
    begin()
    for line in ("bridge dead retry --cause CODE", "bridge explain", "bridge dead show ID --json"):
        note(line)
    left = missing(f"tests/{test}")
    assert {"bridge dead retry --cause x --dry-run", "bridge explain x", "bridge dead show ID"} <= {*left}
    note("bridge dead retry --cause contract --dry-run   (what would happen)")
    note("bridge explain 01a2")
    assert {*left} - {*missing(f"tests/{test}")} == {
        "bridge dead retry --cause x --dry-run",
        "bridge explain x",
    }
    begin()


def test_a_test_that_runs_its_fix_no_more_is_found() -> None:
    fix, test = "alter table x set logged", RUN["alter table x set logged"]
    begin()
    assert missing(f"tests/{test}") == [fix]
    note("alter table t.x set unlogged;")
    assert missing(f"tests/{test}") == [fix]
    note("alter table t.x set logged, alter column c drop not null;")  # a beginning is not the whole
    assert missing(f"tests/{test}") == [fix]
    note("alter table\n  t.x set logged;")
    assert missing(f"tests/{test}") == []
    begin()
    assert missing("tests/unit/test_printed_fixes.py::test_another") == []
