"""The catalogue fits the code: a mutant whose place is gone would be caught by nothing and noticed by nobody."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants.catalog import MUTANTS, Mutant
from tests.mutants.edits import Code, Edit, Module, Modules, NotOnePlace, Sql, apply, read_modules

ROOT = Path(__file__).parents[2]
each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)


@pytest.fixture(scope="module")
def modules() -> Modules:
    return read_modules(ROOT)


@pytest.fixture(scope="module")
def moved(modules: Modules) -> Modules:
    """The same code in another layout and in other files."""
    trees = [ast.parse(ast.unparse(module.tree)) for module in modules.values()]
    return {f"bridge/elsewhere/{n}.py": Module(tree) for n, tree in enumerate(trees)}


def changes(mutant: Mutant, modules: Modules) -> Iterator[tuple[ast.Module, ast.Module]]:
    """Each module that it changes, before and after."""
    for path, after in mutant.apply(modules).items():
        if after is not modules[path]:
            yield modules[path].tree, after.tree


def names(module: ast.Module) -> set[str]:
    """Of variables and attributes that stand in the module."""
    found = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
    return found | {node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute)}


def assigned(module: ast.Module) -> set[str]:
    nodes = (node for node in ast.walk(module) if isinstance(node, ast.Name))
    return {node.id for node in nodes if isinstance(node.ctx, ast.Store)}


@each_mutant
def test_each_edit_fits_one_place_and_what_comes_of_it_is_code(mutant: Mutant, modules: Modules) -> None:
    changed = list(changes(mutant, modules))
    assert changed
    for before, after in changed:
        code = ast.unparse(after)
        compile(code, mutant.name, "exec")
        assert code != ast.unparse(before)
        # A name that nobody has would end the tests by a NameError, which catches nothing.
        assert names(after) <= names(before) | assigned(after) | set(dir(builtins))


@each_mutant
def test_it_fits_the_same_code_in_another_layout_and_file(
    mutant: Mutant, modules: Modules, moved: Modules
) -> None:
    here = [ast.dump(after) for _, after in changes(mutant, modules)]
    assert [ast.dump(after) for _, after in changes(mutant, moved)] == here


@each_mutant
def test_its_tests_exist_and_it_stands_in_the_documentation(mutant: Mutant) -> None:
    for test in mutant.tests:
        path, _, rest = test.partition("::")
        source = (ROOT / path).read_text()
        name = rest.partition("[")[0]
        assert f"def {name}" in source
    assert f"| {mutant.name} |" in (ROOT / "docs" / "mutants.md").read_text()


# --- the edits themselves -----------------------------------------------------------------------------

CODE = """
class Reader:
    def read(self, size):
        '''select 1'''
        if size > self.limit and self.open:
            self.log(size)
        return self.socket.recv(size, 0)

def other(size):
    for each in range(size):
        use(each)
        each = drop(each)
    return query(f"select {columns} from   t where a = 1", {"b": 1, "a": 2})
"""


def edited(edit: Edit, code: str = CODE) -> str:
    [module] = apply(edit, {"m.py": Module(ast.parse(code))}).values()
    return ast.unparse(module.tree)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (Code("$A > $B.limit and $C", "$C or $A"), "        if self.open or size:"),
        (Code("$X.recv(...)", "$X.peek()"), "        return self.socket.peek()"),
        (Code("return $X.recv($N, 0)", "return $X.recv($N)"), "        return self.socket.recv(size)"),
        (Code("if $TEST: ...", "pass", inside="Reader.read"), "        pass"),
        (Code("use($X)\n$X = drop($X)", "$X = drop($X)\nuse($X)"), "        use(each)\n    return"),
        (Code("use($X)", "keep($A, $X)", given="range($A)"), "        keep(size, each)"),
        (Code('{"a": $A, **$REST}', '{"a": 0, **$REST}'), "{'a': 0, **{'b': 1}}"),
        (Sql("from t where a=1", "from t"), "select {columns} from t'"),
        (Sql("select {} from", "select 0, {} from"), "f'select 0, {columns} from   t"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_an_edit_changes_what_it_says(edit: Edit, line: str) -> None:
    assert line in edited(edit)


@pytest.mark.parametrize(
    "edit",
    [
        Code("self.limit.upper", "0"),
        Code("size", "0"),
        Code("use($X)", "$X", inside="Reader"),
        Code("use($X)", "$X", inside="nobody"),
        Code("use($X)", "$X", given="nobody($A)"),
        Sql("select", "delete"),
        Sql("selection", ""),
    ],
)
def test_an_edit_that_fits_no_place_or_two_is_an_error(edit: Edit) -> None:
    with pytest.raises(NotOnePlace):
        edited(edit, CODE + "\nq = b'select 2'")


def test_a_definition_of_which_there_are_two_is_an_error() -> None:
    modules = {"a.py": Module(ast.parse(CODE)), "b.py": Module(ast.parse(CODE))}
    with pytest.raises(NotOnePlace, match=r"a\.py.*b\.py"):
        apply(Code("use($X)", "$X", inside="other"), modules)
