"""Wrong files: every error at its line and column, all at once, with the nearest right word and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config.load import load
from bridge.problem import InvalidConfig

SECRET = "CANARY-5f2c"
TWO_SOURCES = (
    "version: 1\n"
    "sources: { eu: { dsn: dbname=e }, us: { dsn: dbname=u } }\n"
    "connections:\n  w: { type: postgres, dsn: dbname=w }\n"
    "pipelines:\n  p: { event: e, destinations: { d: { connection: w, table: a.b } } }\n"
)
SOUND = """\
version: 1
connections:
  w: { type: postgres, dsn: dbname=w }
events:
  a.b: { x: string }
pipelines:
  p:
    event: a.b
    destinations:
      d: { connection: w, table: s.t }
"""


def errors(tmp_path: Path, text: str, **environ: str) -> list[str]:
    path = tmp_path / "bridge.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        load(path, environ)
    assert caught.value.reason == "config"
    return [problem.text("") for problem in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert old in SOUND
    return SOUND.replace(old, new, 1)


def nats(connection: str, destination: str = "d: { connection: w, table: s.t }") -> str:
    """The sound file with a nats connection, b, and this destination."""
    text = changed("events:", f"  b: {{ type: nats, {connection} }}\nevents:")
    return text.replace("d: { connection: w, table: s.t }", destination)


CORPUS = {
    "version": (changed("version: 1", "version: 2"), ":1:10: version: must be 1"),
    "no version": (changed("version: 1\n", ""), ":1:1: `version` is missing"),
    "top key": (changed("events:", "evnts:"), ":4:1: evnts: unknown key; did you mean events?"),
    "not a mapping": ("- a\n", ":1:1: must be a mapping (key: value)"),
    "empty section": (SOUND + "ingress:\n", ":11:1: ingress: is empty; give it a value, or remove the key"),
    "key": (
        SOUND + "source: { slto: x }\n",
        ":11:11: source.slto: unknown key; did you mean slot?",
    ),
    "choice": (
        SOUND + "source: { capture: slott }\n",
        ":11:20: source.capture: `slott` must be slot or poll or auto; did you mean slot?",
    ),
    "duration": (
        SOUND + "source: { retention: 7 }\n",
        ":11:22: source.retention: must be a duration such as 500ms, 30s, 5m, 24h or 7d",
    ),
    "size": (
        SOUND + "source: { max_retained_wal: 8G }\n",
        ":11:29: source.max_retained_wal: must be a size such as 512KiB, 1MiB or 8GiB",
    ),
    "boolean": (SOUND + "strict: yes\n", ":11:9: strict: must be true or false"),
    "slot name": (
        SOUND + "source: { slot: My-Slot }\n",
        ":11:17: source.slot: must be lower-case letters, digits and _ only: it becomes part of a slot's "
        "name",
    ),
    "connection name": (
        changed("  w: {", "  W-1: {"),
        ":3:3: connections.W-1: must be lower-case letters, digits and _ only: "
        "it becomes part of a slot's name",
    ),
    "slot too long": (
        SOUND + f"source: {{ slot: {'s' * 55} }}\n",
        f":3:3: connections.w: {'s' * 55}_w_<n> is longer than the 63 bytes of a slot's name; "
        "at most 0 characters with this source.slot",
    ),
    "slot of messages too long": (
        "version: 1\n"
        f"sources: {{ eu: {{ dsn: dbname=e, slot: {'s' * 50} }}, {'u' * 41}: {{ dsn: dbname=u }} }}\n"
        "connections:\n  w: { type: slack, webhook_url: 'https://hooks.slack.com/services/a' }\n"
        "pipelines:\n  p: { event: e, destinations: { d: { connection: w } } }\n",
        f":2:12: sources.eu: {'s' * 50}_source_<n> is longer than the 63 bytes of a slot's name; "
        "slot: at most 49 characters",
    ),
    "slot of one of several sources too long": (
        "version: 1\n"
        f"sources: {{ source: {{ dsn: dbname=s }}, eu: {{ dsn: dbname=e, slot: {'s' * 55} }} }}\n"
        "connections:\n  w: { type: postgres, dsn: dbname=w }\n"
        "pipelines:\n  p: { event: e, destinations: { d: { connection: w, table: a.b } } }\n",
        f":4:3: connections.w: {'s' * 55}_w_<n> is longer than the 63 bytes of a slot's name; "
        "at most 0 characters with the slot of source eu",
    ),
    "webhook of nobody": (
        f"{TWO_SOURCES}ingress: {{ webhooks: {{ h: {{ scheme: github, secrets: [s] }} }} }}\n",
        ":7:24: ingress.webhooks.h: does not say which of the `sources` gets its events; add source, or ingress.source",
    ),
    "webhook of an unknown source": (
        f"{TWO_SOURCES}ingress: {{ source: eu, webhooks: {{ h: {{ scheme: github, secrets: [s], source: uk }} }} }}\n",
        ":7:79: ingress.webhooks.h.source: `uk` is not a source; available: eu, us",
    ),
    "two sources with one slot": (
        "version: 1\n"
        "sources: { source: { dsn: dbname=s }, eu: { dsn: dbname=e, slot: outbox_bridge } }\n"
        "connections:\n  w: { type: postgres, dsn: dbname=w }\n"
        "pipelines:\n  p: { event: e, destinations: { d: { connection: w, table: a.b } } }\n",
        ":2:66: sources.eu.slot: `outbox_bridge` is the slot of another source, too; each needs its own",
    ),
    "reserved connection": (
        changed("  w: {", "  source: { type: slack }\n  w: {"),
        ":3:3: connections.source: `source` is reserved for the source; a connection needs another name",
    ),
    "sink type": (
        changed("type: postgres, dsn: dbname=w", "type: slak"),
        ":3:14: connections.w.type: `slak` must be postgres or nats or apprise or discord or email or notion or "
        "slack or telegram or webhook; did you mean slack?",
    ),
    "dsn": (
        changed("dbname=w", '"host=h pasword=x"'),
        ":3:6: connections.w: dsn is not a connection string that libpq can read",
    ),
    "field type": (
        changed("x: string", "x: strng"),
        ":5:13: events.a.b.x: must be a type: string, number, integer, boolean, object, array, timestamp, "
        "any; "
        "did you mean string?",
    ),
    "field key": (
        changed("x: string", "x: { enm: [a], type: string }"),
        ":5:15: events.a.b.x.enm: unknown key; did you mean enum?",
    ),
    "enum of another kind": (
        changed("x: string", "x: { type: string, enum: [1] }"),
        ":5:13: events.a.b.x: enum has a value that is not a string: no event could have it",
    ),
    "either form": (
        changed("x: string", "fields: { x: string }"),
        ":5:8: events.a.b: is ambiguous: for several fields add unknown: payload "
        "beside fields; for one field write fields: object",
    ),
    "no such connection": (
        changed("connection: w", "connection: ww"),
        ":10:24: pipelines.p.destinations.d.connection: `ww` is not a connection; did you mean w?",
    ),
    "misspelt table": (
        changed("table: s.t", "tabel: s.t"),
        ":10:27: pipelines.p.destinations.d.tabel: unknown key; did you mean table?",
    ),
    "table in a sink": (
        changed("type: postgres, dsn: dbname=w", "type: slack"),
        ":10:24: pipelines.p.destinations.d.connection: `w` is a slack connection: a table needs a postgres "
        "one; "
        "there is none",
    ),
    "branch to nowhere": (
        SOUND + "    branches: [{ name: b, to: [dd] }]\n",
        ":11:32: pipelines.p.branches[0].to[0]: `dd` is not a destination of this pipeline; did you mean d?",
    ),
    "step": (
        SOUND + "    steps: [{ filtr: x }]\n",
        ":11:15: pipelines.p.steps[0].filtr: unknown key; did you mean filter?",
    ),
    "two steps in one": (
        SOUND + "    steps: [{ filter: x, redact: y }]\n",
        ":11:13: pipelines.p.steps[0]: must have exactly one of enrich.entity, filter, redact, set, upsert.entity",
    ),
    "empty step": (
        SOUND + "    steps: [{ filter: }]\n",
        ":11:22: pipelines.p.steps[0].filter: is empty; give it a value, or remove the key",
    ),
    "reserved root": (
        SOUND + "    steps: [{ set: { event: 1 } }]\n",
        ":11:22: pipelines.p.steps[0].set.event: is reserved in expressions: choose another name",
    ),
    "root twice": (
        SOUND + '    steps: [{ set: { a: "1" } }, { set: { a: "2" } }]\n',
        ":11:43: pipelines.p.steps[1].set.a: an earlier step already defines this name",
    ),
    "enrichment from a sink": (
        SOUND + "    steps:\n      - enrich.entity: { as: c, key: $event.x, from: ww, sql: '%(keys)s' }\n",
        ":12:54: pipelines.p.steps[0].enrich.entity.from: `ww` is not a connection; did you mean w?",
    ),
    "sql without keys": (
        SOUND + "    steps:\n      - enrich.entity: { as: c, key: $event.x, sql: select 1 }\n",
        ":12:53: pipelines.p.steps[0].enrich.entity.sql: must take its keys as %(keys)s, such as: "
        "where customer_id = any(%(keys)s)",
    ),
    "open admin": (
        SOUND + "admin: { listen: 0.0.0.0:1 }\n",
        ":11:8: admin: is reachable from other machines, so it needs a token: ${BRIDGE_ADMIN_TOKEN}",
    ),
    "useless ingress": (
        SOUND + "ingress: {}\n",
        ":11:10: ingress: accepts no request: add api_keys or webhooks, or remove ingress",
    ),
    "test of nothing": (
        SOUND + "tests: [{ name: n, pipeline: q, event: {}, expect: {} }]\n",
        ":11:30: tests[0].pipeline: `q` is not a pipeline; available: p",
    ),
    "unknown expectation": (
        SOUND + "tests: [{ name: n, pipeline: p, event: {}, expect: { brnch: b } }]\n",
        ":11:54: tests[0].expect.brnch: is not a destination of this pipeline; did you mean branch?",
    ),
    "reserved destination": (
        changed("      d: {", "      dead: {"),
        ":10:7: pipelines.p.destinations.dead: `dead` is a key of expect in "
        "tests; choose another name for the destination",
    ),
    "name of a pipeline": (
        changed("  p:\n", "  a/b:\n"),
        ":7:3: pipelines.a/b: must be letters, digits, _ . and - only, at most 63, a letter or digit first",
    ),
    "empty api key": (
        SOUND + 'ingress: { api_keys: ["${EMPTY}"] }\n',
        ":11:23: ingress.api_keys[0]: string should have at least 1 character",
    ),
    "nats without servers": (
        nats("servers: []"),
        ":4:29: connections.b.servers: must name one address at least, such as nats://log.example.com:4222",
    ),
    "a nats address with a password": (
        nats('servers: "nats://u:secret@h:4222"'),
        ":4:29: connections.b.servers: must not have a user or password in it: use user and password, or token",
    ),
    "an address that is not nats": (
        nats('servers: "https://h"'),
        ":4:29: connections.b.servers: must be an address such as nats://log.example.com:4222",
    ),
    "two logins to nats": (
        nats("servers: nats://h, token: x, nkey: f"),
        ":4:6: connections.b: has token and nkey: a server takes one of them; remove the others",
    ),
    "a nats password without its user": (
        nats("servers: nats://h, password: x"),
        ":4:6: connections.b: has a password and no user: add user; a secret without a user is a token",
    ),
    "a nats user without a password": (
        nats("servers: nats://h, user: x"),
        ":4:6: connections.b: has a user and no password: add password",
    ),
    "half a client certificate": (
        nats("servers: nats://h, tls: { cert: c.pem }"),
        ":4:44: connections.b.tls: cert and key belong together: name both, or neither",
    ),
    "a subject's destination without its subject": (
        nats("servers: nats://h", "d: { connection: b }"),
        ":11:7: pipelines.p.destinations.d: `subject` is missing",
    ),
    "a sink's key on a subject": (
        nats("servers: nats://h", "d: { connection: b, subject: a, max_age: 1h }"),
        ":11:39: pipelines.p.destinations.d.max_age: unknown key; known: connection, headers, payload, subject",
    ),
    "a table on nats": (
        nats("servers: nats://h", "d: { connection: b, table: s.t }"),
        ":11:24: pipelines.p.destinations.d.connection: `b` is a nats connection: a table needs a postgres one; "
        "available: w",
    ),
    "number for text": (
        changed("table: s.t", "table: 12"),
        ":10:34: pipelines.p.destinations.d.table: must be text: put quotes around it",
    ),
}


@pytest.mark.parametrize(("text", "line"), CORPUS.values(), ids=CORPUS.keys())
def test_tells(tmp_path: Path, text: str, line: str) -> None:
    assert line in errors(tmp_path, text, EMPTY="")


def test_keys_beside_a_type_that_is_none_are_left_to_the_right_type(tmp_path: Path) -> None:
    found = errors(tmp_path, changed("type: postgres, dsn: dbname=w", "type: slak, webhook_url: x"))
    assert [line for line in found if "webhook_url" in line] == []


def test_the_sound_file_of_this_corpus_loads(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(SOUND)
    assert list(load(path, {}).pipelines) == ["p"]


def test_all_errors_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = changed("version: 1", "version: 2").replace("strng", "string").replace("x: string", "x: strng")
    text = text.replace("connection: w,", "connection: ww,") + "strict: yes\nsource: { dsn: '${NOPE}' }\n"
    found = errors(tmp_path, text)
    assert [line.split(" ")[1] for line in found] == [
        "version:",
        "events.a.b.x:",
        "pipelines.p.destinations.d.connection:",
        "strict:",
        "source.dsn:",
    ]


@pytest.mark.parametrize(
    "where",
    [
        "source: { dsn: '${S}' }",
        "source: { dsn: 'host=h ${S}' }",
        "source: { capture: '${S}' }",
        "source: { slot: '${S}' }",
        "source: { max_retained_wal: '${S}' }",
        "source: { port: '${S}' }",
        "strict: ${S}",
        "admin: { listen: '${S}' }",
        "ingress: { api_keys: '${S}' }",
        "tests: [{ name: n, pipeline: '${S}', event: {}, expect: {} }]",
    ],
)
def test_a_value_from_a_variable_is_in_no_error(tmp_path: Path, where: str) -> None:
    for line in errors(tmp_path, SOUND + where + "\n", S=SECRET):
        assert SECRET not in line


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read: No such file or directory; bridge init"):
        load(tmp_path / "bridge.yaml", {})


def test_keys_beside_the_dsn_are_merged_into_it(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(SOUND + "source: { dsn: 'postgresql://u@h/db', sslmode: verify-full, port: 5433 }\n")
    source = load(path, {}).source
    assert source.parameters() == {
        "user": "u",
        "host": "h",
        "dbname": "db",
        "sslmode": "verify-full",
        "port": "5433",
    }


def test_numbers_and_booleans_may_come_from_variables(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(SOUND + "source: { batch: { max_events: '${N}' } }\nstrict: ${B:-true}\n")
    config = load(path, {"N": "50"})
    assert (config.source.batch.max_events, config.strict) == (50, True)


def test_an_event_can_have_a_field_called_fields_or_unknown(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    events = "form: { fields: object, page: string }\n  odd: { fields: { type: object }, unknown: string }\n"
    path.write_text(changed("  a.b: { x: string }\n", f"  a.b: {{ x: 'string?' }}\n  {events}"))
    contracts = load(path, {}).events
    assert list(contracts["form"].fields) == ["fields", "page"]
    assert list(contracts["odd"].fields) == ["fields", "unknown"]
    x = contracts["a.b"].fields["x"]
    assert (x.type, x.required, x.nullable) == ("string", False, True)


def test_the_long_form_of_an_event_says_what_to_do_with_unknown_fields(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(
        changed("{ x: string }", "{ fields: { x: string, y: { enum: [1, 2] } }, unknown: reject }")
    )
    contract = load(path, {}).events["a.b"]
    assert (contract.unknown, contract.fields["y"].type) == ("reject", "integer")
