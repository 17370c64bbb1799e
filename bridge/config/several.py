"""Several sources in one file: a configuration for each, as if it were the only one.

`sources: { eu: {...}, us: {...} }` stands in place of `source:`. Everything below works on one source at a time, so a
file with several is taken apart here: each source with the pipelines that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2s
from typing import Protocol, TypeVar

from bridge.config.model import Config, SourceSection
from bridge.errors import ConfigError
from bridge.problem import KeyPath, suggestion
from bridge.section import SOURCE


def source_sections(config: Config) -> Mapping[KeyPath, SourceSection]:
    """Each source by where it stands in the file."""
    if not config.sources:
        return {(SOURCE,): config.source}
    return {("sources", name): section for name, section in config.sources.items()}


def each_source(config: Config) -> list[Config]:
    """A configuration a source, in the order of the file; one with `source:` is its own."""
    if not config.sources:
        return [config]
    return [_view(config, name, section) for name, section in config.sources.items()]


def one_source(config: Config, name: str | None = None) -> Config:
    """The configuration of the source of this name; None: of the only one. Raises ConfigError."""
    found = [one for one in each_source(config) if name in (None, one.source_name)]
    if len(found) == 1:
        return found[0]
    names = [one.source_name for one in each_source(config)]
    if name is None:
        raise ConfigError(
            f"there are several sources: {', '.join(names)}", hint=f"say which: --source {names[0]}"
        )
    raise ConfigError(f"there is no source {name}", hint=suggestion(name, names))


class OfSource(Protocol):
    """Anything that says which source it belongs to."""

    @property
    def source(self) -> str: ...


_OfSource = TypeVar("_OfSource", bound=OfSource)


def one_a_source(plans: Iterable[_OfSource]) -> list[_OfSource]:
    """The first of each source: for what is the source's, and not each stream's."""
    first: dict[str, _OfSource] = {}
    for plan in plans:
        first.setdefault(plan.source, plan)
    return list(first.values())


def instance_of(config: Config) -> str:
    """SourceSection.instance(), of all sources."""
    one, *more = (section.instance() for section in source_sections(config).values())
    return f"1-{blake2s(' '.join([one, *more]).encode(), digest_size=8).hexdigest()}" if more else one


def ingress_sources(config: Config) -> list[str]:
    """The names of the sources that the ingress writes to, in the order of the file."""
    wanted = {*rest_sources(config)}
    if (ingress := config.ingress) is not None:
        wanted |= {hook_source(config, hook.source) for hook in ingress.webhooks.values()}
    return [name for name in _names(config) if name in wanted]


def rest_sources(config: Config) -> list[str]:
    """Those that a request with an API key may write to: one, or what it names."""
    if config.ingress is None or not config.ingress.api_keys:
        return []
    return [config.ingress.source] if config.ingress.source else _names(config)


def hook_source(config: Config, own: str | None) -> str:
    """The source of a webhook whose `source` is `own`."""
    return own or (config.ingress and config.ingress.source) or _names(config)[0]


def _names(config: Config) -> list[str]:
    return [*config.sources] or [config.source_name]


def _view(config: Config, name: str, section: SourceSection) -> Config:
    pipelines = {
        key: pipeline
        for key, pipeline in config.pipelines.items()
        if pipeline.sources is None or name in pipeline.sources
    }
    ingress = config.ingress if name in ingress_sources(config) else None
    view = config.model_copy(
        update={"source": section, "sources": {}, "pipelines": pipelines, "ingress": ingress}
    )
    view._source_name = name
    return view
