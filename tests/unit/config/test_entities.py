"""`entities:` and the steps that name them: what lint says, and what the configuration's own tests try."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config.load import load
from bridge.config.schema import keys_at
from bridge.config.specs import pipeline_specs
from bridge.config.testing import run_cases
from bridge.planning.steps.enrich import EnrichSpec
from bridge.plans import stream_plans
from tests.unit.config.test_lint import shown

FILE = """\
version: 1
source: {{ dsn: dbname=s{columns} }}
connections:
  warehouse: {{ type: postgres, dsn: dbname=w }}
events:
  customer.updated: {{ customer_id: string, mrr: "number?", csm: "string?" }}
  usage.limit_reached: {{ customer_id: string, used: number }}
entities:
  customer: {customer}
  account: {account}
pipelines:
  customers:
    event: customer.updated
    steps:
      - {first}
  usage:
    event: usage.limit_reached
    steps:
      - {enrich}
      - {second}
    destinations:
      events: {{ connection: warehouse, table: events.usage, columns: {{ mrr: "${name}.mrr", plan: "$account.plan" }} }}
"""
WELL = {
    "columns": "",
    "customer": "{ kept_by: events, cache: 5m }",
    "account": '{ sql: "select id, plan from account where id = any(%(keys)s)", cache: 1m }',
    "first": "upsert.entity: { entity: customer, key: $event.customer_id, fields: { mrr: $event.mrr } }",
    "enrich": "enrich.entity: { entity: customer, key: $event.customer_id }",
    "second": "enrich.entity: { entity: account, key: $event.customer_id, missing: dead }",
    "name": "customer",
}
FIRST = "pipelines.customers.steps[0].upsert.entity"


def written(tmp_path: Path, more: str = "", **changed: str) -> Path:
    path = tmp_path / "bridge.yaml"
    path.write_text(FILE.format(**{**WELL, **changed}) + more)
    return path


def found(tmp_path: Path, **changed: str) -> list[str]:
    return shown(written(tmp_path, **changed))


def test_a_sound_file_has_no_findings_and_says_where_each_lookup_asks(tmp_path: Path) -> None:
    assert found(tmp_path) == []
    config = load(written(tmp_path), {})
    _, usage = pipeline_specs(config)
    kept, shared = (step for step in usage.steps if isinstance(step, EnrichSpec))
    assert (kept.as_name, kept.kept, kept.source, kept.cache_seconds) == (
        "customer",
        "customer",
        "source",
        300,
    )
    assert "outbox.entity where entity = 'customer'" in kept.sql
    assert (shared.as_name, shared.kept, shared.missing, shared.cache_seconds) == (
        "account",
        None,
        "dead",
        60,
    )
    [plan] = stream_plans(config)
    assert plan.entities == {("customers", "entity:customer")}


def test_an_enrichment_may_call_an_entity_otherwise(tmp_path: Path) -> None:
    enrich = "enrich.entity: { as: who, entity: customer, key: $event.customer_id }"
    assert found(tmp_path, enrich=enrich, name="who") == []


CORPUS = {
    "an upsert of an entity that is not there": (
        {"first": "upsert.entity: { entity: custmer, key: $event.customer_id }"},
        f":15:34: error: {FIRST}.entity: `custmer` is not one of `entities`; did you mean customer?",
    ),
    "a lookup of an entity that is not there": (
        {"second": "enrich.entity: { entity: acount, as: account, key: $event.customer_id }"},
        ":20:34: error: pipelines.usage.steps[1].enrich.entity.entity: `acount` is not one of `entities`; "
        "did you mean account?",
    ),
    "an upsert of an entity that has sql": (
        {"first": "upsert.entity: { entity: account, key: $event.customer_id }"},
        f":15:34: error: {FIRST}.entity: `account` is looked up by its sql: events cannot maintain it; use `kept_by: "
        "events` there instead, or another entity; available: customer",
    ),
    "an upsert without its key": (
        {"first": "upsert.entity: { entity: customer }"},
        f":15:9: error: {FIRST}: `key` is missing",
    ),
    "a key misspelt": (
        {"first": "upsert.entity: { entity: customer, kye: $event.customer_id }"},
        f":15:44: error: {FIRST}.kye: unknown key; did you mean key?",
    ),
    "a field that the event has not": (
        {"first": "upsert.entity: { entity: customer, key: $event.customr_id }"},
        f":15:49: error: {FIRST}.key: the event's contract has no field customr_id; did you mean customer_id?",
    ),
    "a value of a field that the event has not": (
        {
            "first": "upsert.entity: { entity: customer, key: $event.customer_id, fields: { mrr: $event.mrrr } }"
        },
        f":15:84: error: {FIRST}.fields.mrr: the event's contract has no field mrrr; did you mean mrr?",
    ),
    "neither sql nor events": (
        {"customer": "{ cache: 5m }"},
        ":9:13: error: entities.customer: must have either `kept_by: events` or `sql`",
    ),
    "another way to be kept": (
        {"customer": "{ kept_by: event }"},
        ":9:24: error: entities.customer.kept_by: `event` must be events; did you mean events?",
    ),
    "a connection that is not there": (
        {"account": '{ from: warehose, sql: "select 1 where 1 = any(%(keys)s)" }'},
        ":10:20: error: entities.account.from: `warehose` is not a connection; did you mean warehouse?",
    ),
    "sql that takes no keys": (
        {"account": "{ sql: select 1 }"},
        ":10:19: error: entities.account.sql: must take its keys as %(keys)s, such as: "
        "where customer_id = any(%(keys)s)",
    ),
    "a cache said twice": (
        {"second": "enrich.entity: { entity: account, key: $event.customer_id, cache: 1m }"},
        ":20:24: error: pipelines.usage.steps[1].enrich.entity: cache: said where the entity is, under entities",
    ),
    "neither sql nor entity": (
        {"second": "enrich.entity: { as: account, key: $event.customer_id }"},
        ":20:24: error: pipelines.usage.steps[1].enrich.entity: `sql` or `entity` (one "
        "of entities) is missing",
    ),
    "an upsert after a lookup of what is kept": (
        {"second": "upsert.entity: { entity: customer, key: $event.customer_id }", "enrich": WELL["enrich"]},
        ":20:9: error: pipelines.usage.steps[1].upsert.entity: comes after the lookup of $customer: stored "
        "values may not depend on stored values; move upsert.entity before enrich.entity",
    ),
    "an outbox without a seq": (
        {"columns": ", table: a.b, columns: { id: id }"},
        f":15:9: error: {FIRST}: an entity's newest value wins, but this "
        "outbox has no seq to find it; name it: source.columns.seq",
    ),
    "an entity that no event keeps": (
        {"first": "filter: $event.mrr > 0\n    destinations: { e: { connection: warehouse, table: a.b } }"},
        ":9:3: warning: entities.customer: no upsert.entity maintains it; "
        "add upsert.entity: { entity: customer, key: ... } to the pipeline whose events have its fields",
    ),
    "an entity that nobody looks up": (
        {"enrich": "set: { customer: $event }"},
        ":9:3: warning: entities.customer: no enrich.entity looks it up; "
        "enrich.entity: { entity: customer, key: ... }, or remove it",
    ),
    "no destination and nothing to keep": (
        {"first": "filter: $event.mrr > 0"},
        ":13:5: error: pipelines.customers: `destinations` is missing: only a pipeline with upsert.entity may have "
        "none",
    ),
}


@pytest.mark.parametrize("name", CORPUS)
def test_lint_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    changed, finding = CORPUS[name]
    texts = found(tmp_path, **changed)
    assert finding in texts, "\n".join(texts)


def test_the_schema_knows_the_keys() -> None:
    assert keys_at(("entities", "any")) == {"kept_by", "from", "sql", "cache"}
    assert keys_at(("pipelines", "any", "steps", 0, "upsert.entity")) == {"entity", "key", "fields"}


CASE = """
tests:
  - name: one
    pipeline: customers
    event: {{ customer_id: cus_1, mrr: 19.90 }}
    expect: {expect}
"""


@pytest.mark.parametrize(
    ("expect", "differences"),
    [
        ("{ entities: { customer: { cus_1: { mrr: 19.9 } } } }", ()),
        (
            "{ entities: { customer: { cus_1: { mrr: 20 } } } }",
            ("entities.customer.cus_1.mrr: expected 20, got 19.9",),
        ),
        (
            "{ entities: { customer: { cus_2: { mrr: 19.9 } } } }",
            ("entities.customer: expected cus_2, got cus_1",),
        ),
        (
            "{ entities: { customer: { cus_1: { csm: ada } } } }",
            ("entities.customer.cus_1.csm: expected 'ada', but the mapping does not fill it",),
        ),
        (
            "{ entities: { customer: null } }",
            ("entities.customer: expected nothing, but the event sets fields of it",),
        ),
    ],
)
def test_a_files_own_tests_try_what_is_kept(
    tmp_path: Path, expect: str, differences: tuple[str, ...]
) -> None:
    [result] = run_cases(load(written(tmp_path, CASE.format(expect=expect)), {}))
    assert result.differences == differences


def test_a_test_that_expects_another_entity_is_told_so(tmp_path: Path) -> None:
    path = written(tmp_path, CASE.format(expect="{ entities: { custmer: null } }"))
    texts = shown(path)
    assert len(texts) == 1
    assert "no upsert.entity of this pipeline maintains it; did you mean customer?" in texts[0]
