"""Links and paths in the documentation lead somewhere.

A package index shows a README on its own page, where a relative link is dead: every link of it is absolute. The other
documents are read in the repository: their links are relative, to a file and a heading that exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
INDEX_PAGES = [README, REPOSITORY / "sdk" / "typescript" / "README.md"]
PROJECT = "https://github.com/outbox-bridge/outbox-bridge"
DOCUMENTS = sorted([*(REPOSITORY / "docs").glob("*.md"), *REPOSITORY.glob("*.md")])


def prose(path: Path) -> str:
    """The text without its code, in which brackets mean something else."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def links(path: Path) -> Iterator[str]:
    """The addresses of `[text](address)` and `[text]: address`."""
    for inline, reference in re.findall(
        r"\]\(([^()\s]+)\)|^\[[^\]]+\]: (\S+)$", prose(path), flags=re.MULTILINE
    ):
        yield inline or reference


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to the headings."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        number = 0
        while (slug := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(slug)
    return found


def dead(path: Path, address: str) -> bool:
    """Whether a link of this document leads to no file, or to no heading of it."""
    file, _, anchor = address.partition("#")
    leads_to = (path.parent / file).resolve() if file else path
    if not leads_to.exists():
        return True
    return bool(anchor) and anchor not in anchors(leads_to)


@pytest.mark.parametrize("page", INDEX_PAGES, ids=["package", "sdk"])
def test_every_link_of_a_readme_is_absolute_and_leads_to_a_file(page: Path) -> None:
    found = list(links(page))
    assert [address for address in found if not address.startswith("https://")] == []
    ours = [address.removeprefix(PROJECT) for address in found if address.startswith(PROJECT + "/")]
    assert [path for path in ours if not re.match(r"/(blob|tree)/main/", path)] == []
    paths = [re.sub(r"^/(blob|tree)/main/", "", path) for path in ours]
    assert paths
    assert [path for path in paths if dead(README, path)] == []


def test_every_reference_of_the_readme_has_its_address() -> None:
    text = prose(README)
    defined = set(re.findall(r"^\[([^\]]+)\]: ", text, flags=re.MULTILINE))
    used = set(re.findall(r"\[([^\]]+)\](?![:(])", text))
    assert used == defined


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file_and_heading(path: Path) -> None:
    relative = [address for address in links(path) if not re.match(r"[a-z]+:", address)]
    assert [address for address in relative if dead(path, address)] == []


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=lambda path: path.name
)
def test_every_path_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:bridge|tests|sql|deploy|bench|sdk|docs)/[\w./-]+?)(?:::[^`]*)?`", text)
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_a_dead_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n## Same\n## Same\n\n[a](#same-1) [b](no.md) [c](#none) [d](page.md#a-page)\n\n[e]: f.md\n"
    )
    assert [address for address in links(page) if dead(page, address)] == ["no.md", "#none", "f.md"]
