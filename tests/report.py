"""`python -m tests.report build/test-all.xml > docs/test-report.md`: what a whole run of the tests showed, as a page.

Apart from the tests because it only reads what pytest wrote. `make test-all` calls it.
"""

from __future__ import annotations

import os
import platform
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

_SLOWEST = 20


def page(report: Path, commit: str) -> str:
    """The page. report: pytest's JUnit file; commit: of the tree that was tested."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None, f"{report} has no test suite"
    folders: dict[str, list[ElementTree.Element]] = defaultdict(list)
    for case in suite.iter("testcase"):
        folders["/".join(case.get("classname", "").split(".")[:2])].append(case)
    failed = [case for cases in folders.values() for case in cases if _broken(case)]
    seconds = float(suite.get("time", "0"))
    lines = [
        "# The last run of every test",
        "",
        "Written by `make test-all`. The slow ones are left out of `make test`.",
        "",
        f"{suite.get('timestamp', '')[:16].replace('T', ' ')}, commit {commit}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}: "
        f"**{suite.get('tests')} tests, {len(failed)} failed, {suite.get('skipped')} skipped**, "
        f"{int(seconds) // 60} min {int(seconds) % 60} s.",
        "",
        "| where | tests | failed | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for folder, cases in sorted(folders.items()):
        broken = sum(map(_broken, cases))
        lines.append(f"| `{folder}` | {len(cases)} | {broken} | {sum(map(_seconds, cases)):.0f} |")
    everything = sorted((case for cases in folders.values() for case in cases), key=_seconds, reverse=True)
    lines += ["", f"The {_SLOWEST} that took longest:", "", "| test | seconds |", "| --- | --- |"]
    lines += [f"| `{_name(case)}` | {_seconds(case):.0f} |" for case in everything[:_SLOWEST]]
    if failed:
        lines += ["", "Failed:", "", *(f"- `{_name(case)}`" for case in failed)]
    return "\n".join(lines) + "\n"


def _broken(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def _seconds(case: ElementTree.Element) -> float:
    return float(case.get("time", "0"))


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1]), sys.argv[2]))
