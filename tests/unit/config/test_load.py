"""The example of the documentation, whole, through load and into specs."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.config.connection import PostgresConnection
from bridge.config.load import load
from bridge.config.model import Config, SourceSection
from bridge.config.several import each_source, ingress_sources, rest_sources
from bridge.config.specs import contract_specs, pipeline_specs
from bridge.planning.spec import SinkSpec, TableSpec
from bridge.planning.steps.enrich import EnrichSpec
from bridge.planning.steps.filter import FilterSpec
from bridge.planning.steps.redact import RedactSpec
from bridge.planning.steps.set import SetSpec
from bridge.problem import InvalidConfig
from bridge.sinks.slack import SlackConnection

EXAMPLE = Path(__file__).parent / "example.yaml"
ENVIRON = {
    "WAREHOUSE_DSN": "postgresql://bridge:CANARY@warehouse.example/db?sslmode=verify-full",
    "SLACK_WEBHOOK_URL": "https://hooks.example/CANARY",
    "BRIDGE_API_KEY": "CANARY",
}


@pytest.fixture
def config() -> Config:
    return load(EXAMPLE, ENVIRON)


def test_the_example_loads_with_its_variables_in_place(config: Config) -> None:
    warehouse = config.connections["warehouse"]
    assert isinstance(warehouse, PostgresConnection)
    assert warehouse.dsn == ENVIRON["WAREHOUSE_DSN"]
    assert config.source.dsn == "service=app"
    csm = config.connections["csm"]
    assert isinstance(csm, SlackConnection)
    assert csm.webhook_url == ENVIRON["SLACK_WEBHOOK_URL"]
    assert config.ingress is not None
    assert config.ingress.api_keys == ("CANARY",)


def test_durations_sizes_and_addresses_are_parsed(config: Config) -> None:
    assert config.source.retention == timedelta(days=7)
    assert config.source.max_retained_wal == 8 * 2**30
    assert config.ingress is not None
    assert config.ingress.max_payload == 2**20
    assert (config.admin.listen.host, config.admin.listen.port) == ("127.0.0.1", 8377)


def test_pipelines_become_specs(config: Config) -> None:
    (spec,) = pipeline_specs(config)
    assert spec.name == "usage-limit-hits"
    assert spec.events == ("usage.limit_reached",)
    assert [type(step) for step in spec.steps] == [EnrichSpec, FilterSpec, SetSpec, RedactSpec]
    enrich = spec.steps[0]
    assert isinstance(enrich, EnrichSpec)
    assert (enrich.as_name, enrich.source, enrich.cache_seconds) == ("customer", "source", 300.0)
    assert spec.branches is not None
    assert [(branch.name, branch.to) for branch in spec.branches] == [
        ("blocked", ("events", "nudge")),
        ("nudge", ("events",)),
        ("rest", ()),
    ]
    table, sink = spec.destinations["events"], spec.destinations["nudge"]
    assert isinstance(table, TableSpec)
    assert (table.table_name, table.mode, table.key) == ("events.usage_limits", "upsert", ("event_id",))
    assert isinstance(sink, SinkSpec)
    assert (sink.kind, sink.max_age_seconds, list(sink.fields)) == ("slack", 86400.0, ["text"])


def test_contracts_become_specs(config: Config) -> None:
    contract = contract_specs(config)["usage.limit_reached"]
    assert [(field.name, field.type, field.enum) for field in contract.fields] == [
        ("customer_id", "string", None),
        ("metric", "string", ("seats", "api-calls", "storage")),
        ("limit", "number", None),
        ("used", "number", None),
        ("plan", "string", None),
    ]


def test_no_secret_stands_in_the_text_of_a_config(config: Config) -> None:
    assert "CANARY" not in repr(config)
    assert "CANARY" not in str(config)


def test_missing_variables_are_all_named_with_their_places() -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(EXAMPLE, {})
    text = str(caught.value)
    assert (
        "example.yaml:11:37: connections.warehouse.dsn: WAREHOUSE_DSN is not set: set WAREHOUSE_DSN" in text
    )
    assert "example.yaml:12:42: connections.csm.webhook_url: SLACK_WEBHOOK_URL is not set" in text
    assert "ingress.api_keys[0]: BRIDGE_API_KEY is not set" in text
    assert len(caught.value.problems) == 3


def test_offline_tells_of_a_variable_whose_value_decides(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("version: 1\nsource:\n  capture: ${CAPTURE}\n")
    with pytest.raises(InvalidConfig, match="CAPTURE is not set") as caught:
        load(path, {}, offline=True)
    assert len(caught.value.problems) == 1
    assert load(path, {"CAPTURE": "poll"}).source.capture == "poll"


def test_offline_needs_no_variables() -> None:
    assert pipeline_specs(load(EXAMPLE, {}, offline=True)) == pipeline_specs(load(EXAMPLE, ENVIRON))


def test_an_instance_is_its_source_and_slot_and_nothing_secret() -> None:
    def instance(dsn: str = "postgresql://db/app", **more: object) -> str:
        return SourceSection.model_validate({"dsn": dsn, **more}).instance()

    assert re.fullmatch("1-[0-9a-f]{16}", instance())
    same = ["postgresql://someone:CANARY@db/app", "host=db dbname=app password=x sslmode=require"]
    assert {instance(dsn) for dsn in same} == {
        instance()
    }  # a password may be changed, and cannot be guessed from it
    assert instance(retention="1d") == instance()  # a bridge that has not read the change yet is the same
    others = [instance("postgresql://db/other"), instance("postgresql://other/app"), instance(slot="other")]
    assert len({instance(), *others}) == 4


@pytest.mark.parametrize(
    ("ingress", "writes", "chosen"),
    [
        ("api_keys: [k]", ["eu", "us"], ["eu", "us"]),
        ("api_keys: [k], source: us", ["us"], ["us"]),
        ("webhooks: { h: { scheme: github, secrets: [s], source: eu } }", ["eu"], []),
        (
            "source: us, api_keys: [k], webhooks: { h: { scheme: github, secrets: [s], source: eu } }",
            ["eu", "us"],
            ["us"],
        ),
    ],
)
def test_the_ingress_is_of_the_sources_that_it_writes_to(
    tmp_path: Path, ingress: str, writes: list[str], chosen: list[str]
) -> None:
    file = tmp_path / "bridge.yaml"
    file.write_text(
        "version: 1\nsources: { eu: { dsn: dbname=e }, us: { dsn: dbname=u } }\n"
        f"ingress: {{ {ingress} }}\n"
    )
    config = load(file, {})
    assert ingress_sources(config) == writes
    assert rest_sources(config) == chosen
    assert [one.source_name for one in each_source(config) if one.ingress is not None] == writes
