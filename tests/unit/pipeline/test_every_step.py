"""What every step must do: one suite. A new step adds a line to SAMPLES; that none is forgotten is a test too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.config.lint import lint
from bridge.config.load import load
from bridge.config.specs import pipeline_specs
from bridge.planning.lookup import Lookup
from bridge.planning.planner import answered
from bridge.planning.rows import Rows
from bridge.planning.steps.step import Answers, Passed, StepContext, StepSpec, steps
from tests.unit.pipeline.samples import event

SAMPLES = {
    "enrich.entity": "{ as: who, key: $event.id, sql: 'select id from t where id = any(%(keys)s)', missing: dead }",
    "upsert.entity": "{ entity: customer, key: $event.id, fields: { plan: $event.plan } }",
    "filter": "$event.used / $event.limit > 0.5",
    "set": "{ ratio: $event.used / $event.limit, same: $event.plan }",
    "redact": "[plan]",
}
CONFIG = """\
version: 1
connections: {{ w: {{ type: postgres, dsn: dbname=w }} }}
events: {{ a.b: {{ id: "string?", used: "number?", limit: "number?", plan: "string?" }} }}
entities: {{ customer: {{ kept_by: events }} }}
pipelines:
  p:
    event: a.b
    steps:
      - {word}: {sample}
    destinations: {{ d: {{ connection: w, table: s.t }} }}
"""
DOCUMENTS: list[dict[str, Any]] = [
    {"id": "known", "used": 9, "limit": 10, "plan": "pro"},
    {"id": "unknown", "used": 1, "limit": 10, "plan": "free"},
    {"id": None, "used": 5, "limit": 0, "plan": None},  # no key, and a division by zero
    {"id": ["no", "key"], "used": "text", "limit": 1},
    {"id": "known", "used": 1.25, "limit": 2, "plan": "pro"},
]

each_step = pytest.mark.parametrize("word", SAMPLES)


def spec_of(word: str, folder: Path) -> StepSpec:
    """The step of a configuration that has only this one."""
    file = folder / "bridge.yaml"
    file.write_text(CONFIG.format(word=word, sample=SAMPLES[word]))
    assert [found.text("") for found in lint(file, {}) if found.level == "error"] == []
    ((step,),) = [pipeline.steps for pipeline in pipeline_specs(load(file, {}))]
    return step


def rows() -> Rows:
    batch = [event(document, number, type=b"a.b") for number, document in enumerate(DOCUMENTS)]
    return Rows(list(range(len(batch))), batch, [dict(document) for document in DOCUMENTS])


def answer(lookup: Lookup) -> dict[Any, dict[str, Any]]:
    return {key: {"id": key} for key in lookup.keys if key == "known"}


def run(step: StepSpec, some: Rows) -> Passed:
    context = StepContext("p", frozenset({"who.id"}), keeps=True)
    return answered(step.compile(context).run(some, Answers()), answer)


def test_every_step_is_here() -> None:
    assert set(SAMPLES) == set(steps())


@each_step
def test_an_event_goes_on_or_fails_or_is_filtered(word: str, tmp_path: Path) -> None:
    passed = run(spec_of(word, tmp_path), rows())
    failed = [place for place, _, _ in passed.failures]
    assert len(passed.rows) + len(failed) + passed.filtered == len(DOCUMENTS)
    assert sorted({*passed.rows.at, *failed}) == sorted([*passed.rows.at, *failed])
    assert passed.rows.at == sorted(passed.rows.at)
    assert [each.seq for each in passed.rows.events] == [b"%d" % place for place in passed.rows.at]
    assert all(place == int(one.seq) for place, one, _ in passed.failures)


@each_step
def test_alone_an_event_fares_as_in_a_batch(word: str, tmp_path: Path) -> None:
    step = spec_of(word, tmp_path)
    together = run(step, rows())
    for place in range(len(DOCUMENTS)):
        alone = run(step, rows().part(place, place + 1))
        assert (place in alone.rows.at) == (place in together.rows.at)
        causes = [failure.cause for at, _, failure in together.failures if at == place]
        assert [failure.cause for _, _, failure in alone.failures] == causes
        assert not any(str(value) in cause for cause in causes for value in ("known", "['no", "text'"))


@each_step
def test_it_does_what_it_says(word: str, tmp_path: Path) -> None:
    step, before = spec_of(word, tmp_path), rows()
    passed = run(step, before)
    assert set(passed.rows.roots) == set(step.makes)
    assert all(len(values) == len(passed.rows) for values in passed.rows.roots.values())
    assert (passed.filtered > 0) == (step.effect == "drops")
    kept = [before.documents[place] for place in passed.rows.at]
    assert (passed.rows.documents != kept) == (step.effect == "rewrites")
    assert before.documents == DOCUMENTS, "a step makes new documents: another pipeline has the old ones"


@each_step
def test_offline_no_event_fails_for_want_of_an_answer(word: str, tmp_path: Path) -> None:
    step = spec_of(word, tmp_path).offline()
    well = rows().keep([True, True, False, False, True])
    nothing = answered(step.compile(StepContext("p")).run(well, Answers()), lambda _: {})
    assert nothing.failures == []


@each_step
def test_it_tells_a_reader_what_it_is(word: str, tmp_path: Path) -> None:
    step = spec_of(word, tmp_path)
    assert step.words().startswith(word)
    section = load(tmp_path / "bridge.yaml", {}).pipelines["p"].steps[0]
    assert list(section.told())
    assert set(section.makes) == set(step.makes)
