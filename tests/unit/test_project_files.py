"""The files around the code say what the code does: checks before a commit, changelog, workflow, templates."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml

from bridge import __version__

REPOSITORY = Path(__file__).parents[2]
WORKFLOW = REPOSITORY / ".github" / "workflows" / "ci.yaml"


def _recipe(target: str) -> list[str]:
    """The commands of a make target, without the prefix that hides them."""
    text = (REPOSITORY / "Makefile").read_text()
    match = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert match is not None, target
    return [line.strip().lstrip("@") for line in match[1].splitlines()]


def test_pre_commit_runs_what_make_check_runs() -> None:
    [repository] = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == _recipe("check")


def test_the_workflow_runs_the_script_that_ci_is() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["ci"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-workflows", WORKFLOW),
        ("vendor.dependabot", REPOSITORY / ".github" / "dependabot.yml"),
    ],
)
def test_what_github_reads_keeps_its_schema(schema: str, file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_issue_form_asks_something() -> None:
    forms = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yaml"))
    assert forms
    for form in forms:
        read = yaml.safe_load(form.read_text())
        assert read["name"]
        assert read["description"]
        assert {part["type"] for part in read["body"]} & {"textarea", "input"}


def test_the_changelog_has_dated_versions_newest_first() -> None:
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    dates = []
    for heading in headings[1:]:
        match = re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)", heading)
        assert match is not None, heading
        dates.append(date.fromisoformat(match[2]))
    assert dates == sorted(dates, reverse=True)
    assert headings[1].startswith(f"{__version__} ")


def test_the_changelog_sorts_by_added_changed_fixed() -> None:
    sections = re.findall(r"^### (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_what_setup_installs_is_pinned_by_hash_and_names_no_index() -> None:
    text = (REPOSITORY / "requirements-dev.txt").read_text()
    assert not re.search(r"https?://|file:|--index|--extra-index|--find-links", text)
    blocks = re.findall(r"^(\S+==\S+[^\n]*(?:\n    --hash=\S+[^\n]*)*)", text, re.MULTILINE)
    assert len(blocks) > 50
    assert all("--hash=sha256:" in block for block in blocks)


def test_every_direct_dependency_is_in_the_lock_file() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    locked = set(re.findall(r"^([\w.-]+)==", (REPOSITORY / "requirements-dev.txt").read_text(), re.MULTILINE))
    names = {re.split(r"[\[<>=; ]", one)[0].lower().replace("_", "-") for one in wanted}
    assert {name for name in names if name not in {each.lower() for each in locked}} == set()
