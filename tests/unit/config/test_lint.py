"""Lint: each finding stands at its line and column and says what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.config.document import read
from bridge.config.lint import examined, lint
from bridge.config.snapshot import Facts
from bridge.expressions.expression import compile_expression
from bridge.expressions.tree import tree_of
from bridge.planning.column_fit import ColumnType

HEAD = """\
version: 1
connections:
  warehouse: {{ type: postgres, dsn: "{dsn}" }}
events:
  usage.limit_reached: {{ customer_id: string, metric: {{ enum: [seats, storage] }}, used: number }}
pipelines:
  hits:
    event: {event}
    steps:
      - {step}
    branches:
      - {branch}
      - {second}
    destinations:
      events:
        connection: warehouse
        table: {table}
        mode: {mode}
        key: {key}
        columns: {columns}
"""
WELL = {
    "dsn": "host=localhost dbname=w",
    "event": "usage.limit_reached",
    "step": "set: { big: $event.used > 10 }",
    "branch": '{ name: big, when: "$big", to: [events] }',
    "second": "{ name: rest, to: [] }",
    "table": "events.usage",
    "mode": "upsert",
    "key": "[event_id]",
    "columns": '{ event_id: "$meta.id", used: "$event.used" }',
}


def found(tmp_path: Path, **changed: str) -> list[str]:
    path = tmp_path / "bridge.yaml"
    path.write_text(HEAD.format(**{**WELL, **changed}))
    return shown(path)


def shown(path: Path) -> list[str]:
    """The findings, without the names of their rules."""
    return [finding.text("").removesuffix(f" [{finding.name}]") for finding in lint(path, {})]


def test_a_sound_file_has_no_findings(tmp_path: Path) -> None:
    assert found(tmp_path) == []


WEBHOOK = "ingress:\n  webhooks: { github: { scheme: github, secrets: [secret] } }"
EVENTS = "pipelines.hits.destinations.events"
CORPUS = {
    "a field the contract has not": (
        {"step": "filter: $event.usd > 0"},
        ":10:17: error: pipelines.hits.steps[0].filter: the event's contract has no field usd; "
        "did you mean used?",
    ),
    "a field inside a number": (
        {"columns": '{ event_id: "$meta.id", used: "$event.used.x" }'},
        f":20:48: error: {EVENTS}.columns.used: used is a number and has no x",
    ),
    "a root that nothing makes": (
        {"branch": '{ name: big, when: "$bigg", to: [events] }'},
        ":12:28: error: pipelines.hits.branches[0].when: there is no $bigg here; did you mean big?",
    ),
    "a name that a later step makes": (
        {"step": "filter: $late > 1\n      - set: { late: $event.used }"},
        ":10:17: error: pipelines.hits.steps[0].filter: $late is defined by a later step; move that step up",
    ),
    "a word that $meta has not": (
        {"columns": '{ event_id: "$meta.id", used: "$meta.sequence" }'},
        f":20:48: error: {EVENTS}.columns.used: $meta has no sequence; "
        "there is: id, type, key, seq, occurred_at, idempotency_key, headers, source",
    ),
    "a branch after one that takes all": (
        {"branch": "{ name: all, to: [events] }"},
        ":13:9: error: pipelines.hits.branches[1]: is unreachable: `all` before it matches everything; "
        "put it before `all`",
    ),
    "a destination no branch leads to": (
        {"branch": '{ name: big, when: "$big", to: [] }'},
        f":15:7: warning: {EVENTS}: no branch leads to it; add it to a branch's to: [events]",
    ),
    "an upsert without a key": (
        {"key": "[]"},
        f":18:15: error: {EVENTS}.mode: an upsert needs `key`; "
        "name the columns of a unique index: key: [event_id]",
    ),
    "an upsert by something that is not the event": (
        {"key": "[used]"},
        f":19:9: warning: {EVENTS}.key: is not the event's identity: "
        "a retried older event would overwrite a newer one; add version: $meta.seq",
    ),
    "a key that is no column": (
        {"key": "[event_idd]"},
        f":19:15: error: {EVENTS}.key[0]: key column event_idd is not among `columns`; "
        "did you mean event_id?",
    ),
    "a key that insert does not use": (
        {"mode": "insert"},
        f":19:9: warning: {EVENTS}.key: `key` has no effect with mode: insert; use mode: upsert, or remove it",
    ),
    "arithmetic in a column": (
        {"columns": '{ event_id: "$meta.id", used: "$event.used / 3" }'},
        f":20:48: warning: {EVENTS}.columns.used: is computed in float64: a numeric "
        "column loses its exact decimals; map the field itself, or compute in SQL (a generated column)",
    ),
    "a text compared with a number": (
        {"step": "filter: $event.customer_id > 0"},
        ":10:17: error: pipelines.hits.steps[0].filter: $event.customer_id is a text and 0 is a number: "
        "they cannot be compared; compare values of one type, or correct the contract",
    ),
    "a number in quotes": (
        {"step": "filter: $event.used >= '95'"},
        ":10:17: error: pipelines.hits.steps[0].filter: $event.used is a number and '95' is a text: "
        "they cannot be compared; write 95 without quotes",
    ),
    "an expression that cannot be read": (
        {"step": "filter: $event.used >"},
        ":10:17: error: pipelines.hits.steps[0].filter: unexpected the end in expression '$event.used >'",
    ),
    "a template that cannot be read": (
        {"columns": '{ event_id: "$meta.id", used: "{{ event.used" }'},
        f":20:48: error: {EVENTS}.columns.used: template '{{{{ event.used' cannot be read: SyntaxError",
    ),
    "a template's name that is not there": (
        {"columns": '{ event_id: "$meta.id", used: "{{ event.usd }}" }'},
        f":20:48: error: {EVENTS}.columns.used: the event's contract has no field usd; did you mean used?",
    ),
    "a value the enum has not": (
        {"step": "filter: $event.metric == 'seat'"},
        ":10:17: error: pipelines.hits.steps[0].filter: $event.metric is never 'seat'; did you mean seats?",
    ),
    "a table without its schema": (
        {"table": "usage"},
        f":17:16: error: {EVENTS}.table: a table needs its schema; write public.usage",
    ),
    "a weak sslmode to another host": (
        {"dsn": "host=db.example dbname=w sslmode=require"},
        ":3:37: warning: connections.warehouse.dsn: sslmode is require, which does not verify "
        "the identity of another host; set sslmode: verify-full, and sslrootcert where it needs one",
    ),
    "an event nobody has described": (
        {"event": "usage.limit_reachd"},
        ":8:12: error: pipelines.hits.event: no event under `events` matches "
        "usage.limit_reachd: its payloads are not checked; did you mean usage.limit_reached?",
    ),
    "a division by nothing": (
        {"step": "filter: $event.used / 0 > 1"},
        ":10:17: error: pipelines.hits.steps[0].filter: divides by zero: every event would become a dead letter",
    ),
    "a divisor that may be zero": (
        {"step": "set: { big: 5 / $event.used > 1 }"},
        ":10:21: warning: pipelines.hits.steps[0].set.big: $event.used may be 0: a division by zero makes the "
        "event a dead letter; check first, here or in an earlier filter: $event.used > 0",
    ),
    "a webhook whose events go nowhere": (
        {"columns": f"{WELL['columns']}\n{WEBHOOK}"},
        ":22:15: warning: ingress.webhooks.github: no pipeline takes its events, github.*; "
        "add a pipeline with event: 'github.*'",
    ),
    "a variable that is not set here": (
        {"dsn": "${WAREHOUSE_DSN:?set WAREHOUSE_DSN}"},
        ":3:37: warning: connections.warehouse.dsn: WAREHOUSE_DSN is not set: set WAREHOUSE_DSN",
    ),
    "a dollar in the middle of a text": (
        {"columns": '{ event_id: "$meta.id", used: "is $event.used" }'},
        f":20:48: warning: {EVENTS}.columns.used: $event.used inside text "
        "is not replaced; write {{ event.used }} for its value, or $$ for a dollar",
    ),
}


@pytest.mark.parametrize(("changed", "line"), CORPUS.values(), ids=CORPUS.keys())
def test_finds(tmp_path: Path, changed: dict[str, str], line: str) -> None:
    assert line in found(tmp_path, **changed)


OPTIONAL = """\
version: 1
connections:
  warehouse: {{ type: postgres, dsn: dbname=w }}
events:
  lead.created: {{ id: string, size: "integer?", score: {{ type: number, nullable: true }}, source: "string?" }}
pipelines:
  leads:
    event: lead.created
    steps:
      - enrich.entity:
          as: company
          key: $event.id
          sql: select id, mrr from company where id = any(%(keys)s)
          missing: {missing}
      - filter: "{first}"
      - set: {{ hot: "{second}" }}
    destinations:
      events: {{ connection: warehouse, table: events.leads, columns: {{ id: $event.id, hot: $hot }} }}
"""
SURE = "$event.id != ''"


def absences(tmp_path: Path, first: str, second: str = SURE, missing: str = "continue") -> list[str]:
    path = tmp_path / "bridge.yaml"
    path.write_text(OPTIONAL.format(first=first, second=second, missing=missing))
    return [f"{finding.message}; {finding.fix}" for finding in lint(path, {})]


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("$event.size > 5", "$event.size may be missing or null: the event then becomes a dead letter; "
         "give a default: ($event.size|default(0, true))"),
        ("$event.score * 2 > 5", "$event.score may be null: the event then becomes a dead letter; "
         "give a default: ($event.score|default(0, true))"),
        ("$event.source == 'web'", "$event.source may be missing: the event then becomes a dead letter; "
         "give a default: ($event.source|default('', true))"),
        ("$company.mrr > 500", "$company.mrr is null where no company is found: the event then "
         "becomes a dead letter; check first: $company.mrr is not none and ..."),
    ],
)  # fmt: skip
def test_what_may_not_be_there_is_told_once(tmp_path: Path, expression: str, told: str) -> None:
    assert absences(tmp_path, expression, expression) == [told]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{{ event.source }}: {{ event.source }}", True),
        ("{% if event.source %}x{% endif %}", True),
        ("{{ event.source|default('nowhere') }}", False),
        ("{% if event.source is defined %}{{ event.source }}{% endif %}", False),
        ("{{ event.id }}, {{ event.score }}, {{ company.mrr }}: event.source", False),
    ],
)
def test_a_template_that_prints_what_may_be_missing_is_told(tmp_path: Path, value: str, told: bool) -> None:
    path = tmp_path / "bridge.yaml"
    text = OPTIONAL.format(first=SURE, second=SURE, missing="continue")
    path.write_text(text.replace("hot: $hot", f'hot: "{{{{ event.id }}}}{value}"'))
    line = "event.source may be missing: this destination then gets a dead letter"
    fix = "give a default: {{ event.source|default('') }}"
    assert [(one.message, one.fix) for one in lint(path, {})] == ([(line, fix)] if told else [])


@pytest.mark.parametrize(
    "expression",
    [
        "$event.source",
        "$event.size|default(0, true) > 5",
        "$event.score is not none and $event.score > 5",
        "$event.score and $event.score > 5",
        "$event.score == 5",
        "$company.id is not none and $company.mrr > 500",
        "$company.mrr == 500",
        "'$event.size > 5' != $event.id",
    ],
)
def test_what_is_asked_for_first_is_not_told(tmp_path: Path, expression: str) -> None:
    assert absences(tmp_path, expression) == []


def test_a_filter_answers_for_the_steps_after_it(tmp_path: Path) -> None:
    assert absences(tmp_path, "$event.size is defined and $event.size is not none", "$event.size > 5") == []


def test_a_row_that_must_be_found_is_there(tmp_path: Path) -> None:
    assert absences(tmp_path, "$company.mrr > 500", missing="dead") == []


def test_a_divisor_that_was_compared_before_is_not_told(tmp_path: Path) -> None:
    assert found(tmp_path, step="filter: $event.used > 0\n      - set: { big: 5 / $event.used > 1 }") == []


def test_webhooks_whose_events_may_be_taken_are_not_told(tmp_path: Path) -> None:
    hooks = "\n".join(
        f"    {name}: {{ scheme: github, secrets: [secret]{kind} }}"
        for name, kind in {"usage": "", "a": ", type: $body.type", "b": ", type: usage.limit_reached"}.items()
    )
    columns = f"{WELL['columns']}\ningress:\n  webhooks:\n{hooks}"
    assert found(tmp_path, columns=columns) == []


def test_two_connections_to_one_database_are_told(tmp_path: Path) -> None:
    text = HEAD.format(**WELL).replace(
        "events:\n", '  again: { type: postgres, dsn: "dbname=w host=localhost" }\nevents:\n', 1
    )
    path = tmp_path / "bridge.yaml"
    path.write_text(text)
    lines = shown(path)
    assert lines == [
        ":4:3: warning: connections.again: no pipeline uses this connection; remove it",
        ":4:3: warning: connections.again: is the same database as warehouse: each would have its "
        "own slot and ledger row; use warehouse for both",
    ]


def test_the_connection_of_the_log_is_used(tmp_path: Path) -> None:
    text = HEAD.format(**WELL).replace(
        "events:\n",
        "  bus: { type: nats, servers: [tls://nats.internal:4222] }\nscale: { log: bus }\nevents:\n",
        1,
    )
    path = tmp_path / "bridge.yaml"
    path.write_text(text)
    assert shown(path) == []


def test_a_key_that_events_may_lack_is_told(tmp_path: Path) -> None:
    columns = '{ event_id: "$event.customer_id", used: "$event.used" }\n        version: $meta.seq'
    path = tmp_path / "bridge.yaml"
    for kind, told in (("string", False), ('"string?"', True), ("{ type: string, nullable: true }", True)):
        text = HEAD.replace(
            "customer_id: string", f"customer_id: {kind.replace('{', '{{').replace('}', '}}')}"
        )
        path.write_text(text.format(**{**WELL, "columns": columns}))
        assert (
            shown(path)
            == [
                f":19:15: warning: {EVENTS}.key[0]: is NULL for an event without $event.customer_id: "
                "it adds a row each time, or is a dead letter where the column is NOT NULL; "
                "let usage.limit_reached require the field, or use another key"
            ]
            * told
        )


def test_yaml_that_cannot_be_parsed_is_a_finding_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("version: 1\nconnections: { a: ${X} }\n")
    (finding,) = lint(path, {})
    assert (finding.level, finding.position.line) == ("error", 2)
    assert "quote a value that has ${...}" in finding.fix


def names(path: Path, *allow: str) -> list[str]:
    return [finding.name for finding in lint(path, {"WORD": "s3cret"}, allow)]


def test_a_finding_is_allowed_on_its_line_and_above_it_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    text = HEAD.format(**{**WELL, "columns": '{ event_id: "$meta.id", used: "$event.used / 3" }'})
    line = next(line for line in text.splitlines() if "/ 3" in line)
    for written, left in {
        f"{line}  # lint: allow float64 it is shown, not added up": [],
        f"        # lint: allow float64 it is shown\n        # to people\n{line}": [],
        f"{line}  # lint: allow float64": ["allow-without-reason"],
        f"{line}  # lint: allow flaot64 it is shown": ["float64", "unused-allow"],
        f"{line}  # lint: allow": ["float64", "unused-allow"],
        f"# lint: allow float64 too far away\n        mode: upsert\n{line}": ["unused-allow", "float64"],
    }.items():
        path.write_text(
            text.replace(
                "        mode: upsert\n", "" if "mode" in written else "        mode: upsert\n", 1
            ).replace(line, written)
        )
        assert names(path) == left, written
    path.write_text(text)
    assert names(path, "float64") == []
    assert names(path, "flaot64") == ["unused-allow", "float64"]
    [told, _] = lint(path, {}, ["flaot64"])
    assert told.fix == "did you mean float64?"


def test_only_a_comment_allows(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    for text in (
        '"{{ event.usd }} # lint: allow unknown-field not a comment"',
        "|\n            # lint: allow unknown-field not a comment\n            {{ event.usd }}",
    ):
        path.write_text(
            HEAD.format(**{**WELL, "columns": f"\n          event_id: $meta.id\n          used: {text}"})
        )
        assert names(path) == ["unknown-field"]
    path.write_text(
        HEAD.format(
            **{
                **WELL,
                "columns": "\n          event_id: $meta.id\n          used: | # lint: allow unknown-field so\n"
                "            {{ event.usd }}",
            }
        )
    )
    assert names(path) == []


def test_what_could_not_run_cannot_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(
        HEAD.format(
            **{**WELL, "second": '{ name: rest, when: "$event.used >", to: [] }  # lint: allow syntax please'}
        )
    )
    assert names(path) == ["syntax", "unused-allow"]
    assert names(path, "syntax") == ["unused-allow", "syntax", "unused-allow"]


def test_what_came_from_a_variable_is_in_no_finding(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    for when in ("$event.metric == '${WORD}'", "$event.used > ${WORD} +", "$event.${WORD} > 1"):
        path.write_text(HEAD.format(**{**WELL, "second": f'{{ name: rest, when: "{when}", to: [] }}'}))
        [found] = [one.text("") for one in lint(path, {"WORD": "s3cret"}) if one.level == "error"]
        assert "s3cret" not in found
        assert "${WORD}" in found


SEVERAL = """\
version: 1
connections:
  warehouse: {{ type: postgres, dsn: dbname=w }}
events:
  quota.near: {{ metric: {{ enum: [api, storage] }}, level: {{ enum: [1, 2] }}, used: number, plan: string, at: any }}
  quota.over: {{ metric: {{ enum: [api, seats] }}, level: {{ enum: [1, 3] }}, used: number, plan: number, by: string }}
pipelines:
  p:
    event: {events}
    steps:
      - set: {{ ratio: $event.used / 100, what: $event.metric }}
    branches:
      - {{ name: hard, when: "{when}", to: [t] }}
      - {{ name: rest, to: [] }}
    destinations:
      t: {{ connection: warehouse, table: public.t, columns: {{ used: $event.used, ratio: {column} }} }}
"""
BOTH, GLOB, ONE = "[quota.near, quota.over]", '"quota.*"', "quota.near"


def several(tmp_path: Path, events: str, when: str, column: str = "1") -> list[tuple[str, str, str]]:
    path = tmp_path / "bridge.yaml"
    path.write_text(SEVERAL.format(events=events, when=when, column=column))
    return [(one.level, one.name, one.message) for one in lint(path, {}) if one.name != "unused-event"]


@pytest.mark.parametrize("events", [ONE, BOTH, GLOB])
@pytest.mark.parametrize(
    ("when", "name"),
    [
        ("$event.metric == 'api-calls'", "never-equal"),
        ("'api-calls' != $event.metric", "never-equal"),
        ("$what == 'api-calls'", "never-equal"),
        ("$event.used > 1 and not ($event.metric in ['calls', 'size'])", "never-equal"),
        ("$event.level == 4", "never-equal"),
        ("$meta.type == 'quato.near'", "never-equal"),
        ("$event.used >= '0.8'", "unlike-values"),
        ("$event.used / 100 >= '0.8'", "unlike-values"),
        ("$ratio >= '0.8'", "unlike-values"),
        ("-$event.used + 3 < '5' ~ '0'", "unlike-values"),
        ("($event.used|round(2)) == '0.8'", "unlike-values"),
        ("$event.used in ['1', '2']", "unlike-values"),
        ("$meta.seq > '5'", "unlike-values"),
        ("$event.metric / 2 > 1", "no-number"),
        ("$event.used + 'x' == 'yx'", "no-number"),
        ("$event.usd > 1", "unknown-field"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_told_of_every_type(
    tmp_path: Path, events: str, when: str, name: str
) -> None:
    found = several(tmp_path, events, when)
    assert name in [one for _, one, _ in found]
    sure = events != GLOB or name not in ("never-equal", "unknown-field") or "usd" in when or "type" in when
    assert ("error" in [level for level, _, _ in found]) is sure


@pytest.mark.parametrize(
    "when",
    [
        "$event.metric == 'storage' or $event.metric == 'seats'",
        "$what in ['api', 'seats']",
        "$event.level in [1, 2, 3] and $event.level > 2",
        "$meta.type == 'quota.over'",
        "$event.metric ~ $event.used == 'api1'",
        "$event.metric + 'x' == 'apix'",
        "($event.used|string) == '5'",
        "($event.metric|length) > 3",
        "'a' in $event.metric",
        "$event.metric.startswith('a') and $event.used > 1",
        "$event.used > 1 if $event.metric == 'api' else $event.used > 2",
        "$event.used == none or $event.used is none",
        "1 < $event.used < 5",
        "$meta.headers.trace == 5",
    ],
)
@pytest.mark.parametrize("events", [BOTH, GLOB])
def test_a_condition_that_can_match_is_left_alone(tmp_path: Path, events: str, when: str) -> None:
    assert several(tmp_path, events, when) == []


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ 'x' if event.metric == 'api-calls' else 'y' }}", "never-equal"),
        ("{% if event.metric in ['calls', 'size'] %}x{% endif %}{{ event.used }}", "never-equal"),
        ("{% if event.used > 5 %}x{% elif event.level == 4 %}y{% endif %}{{ what }}", "never-equal"),
        ("{{ 'x' if what == 'api-calls' else 'y' }}", "never-equal"),
        ("a {{ event.used }} b {{- event.used >= '0.8' -}} c", "unlike-values"),
        ("{{ event.metric / 2 }}", "no-number"),
        ("{{ 'x' if meta.type == 'quato.near' else event.metric }}", "never-equal"),
        ("{{ 'x' if event.metric == 'api' else event.metric|upper }}", None),
        ("{{ \"event.metric == 'api-calls'\" }}{{ event.used }}", None),
        ("{# event.metric == 'z' #}{% raw %}{{ event.metric == 'z' }}{% endraw %}{{ event.used }}", None),
        ("{% for event in [1, 2] %}{% if event == 'x' %}{{ event }}{% endif %}{% endfor %}", None),
        ("{% set what = event.used %}{% if what == 5 %}{{ what }}{% endif %}", None),
        ("{{ 'x' if event.metric is not none and event.used > 5 else 'y' }}", None),
        ("{% for one in meta.headers %}{{ one.metric == 'z' }}{{ loop.index == 1 }}{% endfor %}", None),
    ],
)
def test_what_a_template_compares_is_judged_as_an_expression_is(
    tmp_path: Path, template: str, told: str | None
) -> None:
    found = several(tmp_path, BOTH, "$event.used > 1", json.dumps(template))
    assert {(level, name) for level, name, _ in found} == ({("error", told)} if told else set())
    assert not [message for _, _, message in found if "$" in message]


def test_what_only_some_of_the_types_have_is_told_with_their_names(tmp_path: Path) -> None:
    [(level, name, message)] = several(tmp_path, BOTH, "$event.plan == 'pro'")
    assert (level, name) == ("warning", "unlike-values")
    assert message == "$event.plan is a number in events of quota.over: there they cannot be compared"
    [(level, name, message)] = several(tmp_path, BOTH, "$event.by == 'x'")
    assert (level, name) == ("warning", "may-be-absent")
    assert message == "$event.by is missing in events of quota.near: the event then becomes a dead letter"
    [(level, name, message)] = several(tmp_path, BOTH, "$event.used > 1", "$event.at")
    assert (level, name) == ("warning", "field-of-some")
    assert message == "$event.at is null in events of quota.over: their contract does not have it"
    [(level, name, message)] = several(tmp_path, BOTH, "$event.used > 1", "'{{ event.by }}'")
    assert message == "event.by is missing in events of quota.near: this destination then gets a dead letter"
    [(level, name, message)] = several(tmp_path, BOTH, "$event.metric in ['api', 'sets']")
    assert (level, message) == ("warning", "$event.metric is never 'sets'")


def test_what_may_be_meant_does_not_stop_a_bridge(tmp_path: Path) -> None:
    """An event without a contract, a field that one without a contract may bring."""
    near = HEAD.format(**{**WELL, "event": "[usage.limit_reached, usage.limit_reset]"})
    path = tmp_path / "bridge.yaml"
    path.write_text(near)
    assert [(one.level, one.name) for one in lint(path, {})] == [("warning", "unknown-event")]
    assert several(tmp_path, GLOB, "$event.reason == 'x'") == [
        ("warning", "unknown-field", "no contract of quota.* has a field reason")
    ]


@pytest.mark.parametrize(
    "expression",
    [
        "1 + 2 * -$event.used ** 2 // 3 % 4 ~ 'x'",
        "$event.a is not none and ($event.b|default(0, true)) >= 1 or not $event.c",
        "$event.x if $event.y in ['a', $event.z] else $event.a['b c'][0].d",
        "$event.a.startswith('x') and {'a': [1, 2]}['a'] and range(3)|length == 3",
        "'a' 'b' == $event.a and 1 < $event.b <= 3 and $event.c not in []",
    ],
)
def test_what_can_be_compiled_has_a_tree(expression: str) -> None:
    compile_expression(expression)
    assert tree_of(expression) is not None


KEPT = """\
version: 1
connections:
  warehouse: {{ type: postgres, dsn: dbname=w }}
events:
  account.updated: {{ id: string, plan: string, seats: number }}
  usage.seen: {{ account: string }}
entities:
  account: {{ kept_by: events }}
pipelines:
  accounts: {{ event: account.updated, steps: [ {{ upsert.entity: {{ entity: account, key: $event.id{fields} }} }} ] }}
  usage:
    event: usage.seen
    steps:
      - enrich.entity: {{ entity: account, key: $event.account }}
    destinations:
      t: {{ connection: warehouse, table: public.t, columns: {{ plan: {read} }} }}
"""


@pytest.mark.parametrize(
    ("fields", "read", "found"),
    [
        ("", "$account.plan", []),
        ("", "$account.paln", ["error"]),
        ("", "'{{ account.owner }}'", ["warning"]),
        (", fields: { plan: $event.plan }", "$account.plan", []),
        (", fields: { plan: $event.plan }", "$account.seats", ["warning"]),
    ],
)
def test_a_field_that_no_event_says_of_an_entity(
    tmp_path: Path, fields: str, read: str, found: list[str]
) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(KEPT.format(fields=fields, read=read))
    assert [one.level for one in lint(path, {}) if one.name == "entity-field"] == found
    assert [one.name for one in lint(path, {}) if one.name != "entity-field"] == []


def test_a_snapshot_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(HEAD.format(**WELL))
    (tmp_path / "bridge.snapshot.json").write_text("[]")
    [told] = lint(path, {})
    assert (told.level, told.fix) == ("error", "write it again: bridge doctor --snapshot")


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("event.used", "missing-dollar"),
        ("meta.id", "missing-dollar"),
        ("event.created", ""),
        ("'{% if event.used %}x{% endif %}'", "no-template"),
        ("'50{% off'", ""),
    ],
)
def test_a_text_that_was_meant_as_a_value_is_told(tmp_path: Path, column: str, name: str) -> None:
    told = several(tmp_path, ONE, "$event.used > 1", column)
    assert [(level, one) for level, one, _ in told] == ([("warning", name)] if name else [])


def test_a_field_with_another_number_is_another_field(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    text = SEVERAL.replace("by: string", "by: string, address1: string")
    path.write_text(text.format(events=GLOB, when="$event.address3 is defined", column="1"))
    assert "error" not in [one.level for one in lint(path, {})]


@pytest.mark.parametrize(("word", "level"), [("high", ["error"]), ("hi", [])])
def test_the_words_of_a_choice_are_known(tmp_path: Path, word: str, level: list[str]) -> None:
    path = tmp_path / "bridge.yaml"
    text = SEVERAL.replace("what: $event.metric", "what: \"'hi' if $event.used > 5 else 'lo'\"")
    path.write_text(text.format(events=ONE, when=f"$what == '{word}'", column="1"))
    assert [one.level for one in lint(path, {}) if one.name == "never-equal"] == level


@pytest.mark.parametrize(
    ("column", "base", "told"),
    [
        ("$event", "int4", "column-type"),
        ("$event", "jsonb", ""),
        ("$meta.occurred_at", "bool", "column-type"),
        ("$meta.seq", "int8", ""),
        ("$meta.id", "int8", ""),
        ("$event.metric", "time", "column-words"),
        ("$event.metric", "_text", "column-words"),
        ("'{a,b}'", "_text", ""),
        ("allballs", "time", ""),
    ],
)
def test_whole_events_meta_and_words_are_held_against_the_column(
    tmp_path: Path, column: str, base: str, told: str
) -> None:
    facts = Facts(
        tables={("warehouse", "public", "t"): {"used": ColumnType("numeric"), "ratio": ColumnType(base)}}
    )
    path = tmp_path / "bridge.yaml"
    path.write_text(SEVERAL.format(events=ONE, when="$event.used > 1", column=column))
    _, findings = examined(read(path, {}), (), facts)
    assert [one.name for one in findings if one.name.startswith("column-")] == ([told] if told else [])
