"""The recipes: folders of data under bridge/recipes, each a whole configuration with its tables and samples.

A folder has recipe.yaml (what it is), bridge.yaml (contract, pipeline, tests), target.sql (the table, for the
customer to run), samples.json (valid, filtered and malformed payloads), and source.sql where it enriches.
A folder whose name starts with _ is not listed. A recipe is added to a bridge.yaml that exists as text, so that the
user's comments and order stay: whole lines are inserted, and nothing is given back unless the result loads.
docs/recipes.md is made from the same folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from bridge.config.contract import EventField
from bridge.config.document import Document, parse
from bridge.config.load import build, load
from bridge.config.pipeline import PipelineSection
from bridge.errors import ConfigError
from bridge.problem import InvalidConfig, nearest
from bridge.section import EventType, Section

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
    """samples.json: payloads that are valid, that are filtered out, and that break the contract."""

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
        """Its description. Raises ConfigError if recipe.yaml is invalid."""
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
        """The content of one of its files; empty if it does not have the file."""
        path = self.folder / file
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def env_example(self) -> str:
        """`.env.example` for its bridge.yaml."""
        return env_example(self.text("bridge.yaml"))


_SOURCE = re.compile(r"^source:\n(?:  .*\n)+", re.MULTILINE)


def source_variable(name: str) -> str:
    """The variable with the DSN of this one of several sources."""
    return f"{name.upper()}_DSN"


def with_sources(text: str, names: Sequence[str]) -> str:
    """A whole configuration as the recipes and the demo have them, with these in place of its one source. Raises
    ConfigError if a name cannot be one."""
    for at, name in enumerate(names):
        if not re.fullmatch(r"[a-z0-9_]{1,40}", name) or not source_variable(name)[0].isalpha():
            raise ConfigError(
                f"{name!r} cannot be a source's name: a lower-case letter first, then letters, digits and _",
                hint="--source eu",
            )
        if name in names[:at]:
            raise ConfigError(f"--source {name} is there twice", hint="give each source a name of its own")
    if len(_SOURCE.findall(text)) != 1:
        raise ConfigError(
            "this configuration has not the source of a recipe", hint="write `sources:` by hand"
        )
    each = "".join(
        f'  {name}: {{ dsn: "${{{source_variable(name)}:?the database with the outbox of {name}}}" }}\n'
        for name in names
    )
    return _SOURCE.sub(lambda _: f"sources:\n{each}", text)


def env_example(text: str) -> str:
    """`.env.example` for this bridge.yaml: each variable once, with its meaning or default."""
    lines = ["# Variables of bridge.yaml. Copy to .env, fill in, and keep that file out of version control."]
    seen: set[str] = set()
    for name, how, rest in _VARIABLE.findall(text):
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
    """The recipe with this name. Raises ConfigError, with the nearest name, if there is none."""
    known = {one.name: one for one in recipes()}
    if name == STARTER:
        return Recipe(STARTER, Path(str(files("bridge") / "recipes" / STARTER)))
    if name not in known:
        hint = nearest(name, known) or f"available: {', '.join(known)}"
        raise ConfigError(f"there is no recipe {name!r}", hint=hint)
    return known[name]


_SECTIONS = ("connections", "events", "pipelines", "tests")


def add_to(text: str, addition: str, file: str, environ: Mapping[str, str]) -> str:
    """`text` (a bridge.yaml) with the entries of `addition` (another); variables stay as written.

    environ: to check the result, which can depend on a variable (`listen: ${ADDRESS}`). A connection with the same
    name and type is kept. Raises ConfigError if an event or a pipeline with that name exists already, if a section
    is written in { } or [ ], or if the result would not load.
    """
    new = parse(addition, {}, file="recipe", directory=Path())
    here = parse(text, {}, file=file, directory=Path())
    lines = text.splitlines()
    end: list[str] = []
    inserts: list[tuple[int, list[str]]] = []
    for section in _SECTIONS:
        part = [line for each in _parts(here, new, addition.splitlines(), section) for line in each]
        if part and section not in here.tree:
            end += ["", f"{section}:", *_indented(part, 2)]
        elif part:
            inserts.append(_place(lines, here, section, part))
    for after, part in sorted(inserts, reverse=True):  # from below, so that the places above stay right
        lines[after:after] = part
    result = "\n".join([*lines, *end]) + "\n"
    document = parse(result, environ, file=file, directory=Path(file).parent)
    build(document, offline=True)
    if document.problems:
        raise InvalidConfig(f"{file} with the recipe", document.problems)
    return result


def _parts(here: Document, new: Document, lines: list[str], section: str) -> list[list[str]]:
    """The lines of each entry of `section` that `here` does not have."""
    entries = new.tree.get(section) or {}
    existing = here.tree.get(section) or {}
    if isinstance(entries, list):
        starts = [new.values[(section, index)].line - 1 for index in range(len(entries))]
        return [_block(lines, start) for start in starts]
    parts = []
    for name, value in entries.items():
        if name in existing:
            if section == "connections" and existing[name].get("type") == value.get("type"):
                continue
            place = here.position((section, name), key=True)
            raise ConfigError(
                f"{here.file}:{place.line}:{place.column}: {section}.{name} exists already",
                hint="rename or remove it, or copy what you need from `bridge recipe show`",
            )
        parts.append(_block(lines, new.keys[(section, name)].line - 1))
    return parts


def _block(lines: list[str], start: int) -> list[str]:
    """The line at `start` and the more indented lines below it, without their common indent."""
    indent = _indent(lines[start])
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > indent):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    return [line[indent:] for line in lines[start:end]]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _indented(part: list[str], indent: int) -> list[str]:
    return [" " * indent + line if line else "" for line in part]


def _place(lines: list[str], here: Document, section: str, part: list[str]) -> tuple[int, list[str]]:
    """The line before which `part` is inserted, at the end of its section, and `part` with the indent of its
    neighbours."""
    head = here.keys[(section,)].line - 1
    first = here.values[(section,)].line - 1
    if first == head:
        raise ConfigError(
            f"{here.file}:{head + 1}: `{section}` is written on one line",
            hint="put each entry of it on a line of its own, below the key",
        )
    indent = _indent(lines[first])
    end = first
    for number in range(first, len(lines)):
        line = lines[number]
        if line.strip() and not line.lstrip().startswith("#"):
            if _indent(line) < indent or (indent == 0 and not line.startswith("-") and _indent(line) == 0):
                break
            end = number
    return end + 1, _indented(part, indent)


CATEGORIES = {
    "track": "What happens.",
    "monitor": "What goes wrong or runs out.",
    "alert": "What someone should act on now.",
}

_HEAD = """\
# Everything you can pipe to Postgres

<!-- generated by `bridge recipe list --markdown`; a test compares the two -->

A recipe is a complete configuration for one event: its contract, its pipeline, the table it writes, samples and tests.
Start from one, or add it to your bridge.yaml. From then on it is yours to change.

```sh
bridge init --recipe signups my-bridge                     # a new bridge.yaml, .env.example and the SQL to run
bridge recipe add failed-payments                          # into the bridge.yaml of this directory; keeps its comments
bridge schema recipe failed-payments | psql "$WAREHOUSE_DSN"         # its table: you run this, the bridge never does
bridge schema recipe failed-payments --source | psql "$SOURCE_DSN"   # an example of the table it looks up in
bridge lint && bridge test
```

To send the same events elsewhere as well (Slack, Discord, Telegram, email, a webhook, Notion), add a destination:
[sinks.md](sinks.md). [configuration.md](configuration.md) and [expressions.md](expressions.md) explain the fields.

The producer sends the idempotency key with the event. A key is one event, however often it is sent. Keys are scoped
by event type, so two recipes may use the same key. The first event uses the key up, even if a filter stops that event.
So emit an event when it is new information, or put what makes it new into the key.
"""


def recipes_page() -> str:
    """The whole page, as Markdown."""
    found = recipes()
    lines = [_HEAD]
    for category, says in CATEGORIES.items():
        lines += [f"## {category}", "", says, "", "| recipe | event | what |", "| --- | --- | --- |"]
        for one in found:
            if one.about.category == category:
                about = one.about
                lines.append(f"| [{one.name}](#{one.name}) | `{about.event}` | {about.title} |")
        lines.append("")
    lines += ["## The recipes", ""]
    for one in found:
        lines += [*_section(one), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(one: Recipe) -> Iterator[str]:
    about = one.about
    config = load(one.folder / "bridge.yaml", {}, offline=True)
    yield from (f"### {one.name}", "", f"**{about.title}** ({about.category}). {about.summary}", "")
    yield from (f"Event `{about.event}`, idempotency key `{about.idempotency_key}`:", "")
    yield from ("| field | type |", "| --- | --- |")
    for name, field in config.events[about.event].fields.items():
        yield f"| `{name}` | {_type(field)} |"
    if about.note:
        yield from ("", about.note)
    for pipeline in config.pipelines.values():
        yield ""
        yield from _pipeline(pipeline)


def _type(field: EventField) -> str:
    kind = " \\| ".join(f"`{value}`" for value in field.enum) if field.enum else field.type
    return kind if field.required else f"{kind}, optional"


def _pipeline(pipeline: PipelineSection) -> Iterator[str]:
    steps = [line for step in pipeline.steps for line in step.told()]
    for branch in pipeline.branches or ():
        when = f" when `{branch.when}`" if branch.when else ""
        steps.append(f"branch **{branch.name}**{when} → {', '.join(branch.to) or 'no destination'}")
    for number, step in enumerate(steps, 1):
        yield f"{number}. {step}"
    for destination in pipeline.destinations.values():
        for line in destination.told():
            yield from ("", line)
