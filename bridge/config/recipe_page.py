"""docs/recipes.md, made from the recipes' folders: everything you can pipe to Postgres.

Apart from recipe.py because it words a page; what a recipe is stands there.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridge.config.contract import EventField
from bridge.config.load import load
from bridge.config.pipeline import Pipeline, Step, TableDestination
from bridge.config.recipe import Recipe, recipes

CATEGORIES = {
    "track": "What happens, as rows.",
    "monitor": "What goes wrong or runs out, as rows.",
    "alert": "What somebody should act on now.",
}

_HEAD = """\
# Everything you can pipe to Postgres

<!-- made by `bridge recipe list --markdown`; a test compares -->

A recipe is a whole configuration for one event: its contract, its pipeline, the table it fills, samples and tests.
Start from one, or add it to a bridge.yaml that you have; from then on it is yours to change.

```sh
bridge init --recipe signups my-bridge                     # a new bridge.yaml, .env.example and the SQL to run
bridge recipe add failed-payments                          # into the bridge.yaml that is here; comments stay
bridge schema recipe failed-payments | psql "$WAREHOUSE_DSN"         # its table: run by you, never by the bridge
bridge schema recipe failed-payments --source | psql "$SOURCE_DSN"   # an example of what it looks up, if you have none
bridge lint && bridge test
```

To send the same events elsewhere as well (Slack, Discord, Telegram, e-mail, a webhook, Notion), add a destination:
[sinks.md](sinks.md). What the fields mean: [configuration.md](configuration.md), [expressions.md](expressions.md).

The idempotency key is what the producer sends along: one event a key, however often it is sent. Keys are scoped by
event type, so two recipes may use the same one. The first event of a key counts, also where a filter then holds it
back: emit when it is news, or put into the key what makes it news.
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


def _pipeline(pipeline: Pipeline) -> Iterator[str]:
    steps = [line for step in pipeline.steps for line in _step(step)]
    for branch in pipeline.branches or ():
        when = f" when `{branch.when}`" if branch.when else ""
        steps.append(f"branch **{branch.name}**{when} → {', '.join(branch.to) or 'nowhere'}")
    for number, step in enumerate(steps, 1):
        yield f"{number}. {step}"
    for destination in pipeline.destinations.values():
        if isinstance(destination, TableDestination):
            columns = ", ".join(f"`{name}`" for name in destination.columns or ())
            yield from ("", f"Into `{destination.table}` ({destination.mode}): {columns}.")


def _step(step: Step) -> Iterator[str]:
    if step.enrich_entity is not None:
        yield f"look up **{step.enrich_entity.as_name}** by `{step.enrich_entity.key}`: `{step.enrich_entity.sql}`"
    if step.filter is not None:
        yield f"go on where `{step.filter}`"
    for name, expression in (step.set or {}).items():
        yield f"set **{name}**: `{expression}`"
    if step.redact:
        yield f"redact {', '.join(f'`{name}`' for name in step.redact)}"
