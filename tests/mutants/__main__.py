"""`python -m tests.mutants [NAME...]`: apply each mutant to a copy of the tree and run the tests that must catch it.

Caught is one by a failed assertion. A test that errors, times out, misses a deadline, or never ran, catches nothing.
Exit code 1 when a mutant survives, 2 when the tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from tests.mutants.catalog import MUTANTS, Mutant
from tests.mutants.edits import Modules, read_modules

ROOT = Path(__file__).parents[2]
WALKS = "1500"
_PATIENCE = 480.0  # seconds a mutant's tests may take
_VERDICT = re.compile(r"^(AssertionError\b|assert\b|tests\.model\.checks\.Violation\b)")
_DEADLINE = re.compile(r"not within|arrive within|still runs after|stays in use|Timeout")


def copy_tree(root: Path) -> None:
    """The files of the repository as they are now, committed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)


def run_tests(root: Path, tests: list[str]) -> tuple[str, list[str]]:
    """("passed" | "asserted" | "broken", what the failed tests said)."""
    report = root / "report.xml"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "BRIDGE_WALKS": WALKS,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    try:
        ran = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return "broken", [f"longer than {_PATIENCE:.0f} s"]
    if not report.exists():
        return "broken", [ran.stdout[-2000:] + ran.stderr[-2000:]]
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    errors = [str(error.get("message")) for case in cases for error in case.iter("error")]
    failures = [
        (str(failure.get("message")), f"{failure.get('message')} {failure.text}")
        for case in cases
        for failure in case.iter("failure")
    ]
    asserted = [
        message.splitlines()[0]
        for message, text in failures
        if _VERDICT.match(message) and not _DEADLINE.search(message) and "Failed: Timeout" not in text
    ]
    if asserted:
        return "asserted", asserted
    if errors or failures or ran.returncode or not cases:
        return "broken", [*errors, *(message for message, _ in failures)] or [ran.stdout[-2000:]]
    return "passed", []


def changed_files(mutant: Mutant, modules: Modules) -> dict[str, tuple[str, str]]:
    """Path -> the code without and with the mutant, both as the syntax tree prints it."""
    changed = mutant.apply(modules)
    return {
        path: (ast.unparse(module.tree), ast.unparse(changed[path].tree))
        for path, module in modules.items()
        if changed[path] is not module
    }


def verdict_on(mutant: Mutant, modules: Modules, root: Path) -> tuple[bool, str]:
    """Is it caught; by what."""
    files = changed_files(mutant, modules)
    before = {path: (root / path).read_text() for path in files}
    for path, (_, code) in files.items():
        (root / path).write_text(code)
    try:
        outcome, words = run_tests(root, list(mutant.tests))
    finally:
        for path, text in before.items():
            (root / path).write_text(text)
    if outcome == "asserted":
        return True, words[0][:90]
    return False, "SURVIVED" if outcome == "passed" else f"NOT BY AN ASSERTION: {words[0][:300]}"


def print_diff(mutant: Mutant, modules: Modules) -> None:
    print(f"# {mutant.name}: {mutant.wrong}")
    for path, (old, new) in changed_files(mutant, modules).items():
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), path, path, lineterm="", n=2)
        print("\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--list", action="store_true", help="print the catalogue")
    parser.add_argument("--diff", action="store_true", help="print what each does to the code")
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not run the tests without a mutant first"
    )
    options = parser.parse_args()
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no mutant {', '.join(sorted(unknown))}; see --list")
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:<48} {mutant.wrong}")
        return 0
    modules = read_modules(ROOT)
    if options.diff:
        for mutant in chosen:
            print_diff(mutant, modules)
        return 0
    survivors = []
    with tempfile.TemporaryDirectory(prefix="bridge-mutants-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        copy_tree(root)
        if not options.no_baseline:
            tests = sorted({test for mutant in chosen for test in mutant.tests})
            outcome, words = run_tests(root, tests)
            if outcome != "passed":
                print(f"the tests fail without a mutant: {words}")
                return 2
        for mutant in chosen:
            began = time.monotonic()
            caught, words_of = verdict_on(mutant, modules, root)
            seconds = time.monotonic() - began
            verdict = "caught" if caught else "ALIVE"
            print(f"{verdict:<7} {seconds:>4.0f} s  {mutant.name:<48} {words_of}", flush=True)
            if not caught:
                survivors.append(mutant.name)
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught"
        + (f"; alive: {survivors}" if survivors else "")
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
