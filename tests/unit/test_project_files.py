"""The files around the code agree: versions, addresses, the lock file, the checks before a commit, GitHub's files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from bridge import __version__
from tests.support.bridge_process import REPOSITORY

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SOURCE = PROJECT["urls"]["Source"]
LOCK = REPOSITORY / "requirements-dev.txt"
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.y*ml"))


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text()


def yaml_of(name: str) -> Any:
    return yaml.load(text_of(name), yaml.BaseLoader)  # "on" is a word here, and 3.10 no number


def pythons() -> list[str]:
    """The versions that the package says it runs on."""
    found = (
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one) for one in PROJECT["classifiers"]
    )
    return [one[1] for one in found if one]


def documents() -> Iterator[Path]:
    """What people read, and the files with addresses in them."""
    yield from REPOSITORY.glob("*.md")
    for folder in ("docs", ".github", "deploy"):
        yield from (
            path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and path.suffix != ".png"
        )
    for name in ("pyproject.toml", "sdk/typescript/package.json", "sdk/typescript/README.md"):
        yield REPOSITORY / name


# The lock file.


def pins() -> list[Requirement]:
    lines = (line.rstrip("\\ ") for line in LOCK.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", " "))]


def environments() -> list[dict[str, str]]:
    systems = (("linux", "Linux", "posix"), ("darwin", "Darwin", "posix"), ("win32", "Windows", "nt"))
    return [
        {
            "python_version": python,
            "python_full_version": f"{python}.1",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "platform_machine": "x86_64",
            "sys_platform": platform,
            "platform_system": system,
            "os_name": name,
        }
        for python in pythons()
        for platform, system, name in systems
    ]


@pytest.mark.parametrize(
    "environment", environments(), ids=lambda one: f"{one['python_version']}-{one['sys_platform']}"
)
def test_lock_file_pins_all_that_setup_wants_once(environment: dict[str, str]) -> None:
    pinned: dict[str, str] = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate(environment):
            assert pin.name not in pinned, pin
            [one] = pin.specifier
            assert one.operator == "=="
            pinned[pin.name] = one.version
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["demo"]]
    for text in (*wanted, *PYPROJECT["dependency-groups"]["dev"]):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name in pinned, f"{name} is not in {LOCK.name}: run make lock"
            assert pinned[name] in requirement.specifier, f"{requirement}, but {pinned[name]}: run make lock"


def test_lock_file_names_hashes_and_no_place() -> None:
    text = LOCK.read_text()
    parts = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert len(parts) == len(pins())
    assert not [part for part in parts if "--hash=sha256:" not in part]
    assert not re.findall(r"://|file:|--\w*index|--find-links|--trusted", text)


def test_tests_run_on_the_locked_versions() -> None:
    """`make setup` installed them."""
    other = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate():
            try:
                found = version(pin.name)
            except PackageNotFoundError:
                found = "nothing"
            if found not in pin.specifier:
                other[str(pin)] = found
    assert not other, "run make setup"


def test_psycopg_is_held_below_its_next_minor_release() -> None:
    [bound] = [Requirement(one) for one in PROJECT["dependencies"] if one.startswith("psycopg[")]
    installed = Version(psycopg.__version__)
    assert installed in bound.specifier
    assert Version(f"{installed.major}.{installed.minor + 1}") not in bound.specifier


# The checks before a commit.


def hooks() -> list[dict[str, Any]]:
    [repository] = yaml_of(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks: list[dict[str, Any]] = repository["hooks"]
    return hooks


def test_pre_commit_runs_the_commands_of_make_check() -> None:
    recipe = re.search(r"^check:.*\n((?:\t.+\n)+)", text_of("Makefile"), re.MULTILINE)
    assert recipe is not None
    assert [hook["entry"] for hook in hooks()] == [line.strip() for line in recipe[1].splitlines()]


def test_pre_commit_takes_the_configuration_and_stops_a_bad_commit(tmp_path: Path) -> None:
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        (tmp_path / name).write_text(text_of(name))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)

    def pre_commit(hook: str) -> tuple[int, str]:
        subprocess.run(["git", "add", "*.py", "*.toml", "*.yaml"], cwd=tmp_path, check=True)
        done = subprocess.run(
            [sys.executable, "-m", "pre_commit", "run", hook],
            cwd=tmp_path,
            env={**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "module.py").write_text("import os\n")
    code, said = pre_commit("ruff-check")
    assert code == 1
    assert "F401" in said
    (tmp_path / "module.py").write_text('"""Nothing is wrong with it."""\n')
    assert pre_commit("ruff-check")[0] == 0
    assert pre_commit("ruff-format")[0] == 0


# GitHub's files.


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ("github-workflows", [str(path.relative_to(REPOSITORY)) for path in WORKFLOWS]),
        ("dependabot", [".github/dependabot.yml"]),
        ("github-issue-forms", [".github/ISSUE_TEMPLATE/bug.yaml", ".github/ISSUE_TEMPLATE/idea.yaml"]),
        ("github-issue-config", [".github/ISSUE_TEMPLATE/config.yml"]),
    ],
)
def test_file_for_github_keeps_its_schema(schema: str, names: list[str]) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *names]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_may_only_read_and_uses_what_cannot_change(path: Path) -> None:
    text = path.read_text()
    workflow = yaml_of(str(path.relative_to(REPOSITORY)))
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    for one in uses:  # a tag can be moved to other code, a commit cannot
        assert re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one


def test_ci_workflow_runs_the_projects_script_on_every_python() -> None:
    [job] = yaml_of(".github/workflows/ci.yaml")["jobs"].values()
    matrix = job["strategy"]["matrix"]["python"]
    assert matrix == pythons()
    assert min(matrix, key=Version) in SpecifierSet(PROJECT["requires-python"])
    assert PROJECT["requires-python"] == f">={min(matrix, key=Version)}"
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_ci_workflow_installs_what_the_script_needs_from_root() -> None:
    needed = set(re.findall(r"need\+=\(([\w-]+)\)", text_of(".ci/run")))
    install = re.search(
        r"apt-get install .*--no-install-recommends (.*)", text_of(".github/workflows/ci.yaml")
    )
    assert install is not None
    assert needed
    assert set(install[1].split()) == needed


def test_dependabot_looks_where_the_dependencies_stand() -> None:
    updates = yaml_of(".github/dependabot.yml")["updates"]
    looks = {one["package-ecosystem"]: REPOSITORY / one["directory"].lstrip("/") for one in updates}
    assert looks.keys() == {"pip", "npm", "github-actions"}
    assert (looks["pip"] / LOCK.name).exists()
    assert (looks["npm"] / "package-lock.json").exists()
    assert (looks["github-actions"] / ".github" / "workflows").is_dir()


# What is said in more than one place.


def test_every_address_of_the_project_is_the_same_and_leads_somewhere() -> None:
    seen = 0
    for path in documents():
        for found in re.finditer(r"https://github\.com/(outbox-bridge/[^\s)\"'>\]`,]*)", path.read_text()):
            address = found[0].rstrip(".:;").removesuffix(".git")
            assert address == SOURCE or address.startswith(f"{SOURCE}/"), f"{path}: {address}"
            inside = re.match(r"/(?:blob|tree)/main/([^#?]*)", address.removeprefix(SOURCE))
            if inside is not None:
                assert (REPOSITORY / inside[1]).exists(), f"{path}: {address}"
            seen += 1
    assert seen > len(PROJECT["urls"])


def test_every_package_and_manifest_has_the_version() -> None:
    package, lock = (
        json.loads(text_of(f"sdk/typescript/{name}.json")) for name in ("package", "package-lock")
    )
    assert package["version"] == lock["version"] == lock["packages"][""]["version"] == __version__
    for manifest in ("outbox-bridge.yaml", "outbox-bridge-shared.yaml"):
        assert f"image: outbox-bridge:{__version__}\n" in text_of(f"deploy/kubernetes/{manifest}")
    major, minor, *_ = __version__.split(".")
    assert f"| {major}.{minor}.x | yes |" in text_of("SECURITY.md")


def test_the_typescript_package_has_the_license_too() -> None:
    assert text_of("sdk/typescript/LICENSE") == text_of("LICENSE")
    package = json.loads(text_of("sdk/typescript/package.json"))
    assert package["license"] == PROJECT["license"]


def test_changelog_lists_releases_with_dates_and_kinds_of_change() -> None:
    head, *entries = re.split(r"^## ", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    assert head.startswith("# Changelog\n")
    titles = [entry.splitlines()[0] for entry in entries]
    assert titles[0] == "[Unreleased]"
    releases = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})", title) for title in titles[1:]]
    found = [(Version(one[1]), date.fromisoformat(one[2])) for one in releases if one]
    assert len(found) == len(releases), titles
    assert found == sorted(found, reverse=True)
    assert str(found[0][0]) == __version__
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for entry in entries:
        sections = re.findall(r"^### (.*)\n\n(- )?", entry, re.MULTILINE)
        assert [kind for kind, _ in sections] == [kind for kind in kinds if kind in dict(sections)]
        assert all(first for _, first in sections), entry.splitlines()[0]
    for label in ("Unreleased", *(str(one) for one, _ in found)):
        assert re.search(
            rf"^\[{re.escape(label)}\]: {re.escape(SOURCE)}/", text_of("CHANGELOG.md"), re.MULTILINE
        )


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for path in documents():
        if path.suffix == ".md":
            code = re.findall(r"```.*?```|`[^`\n]+`", path.read_text(), re.DOTALL)
            for command in re.findall(r"(?<![\w-])make ((?:[a-z-]+(?=[ `&\n])[ ]?)+)", "\n".join(code)):
                assert set(command.split()) <= targets, f"{path}: make {command}"


def test_nothing_is_left_at_the_top_but_what_belongs_there() -> None:
    """What tools leave beside it has to be ignored by git, or not to be left."""
    ignored = [line.rstrip("/") for line in text_of(".gitignore").splitlines()]
    there = {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}
    folders = {"bench", "bridge", "deploy", "docs", "sdk", "sql", "tests"}
    files = {"LICENSE", "Makefile", "pyproject.toml", "requirements-dev.txt"}
    documents = {
        f"{name}.md" for name in ("CHANGELOG", "CODE_OF_CONDUCT", "CONTRIBUTING", "README", "SECURITY")
    }
    left = {name for name in there if not any(fnmatch(name, pattern) for pattern in ignored)}
    assert left == folders | files | documents
