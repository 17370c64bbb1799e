"""The JSON Schemas say what the loader says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config.load import load
from bridge.config.model import Config
from bridge.config.schema import config_json_schema, event_json_schema, keys_at
from bridge.errors import ConfigError

EXAMPLE = Path(__file__).parent / "example.yaml"


@pytest.fixture(scope="module")
def config() -> Config:
    return load(EXAMPLE, {}, offline=True)


def test_the_schema_of_the_file_knows_its_sections_by_the_names_people_write() -> None:
    schema = config_json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["required"] == ["version"]
    assert "enrich.entity" in keys_at(("pipelines", "any", "steps", 0))
    assert {"as", "from", "key"} <= keys_at(("pipelines", "any", "steps", 0, "enrich.entity"))
    assert {"table", "max_age"} <= keys_at(("pipelines", "any", "destinations", "any"))
    assert keys_at(("events", "a.b", "field")) == {"type", "enum", "required", "nullable"}


def test_the_schema_of_an_event_has_its_fields(config: Config) -> None:
    schema = event_json_schema(config, "usage.limit_reached")
    assert schema["properties"]["metric"] == {"type": "string", "enum": ["seats", "api-calls", "storage"]}
    assert schema["required"] == ["customer_id", "metric", "limit", "used", "plan"]
    assert schema["additionalProperties"] is True


def test_optional_fields_may_be_null_and_unknown_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(
        "version: 1\nevents:\n  a:\n    unknown: reject\n    fields:\n      at: timestamp?\n"
        "      plan: { enum: [free, pro], nullable: true }\n"
    )
    schema = event_json_schema(load(path, {}), "a")
    assert schema["properties"]["at"] == {"type": ["string", "null"], "format": "date-time"}
    assert schema["properties"]["plan"] == {"type": ["string", "null"], "enum": ["free", "pro", None]}
    assert schema["required"] == ["plan"]
    assert schema["additionalProperties"] is False


def test_an_event_without_a_contract_is_told_the_nearest(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"did you mean usage\.limit_reached\?"):
        event_json_schema(config, "usage.limit_reachd")
