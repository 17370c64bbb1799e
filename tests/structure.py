"""`python -m tests.structure [ROOT]`: the figures of docs/architecture.md, counted in the package below ROOT."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

_LONG = 40  # lines of a function, from its `def`
_CONNECTS = {"connect", "connect_start"}


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _halves(function: ast.AST) -> bool:
    """It cuts something at `// 2`."""
    return any(
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.FloorDiv)
        and isinstance(node.right, ast.Constant)
        and node.right.value == 2
        and "len(" in ast.unparse(node.left)
        for node in ast.walk(function)
    )


def _connects(call: ast.Call) -> bool:
    """It opens a connection to Postgres by psycopg or libpq."""
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr not in _CONNECTS:
        return False
    owner = ast.unparse(function.value)
    return owner == "psycopg" or owner.endswith(("Connection", "PGconn", "kind"))


def figures(root: Path) -> dict[str, object]:
    """Name -> figure."""
    package = root / "bridge"
    trees = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    lines = {path: len(path.read_text().splitlines()) for path in trees}
    modules = {_dotted(path, root): path for path in trees}
    importers: dict[str, set[Path]] = defaultdict(set)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bridge"):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    importers[whole if whole in modules else str(node.module)].add(path)
    full = [path for path in trees if path.name != "__init__.py"]
    names: dict[str, set[Path]] = defaultdict(set)
    for path, tree in trees.items():
        for each in tree.body if isinstance(tree, ast.Module) else ():
            if isinstance(each, ast.ClassDef):
                names[each.name].add(path)
    product = [tree for path, tree in trees.items() if path.parent.name != "demo"]  # it plays the customer
    calls = [node for tree in product for node in ast.walk(tree) if isinstance(node, ast.Call)]
    largest = max(full, key=lambda path: lines[path])
    return {
        "modules": len(trees),
        "median lines": int(median(lines[path] for path in full)),
        "largest": f"{largest.relative_to(package)} ({lines[largest]})",
        "modules below 60 lines": sum(lines[path] < 60 for path in full),
        "modules with one importer": sum(len(importers[name]) == 1 for name in modules),
        "functions over 40 lines": sum(
            (node.end_lineno or 0) - node.lineno + 1 > _LONG
            for tree in trees.values()
            for node in _functions(tree)
        ),
        "class names with two meanings": sum(len(where) > 1 for where in names.values()),
        "bisections": sum(_halves(node) for tree in trees.values() for node in _functions(tree)),
        "places that connect, but for the demo": sum(map(_connects, calls)),
    }


def _dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    for name, figure in figures(root).items():
        print(f"{name}: {figure}")


if __name__ == "__main__":
    main()
