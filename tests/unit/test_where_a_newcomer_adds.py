"""docs/architecture.md, "Where a newcomer adds": each thing is one file, and works when no other file is touched.

One of each (tests/support/newcomer) is added to a copy of the code, and the product is run from that copy.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

from bridge.cli import COMMANDS
from bridge.config.destinations.destination import DESTINATIONS
from bridge.discover import Kinds, modules_of
from bridge.planning.steps.step import StepSection, steps
from bridge.signatures import SCHEMES
from bridge.sinks.model import SINKS, SinkConnection
from tests.support.receiver import Receiver
from tests.unit.observe.test_operations_document import reasons_of_halts

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "bridge"


@cache
def trees() -> dict[Path, ast.Module]:
    """The code, module by module."""
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


@dataclass(frozen=True)
class Copy:
    """The code in a folder of its own."""

    root: Path

    def add(self, module: str, package: str) -> None:
        """A module of tests/support/newcomer, into a package."""
        assert not (self.root / package / f"{module}.py").exists()
        shutil.copy(REPOSITORY / "tests" / "support" / "newcomer" / f"{module}.py", self.root / package)

    def append(self, file: str, after: str, text: str) -> None:
        """Lines in a file that is there, after the last one that begins so."""
        lines = (self.root / file).read_text().splitlines(keepends=True)
        place = max(number for number, line in enumerate(lines) if line.startswith(after))
        lines.insert(place + 1, text)
        (self.root / file).write_text("".join(lines))

    def touched(self) -> set[str]:
        """The files that differ from the repository's."""
        here, there = _digests(self.root), _digests(REPOSITORY)
        return {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}

    def python(self, *arguments: str, expect: int = 0) -> str:
        """What a run of Python prints that has this copy as `bridge`."""
        environment = {**os.environ, "PYTHONPATH": str(self.root), "COLUMNS": "200"}
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == expect, f"{run.stdout}\n{run.stderr}"
        return run.stdout

    def bridge(self, *commands: str, expect: int = 0) -> list[str]:
        """What each of these commands prints, `lint -c a.yaml` say, all in one process."""
        answers = json.loads(self.python("-c", RUN, json.dumps([shlex.split(each) for each in commands])))
        for command, (code, printed) in zip(commands, answers, strict=True):
            assert code == expect, f"{command}: {printed}"
        return [printed for _, printed in answers]


RUN = """
import json, sys
from click.testing import CliRunner
from bridge.cli import cli

runs = [CliRunner().invoke(cli, command) for command in json.loads(sys.argv[1])]
print(json.dumps([[run.exit_code, run.stdout] for run in runs]))
"""


def _digests(root: Path) -> dict[str, str]:
    files = [
        path for path in (root / "bridge").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    return {path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    shutil.copytree(PACKAGE, tmp_path / "bridge", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "sql", tmp_path / "sql")
    found = Copy(tmp_path)
    assert found.touched() == set()
    return found


CONFIG = """\
version: 1
connections:
  warehouse: {{ type: postgres, dsn: dbname=warehouse }}
{connections}
events:
  user.signed_up: {{ user_id: string, email: string }}
pipelines:
  signups:
    event: {event}
    steps: [{step}]
    destinations:
      out: {destination}
tests:
  - name: a sign-up arrives
    pipeline: signups
    type: user.signed_up
    event: {{ user_id: u1, email: ada@example.com }}
    expect: {{ out: {{ {expect} }} }}
{ingress}
"""
TABLE = "{ connection: warehouse, table: events.signups, columns: { user_id: $event.user_id } }"


def config(**parts: str) -> str:
    """A bridge.yaml that lint has nothing to say of, with a test in it."""
    absent = {
        "connections": "",
        "event": "user.signed_up",
        "step": "",
        "destination": TABLE,
        "expect": "",
        "ingress": "",
    }
    return CONFIG.format(**(absent | parts))


def test_a_step_is_one_file(copy: Copy) -> None:
    copy.add("digest", "bridge/planning/steps")
    step = "{ digest: { name: hashed, of: $event.email } }"
    to = "{ connection: warehouse, table: events.signups, columns: { email: $hashed } }"
    expect = f"email: {sha256(b'ada@example.com').hexdigest()}"
    (copy.root / "bridge.yaml").write_text(config(step=step, destination=to, expect=expect))
    recipe = "bridge/recipes/signups/bridge.yaml"
    copy.append(recipe, "    steps:", "      - digest: { name: hashed, of: $event.email }\n")
    _, tested, printed, page = copy.bridge("lint --strict", "test", "schema config", "recipe list --markdown")
    assert "ok    a sign-up arrives" in tested
    assert "1. digest of `$event.email` as **hashed**" in page
    schema = json.loads(printed)
    described = schema["$defs"]["PipelineSection"]["properties"]["steps"]["items"]["properties"]["digest"]
    assert described["description"] == "Give the SHA-256 of a text a name."
    assert schema["$defs"]["DigestSection"]["properties"]["of"]["description"]
    traced = copy.python("-c", TRACE)
    assert traced == "digest: hashed of $event.email {'$event.email': 'a'}\n"
    assert copy.touched() == {"bridge/planning/steps/digest.py", recipe}


TRACE = """
from pathlib import Path
from bridge.config.load import load
from bridge.config.specs import pipeline_specs
from bridge.planning.pipeline import Pipeline, trace
from bridge.planning.planner import answered
from bridge.protocol.events import Event

(spec,) = pipeline_specs(load(Path("bridge.yaml"), {}))
event = Event(b"1", b"1", b"1", b"user.signed_up", None, b'{"email": "a"}', None, None, b"2027-01-01")
(seen,) = answered(trace(Pipeline(spec, {}, ()), None, event), lambda lookup: {}).seen
print(seen.what, seen.saw)
"""
FINDINGS = {
    "{ digets: { name: h, of: $event.email } }": "steps[0].digets: unknown key; did you mean digest?",
    "{ digest: { name: h, fo: $event.email } }": "steps[0].digest.fo: unknown key; known: name, of",
    "{ digest: { name: h, of: $event.emial } }": "no field emial; did you mean email?",
    "{ set: { h: 1 } }, { digest: { name: h, of: $event.email } }": "an earlier step already defines this name",
    "{ filter: $h is none }, { digest: { name: h, of: $event.email } }": "$h is defined by a later step",
}


def lint(copy: Copy, *configs: str) -> list[str]:
    """What lint says of each, which has an error."""
    for number, text in enumerate(configs):
        (copy.root / f"{number}.yaml").write_text(text)
    return copy.bridge(*(f"lint -c {number}.yaml" for number in range(len(configs))), expect=1)


def test_lint_knows_a_new_step(copy: Copy) -> None:
    copy.add("digest", "bridge/planning/steps")
    told = lint(copy, *(config(step=step) for step in FINDINGS))
    for finding, said in zip(FINDINGS.values(), told, strict=True):
        assert finding in said


SEND = """
import asyncio
from pathlib import Path
from bridge.config.load import load
from bridge.plans import dispatch_plans
from bridge.sinks.http import HttpClient
from bridge.sinks.model import Delivery, Wire

async def main():
    ((lane,),) = [plan.lanes for plan in dispatch_plans(load(Path("bridge.yaml"), {}))]
    client = HttpClient()
    delivery = Delivery("id-1", "e", "user.signed_up", None, None, {"text": "ada is here"})
    print((await lane.sink.send(delivery, Wire(client))).verdict)
    await client.close()

asyncio.run(main())
"""


def test_a_sink_is_one_file(copy: Copy) -> None:
    copy.add("pager", "bridge/sinks")
    with closing(Receiver()) as receiver:
        connections = f"  duty: {{ type: pager, url: '{receiver.url}' }}"
        sound = config(connections=connections, destination="{ connection: duty, text: $event.user_id }")
        (copy.root / "bridge.yaml").write_text(sound)
        _, tested, printed = copy.bridge("lint", "test", "schema config")
        assert copy.python("-c", SEND) == "sent\n"
        (received,) = receiver.requests
    assert (received.json, received.identity) == ({"page": "ada is here"}, "id-1")
    assert "ok    a sign-up arrives" in tested
    schemas = json.loads(printed)["properties"]["connections"]["additionalProperties"]["anyOf"]
    assert "pager" in [each["properties"]["type"].get("const") for each in schemas]
    keys, kind = lint(
        copy,
        config(connections=connections, destination="{ connection: duty, txt: hi }"),
        config(connections="  duty: { type: pgaer }", destination="{ connection: duty, text: hi }"),
    )
    assert "is not a key of a pager message; did you mean text?" in keys
    assert "`text` is missing: a pager message needs it" in keys
    assert "did you mean pager?" in kind
    assert copy.touched() == {"bridge/sinks/pager.py"}


def test_a_kind_of_destination_is_one_file(copy: Copy) -> None:
    copy.add("journal", "bridge/config/destinations")
    (copy.root / "bridge.yaml").write_text(
        config(
            destination="{ connection: warehouse, journal: audit.events }",
            expect="type: user.signed_up, payload: { user_id: u1, email: ada@example.com }",
        )
    )
    (copy.root / "table.yaml").write_text(config())
    _, tested, printed, _ = copy.bridge(
        "lint --strict", "test", "schema config", "lint --strict -c table.yaml"
    )
    assert "ok    a sign-up arrives" in tested
    assert json.loads(printed)["$defs"]["JournalDestination"]["properties"]["journal"]["description"]
    to = "{ connection: warehouse, journal: audit.events, mode: upsert }"
    assert "out.mode: unknown key" in lint(copy, config(destination=to))[0]
    assert copy.touched() == {"bridge/config/destinations/journal.py"}


SCHEME = '''

class Token(Scheme, name="token"):
    """The secret in a header of its own."""

    type = ("$body.kind",)

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        return lambda request: is_secret(settings.secrets, request.header(b"x-token"))
'''
REQUEST = """
from pathlib import Path
from bridge.config.load import load
from bridge.ingress.problem import Refusal
from bridge.ingress.webhook import Endpoint

endpoint = Endpoint("door", load(Path("bridge.yaml"), {}).ingress.webhooks["door"])
print(endpoint.take({b"x-token": b"open sesame"}, b'{"kind": "opened"}').type)
try:
    endpoint.take({b"x-token": b"open"}, b'{"kind": "opened"}')
except Refusal as refusal:
    print(refusal.status)
"""


def test_a_signature_scheme_is_one_file(copy: Copy) -> None:
    with (copy.root / "bridge/signatures/senders.py").open("a") as module:
        module.write(SCHEME)
    door = "ingress: { webhooks: { door: { scheme: %s, secrets: [open sesame] } } }"
    event = "[user.signed_up, 'door.*']"
    (copy.root / "bridge.yaml").write_text(config(event=event, ingress=door % "token"))
    _, printed = copy.bridge("lint", "schema config")
    assert copy.python("-c", REQUEST).split() == ["door.opened", "401"]
    assert "token" in json.loads(printed)["$defs"]["Webhook"]["properties"]["scheme"]["anyOf"][0]["enum"]
    assert "did you mean token?" in lint(copy, config(ingress=door % "tokne"))[0]
    assert copy.touched() == {"bridge/signatures/senders.py"}


def test_a_command_is_one_file(copy: Copy) -> None:
    copy.add("say_hello", "bridge/cli")
    greeted, told = copy.bridge("say-hello ada", "--help")
    assert greeted == "hello ada\n"
    panel = told.partition("Run and watch")[2].partition("Repair")[0]
    assert "say-hello" in panel
    assert "Greet somebody." in panel
    assert copy.touched() == {"bridge/cli/say_hello.py"}


def test_a_metric_is_one_line(copy: Copy) -> None:
    line = '        self.greetings = counter("greetings", "Greetings by name.", "name")\n'
    copy.append("bridge/observe/metrics.py", "        self.events = counter(", line)
    script = (
        "from bridge.observe.metrics import Metrics\nmetrics = Metrics()\n"
        "metrics.greetings.labels('ada').inc()\nprint(metrics.exposition().decode())"
    )
    assert 'outbox_bridge_greetings_total{name="ada"} 1.0' in copy.python("-c", script)
    assert copy.touched() == {"bridge/observe/metrics.py"}


def test_a_halt_reason_is_one_word(copy: Copy) -> None:
    """Whatever a Halt says is what metrics, readiness and status say: there is no list to add it to."""
    script = (
        "from bridge.errors import Halt\nfrom bridge.observe.metrics import Metrics\n"
        "from bridge.observe.state import StreamState\nmetrics = Metrics()\n"
        "state = metrics.health.add(StreamState('outbox_bridge_w', 'w'))\n"
        "state.halt(Halt('the moon is full', reason='full_moon', hint='wait'))\n"
        "print(metrics.exposition().decode(), state.snapshot.reason, state.snapshot.hint)"
    )
    printed = copy.python("-c", script)
    assert 'outbox_bridge_halted{reason="full_moon",stream="outbox_bridge_w"} 1.0' in printed
    assert printed.endswith("full_moon wait\n")


def test_a_recipe_is_one_folder(copy: Copy) -> None:
    recipes = copy.root / "bridge" / "recipes"
    shutil.copytree(recipes / "signups", recipes / "arrivals")
    for file in (recipes / "arrivals").iterdir():
        file.write_text(file.read_text().replace("user.signed_up", "user.arrived"))
    listed, page, sql, _, tested = copy.bridge(
        "recipe list --json",
        "recipe list --markdown",
        "schema recipe arrivals",
        "init --recipe arrivals mine",
        "test -c mine/bridge.yaml",
    )
    assert "arrivals" in [one["name"] for one in json.loads(listed)]
    assert "[arrivals](#arrivals) | `user.arrived`" in page
    assert "events.signups" in sql
    assert tested.count("ok") == 4
    assert {Path(name).parent.as_posix() for name in copy.touched()} == {"bridge/recipes/arrivals"}


# -- what there is keeps to it ------------------------------------------------------------------------

OTHER_MEANINGS = {
    "set": {"expressions/expression.py", "config/lint_templates.py"},  # a template's tag
    "email": {"sinks/notion.py"},  # a type of property
    # a header of the events that come in by one; the type of an event that a sender does not name
    "webhook": {"ingress/webhook.py", "signatures/senders.py"},
    "apprise": {"sinks/apprise_thread.py"},  # the library's logger
    "standard": {"config/model.py"},  # the default
    "bearer": {
        "ingress/openapi.py",
        "observe/access.py",
        "console/openapi.py",
    },  # authorization: Bearer, of API keys
    "basic": {"observe/access.py"},  # as a browser has it
}
NAMED_IN = [
    *((word, section.__module__) for word, section in steps().items()),
    *((kind, f"bridge.sinks.{kind}") for kind in SINKS),
    *((name, scheme.__module__) for name, scheme in SCHEMES.items()),
]


@pytest.mark.parametrize("word", dict(NAMED_IN))
def test_a_kind_is_named_in_its_own_file_only(word: str) -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == word
    }
    own = {
        f"{module.removeprefix('bridge.').replace('.', '/')}.py" for name, module in NAMED_IN if name == word
    }
    assert found - OTHER_MEANINGS.get(word, set()) == own


def test_no_module_imports_that_of_a_kind() -> None:
    kinds = {
        *(section.__module__ for section in steps().values()),
        *(f"bridge.sinks.{kind}" for kind in SINKS),
        *(section.__module__ for section in DESTINATIONS.values()),
        *(f"bridge.cli.{module}" for module in COMMANDS.values()),
    }
    importers: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in {node.module, *(f"{node.module}.{each.name}" for each in node.names)} & kinds:
                    importers[name].add(path.relative_to(PACKAGE).as_posix())
    drawn = {"cli/top.py", "cli/scale_lines.py", "cli/scale_plan.py", "cli/scale_status.py"}
    assert importers == {"bridge.cli.status": drawn}  # these draw what `status` tells


def test_a_sinks_module_is_named_as_its_connections_type() -> None:
    for kind, section in SINKS.items():
        assert section.model_fields["type"].annotation.__args__ == (kind,)


def test_a_halt_reason_stands_where_it_is_raised_and_nowhere_else() -> None:
    raised: dict[str, set[str]] = defaultdict(set)
    for reason, at in reasons_of_halts():
        raised[reason].add(at.rpartition(":")[0])
    lists = {
        (str(path.relative_to(REPOSITORY)), reason)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.List | ast.Tuple | ast.Set)
        if path.parent.name != "sinks" and path.name != "profiles.py"  # words of vendors and of the server
        for each in node.elts
        if isinstance(each, ast.Constant) and (reason := each.value) in raised
        if str(path.relative_to(REPOSITORY)) not in raised[reason]
    }
    assert len(raised) > 30
    assert lists == set()


def test_a_module_that_is_no_kind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "zoo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "keeper.py").write_text("")
    (package / "empty.py").write_text("class Animal: ...\n")
    (package / "lion.py").write_text(
        "from bridge.planning.steps.step import StepSection\nclass Lion(StepSection): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    __import__("zoo")
    kinds = Kinds("zoo.keeper", StepSection, but=("keeper",))
    assert list(kinds) == ["empty", "lion"] == list(modules_of("zoo", but=("keeper",)))
    assert kinds["lion"].__name__ == "Lion"
    with pytest.raises(TypeError, match=r"zoo\.empty must define one StepSection, not 0"):
        kinds["empty"]
    with pytest.raises(KeyError):
        kinds["keeper"]
    assert issubclass(SINKS["slack"], SinkConnection)
