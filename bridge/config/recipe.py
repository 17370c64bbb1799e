"""The recipes: folders of data under bridge/recipes, each a whole configuration with its tables and samples.

A folder has recipe.yaml (what it is), bridge.yaml (contract, pipeline, tests), target.sql (the table, for the
customer to run), samples.json (valid, filtered and malformed payloads), and source.sql where it enriches.
A folder whose name starts with _ is not listed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from bridge.config.document import parse
from bridge.config.problem import nearest
from bridge.config.section import EventType, Section
from bridge.errors import ConfigError

STARTER = "_starter"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([-?])([^}]*))?\}")


class About(Section):
    """recipe.yaml."""

    title: str
    category: Literal["track", "monitor", "alert"]
    summary: str
    """One line."""
    event: EventType
    idempotency_key: str
    """A template over the payload, for producers."""
    note: str = ""
    """What to know before using it."""


class Samples(Section):
    """samples.json: payloads that land, that are held back, and that break the contract."""

    valid: tuple[dict[str, Any], ...]
    filtered: tuple[dict[str, Any], ...]
    malformed: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Recipe:
    """One folder."""

    name: str
    folder: Path

    @cached_property
    def about(self) -> About:
        """What it is; ConfigError when recipe.yaml is wrong."""
        file = self.folder / "recipe.yaml"
        document = parse(self.text("recipe.yaml"), {}, file=str(file), directory=self.folder)
        try:
            return About.model_validate(document.tree)
        except ValidationError as error:
            raise ConfigError(f"{file}: {error}") from None

    @cached_property
    def samples(self) -> Samples:
        """Its sample payloads."""
        return Samples.model_validate(json.loads(self.text("samples.json")))

    def text(self, file: str) -> str:
        """The content of one of its files; empty when it has none of that name."""
        path = self.folder / file
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def env_example(self) -> str:
        """`.env.example` for its bridge.yaml: each variable once, with its meaning or default."""
        lines = [
            "# Variables of bridge.yaml. Copy to .env, fill in, and keep that file out of version control."
        ]
        seen: set[str] = set()
        for name, how, rest in _VARIABLE.findall(self.text("bridge.yaml")):
            if name not in seen:
                seen.add(name)
                lines += ["", *([f"# {rest}"] if how == "?" and rest else [])]
                lines.append(f"{name}={rest if how == '-' else ''}")
        return "\n".join(lines) + "\n"


def recipes() -> list[Recipe]:
    """Every recipe, by name."""
    folder = Path(str(files("bridge") / "recipes"))
    return [
        Recipe(path.name, path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(("_", "."))
    ]


def recipe(name: str) -> Recipe:
    """The recipe of this name. ConfigError, with the nearest name, when there is none."""
    known = {one.name: one for one in recipes()}
    if name == STARTER:
        return Recipe(STARTER, Path(str(files("bridge") / "recipes" / STARTER)))
    if name not in known:
        hint = nearest(name, known) or f"there is: {', '.join(known)}"
        raise ConfigError(f"there is no recipe {name!r}", hint=hint)
    return known[name]
