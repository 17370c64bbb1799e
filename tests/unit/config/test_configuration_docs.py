"""docs/configuration.md names every key there is, with its default, and its examples load."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel, RootModel
from pydantic.fields import FieldInfo

from bridge.config.connection import SINK_KINDS, Libpq, PostgresConnection
from bridge.config.contract import FIELD_TYPES, EventContract, EventField
from bridge.config.destinations.destination import DestinationSection
from bridge.config.destinations.sink import SinkDestination
from bridge.config.destinations.subject import SubjectDestination
from bridge.config.destinations.table import TableDestination
from bridge.config.lint import lint
from bridge.config.load import load
from bridge.config.model import (
    Admin,
    AdminToken,
    BatchLimits,
    Case,
    CaseMeta,
    Config,
    Expectation,
    IngressSection,
    OutboxColumns,
    SourceSection,
    Webhook,
)
from bridge.config.nats import NatsConnection, NatsTls
from bridge.config.noise import SinkDigest, SinkQuiet
from bridge.config.pipeline import Branch, PipelineSection
from bridge.config.scale import ScaleSection
from bridge.config.testing import run_cases
from bridge.planning.entity import Entity
from bridge.planning.steps.step import StepSection, steps
from bridge.quantity import format_duration

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"
LIBPQ = set(Libpq.model_fields)
SECTIONS: dict[str, tuple[type[BaseModel], set[str]]] = {
    "The file": (Config, set()),
    "source": (SourceSection, LIBPQ),
    "source.columns": (OutboxColumns, set()),
    "source.batch": (BatchLimits, set()),
    "Connection parameters": (Libpq, set()),
    "connections: postgres": (PostgresConnection, LIBPQ),
    "connections: nats": (NatsConnection, set()),
    "connections: nats: tls": (NatsTls, set()),
    "events": (EventContract, set()),
    "events: fields": (EventField, set()),
    "entities": (Entity, set()),
    "pipelines": (PipelineSection, set()),
    **{
        word: (section, set())
        for word, section in steps().items()
        if issubclass(section, BaseModel) and not issubclass(section, RootModel)
    },
    "branches": (Branch, set()),
    "destinations: tables": (TableDestination, set()),
    "destinations: sinks": (SinkDestination, set()),
    "destinations: nats": (SubjectDestination, set()),
    "digest": (SinkDigest, set()),
    "quiet": (SinkQuiet, set()),
    "admin": (Admin, set()),
    "admin: tokens": (AdminToken, set()),
    "ingress": (IngressSection, set()),
    "ingress.webhooks": (Webhook, set()),
    "scale": (ScaleSection, set()),
    "tests": (Case, set()),
    "tests: meta": (CaseMeta, set()),
    "tests: expect": (Expectation, set()),
}


def default_of(name: str, field: FieldInfo) -> str:
    """A field's default as the documentation writes it."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) or default is None or default in ({}, (), ""):
        return "its defaults" if isinstance(default, BaseModel) else "none"
    if isinstance(default, timedelta):
        return f"`{format_duration(default)}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int) and default >= 2**20:
        return f"`{default // 2**30}GiB`" if default >= 2**30 else f"`{default // 2**20}MiB`"
    return f"`{default}`"


def section(title: str) -> str:
    text = DOCS.read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


@pytest.mark.parametrize("title", SECTIONS)
def test_each_key_stands_in_its_section_with_its_default_and_meaning(title: str) -> None:
    model, elsewhere = SECTIONS[title]
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.+?) \|$", section(title), re.MULTILINE)
    documented = {key: default for key, default, _ in rows}
    assert documented == {
        field.alias or name: default_of(name, field)
        for name, field in model.model_fields.items()
        if name not in elsewhere
    }


def test_every_step_has_its_row() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| none \| (.+?) \|$", section("steps"), re.MULTILINE)
    assert {word for word, _ in rows} == set(steps())


def test_every_model_of_the_file_has_a_section() -> None:
    models = {model for model, _ in SECTIONS.values()}
    reached: set[type[BaseModel]] = set()

    def walk(model: type[BaseModel]) -> None:
        reached.add(model)
        for other in all_sections():
            names = {str(field.annotation) for field in model.model_fields.values()}
            known = [other, *(base for base in (StepSection, DestinationSection) if issubclass(other, base))]
            if other not in reached and any(
                f"{each.__module__}.{each.__name__}" in name for each in known for name in names
            ):
                walk(other)

    walk(Config)
    assert models - reached == {Libpq}  # its keys stand in those that inherit them
    assert {model for model in reached - models if not issubclass(model, RootModel)} == {DestinationSection}


def all_sections() -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    left: list[type[BaseModel]] = [BaseModel]
    while left:
        for model in left.pop().__subclasses__():
            if model.__module__.startswith(("bridge.config", "bridge.planning")):
                found.add(model)
            left.append(model)
    return found


def test_every_kind_of_field_and_sink_is_named() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for word in (*FIELD_TYPES, *SINK_KINDS):
        assert f"`{word}`" in text


def test_the_examples_that_are_whole_files_have_no_lint(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(version: 1\n.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    environ = {"SOURCE_DSN": "dbname=s", "WAREHOUSE_DSN": "dbname=w", "SLACK_WEBHOOK_URL": "https://x"}
    environ |= {"BRIDGE_API_KEY": "key", "BRIDGE_ADMIN_TOKEN": "token"}
    for number, text in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert [finding.text("") for finding in lint(path, environ)] == []
        results = run_cases(load(path, environ))
        assert results
        assert [result for result in results if result.differences] == []
