"""Every recipe is whole, sound, and can be started from or added."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bridge.cli import cli
from bridge.config.connection import split_table
from bridge.config.destinations.table import TableDestination
from bridge.config.lint import lint
from bridge.config.load import load
from bridge.config.model import Case
from bridge.config.recipe import STARTER, Recipe, recipe, recipes
from bridge.config.testing import run_cases
from bridge.errors import ConfigError

ALL = [*recipes(), recipe(STARTER)]
NAMES = [one.name for one in ALL]

TITLE_WORDS = {"Track": "track", "Monitor": "monitor", "Route": "alert", "Flag": "alert", "Catch": "alert"}
TITLES = [
    f"{title} in Postgres"
    for title in (
        "Monitor usage-limit hits",
        "Track user signups",
        "Monitor failed payments",
        "Route support escalations",
        "Track waitlist signups",
        "Track new subscriptions",
        "Track canceled subscriptions",
        "Track successful payments",
        "Track trial conversions",
        "Track form submissions",
        "Track feature usage",
        "Track file uploads",
        "Monitor failed logins",
        "Monitor error spikes",
        "Monitor cron-job health",
        "Monitor CI/CD build status",
        "Flag high-value leads",
        "Catch churn-risk signals",
    )
]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, str(result.exception)
    return result.exit_code, result.output


@pytest.mark.parametrize("one", ALL, ids=NAMES)
def test_lint_finds_nothing_but_the_variables_to_set(one: Recipe) -> None:
    path = one.folder / "bridge.yaml"
    assert {finding.message.split(" ")[1:4] == ["is", "not", "set:"] for finding in lint(path, {})} == {True}
    environ = {"SOURCE_DSN": "dbname=source", "WAREHOUSE_DSN": "dbname=warehouse"}
    assert [finding.text("") for finding in lint(path, environ)] == []


@pytest.mark.parametrize("one", ALL, ids=NAMES)
def test_its_event_tables_and_columns_are_the_ones_its_files_speak_of(one: Recipe) -> None:
    config = load(one.folder / "bridge.yaml", {}, offline=True)
    assert one.about.event in config.events
    sql = one.text("target.sql")
    for pipeline in config.pipelines.values():
        assert pipeline.events == (one.about.event,)
        for table in pipeline.destinations.values():
            assert isinstance(table, TableDestination)
            assert split_table(table.table) is not None
            body = re.search(
                rf"create table if not exists {re.escape(table.table)} \((.*?)\n\);", sql, re.DOTALL
            )
            assert body is not None
            declared = set(re.findall(r'^ +"?([a-z_]+)"? +[a-z]', body[1], re.MULTILINE))
            assert set(table.columns or ()) == declared


@pytest.mark.parametrize("one", ALL, ids=NAMES)
def test_its_samples_land_are_held_back_or_die_as_they_say(one: Recipe) -> None:
    config = load(one.folder / "bridge.yaml", {}, offline=True)
    samples = one.samples
    assert samples.valid
    assert samples.malformed
    for pipeline, model in config.pipelines.items():
        nowhere = dict.fromkeys(model.destinations)

        def failing(
            payloads: tuple[dict[str, Any], ...], expect: dict[str, Any], pipeline: str = pipeline
        ) -> list[str]:
            """The payloads whose way is another than `expect`, by their index."""
            cases = [
                Case.model_validate(
                    {"name": str(n), "pipeline": pipeline, "event": payload, "expect": expect}
                )
                for n, payload in enumerate(payloads)
            ]
            results = run_cases(config.model_copy(update={"tests": tuple(cases)}))
            return [result.name for result in results if result.differences]

        assert len(failing(samples.valid, nowhere)) == len(samples.valid)
        by_filter = failing(samples.filtered, {**nowhere, "filtered": True})
        by_branch = failing(samples.filtered, nowhere)
        assert set(by_filter) & set(by_branch) == set()
        assert failing(samples.malformed, {"dead": "contract"}) == []
        assert len(failing(samples.valid, {"dead": "contract"})) == len(samples.valid)
    fields = set(re.findall(r"event\.([a-z_]+)", one.about.idempotency_key))
    assert all(fields <= set(payload) for payload in samples.valid)


@pytest.mark.parametrize("one", ALL, ids=NAMES)
def test_its_own_tests_pass(one: Recipe) -> None:
    results = run_cases(load(one.folder / "bridge.yaml", {}, offline=True))
    assert results
    assert [(result.name, result.differences) for result in results if result.differences] == []


def test_list_as_json_is_a_list_of_objects() -> None:
    code, output = run("recipe", "list", "--json")
    listed = json.loads(output)
    assert code == 0
    assert {"name": "usage-limits", "category": "monitor", "event": "usage.limit_reached"}.items() <= listed[
        [entry["name"] for entry in listed].index("usage-limits")
    ].items()
    assert STARTER not in output


def test_every_title_of_the_product_page_has_its_recipe() -> None:
    assert sorted(one.about.title for one in recipes()) == sorted(TITLES)
    assert all(TITLE_WORDS[one.about.title.split()[0]] == one.about.category for one in recipes())


def test_show_prints_every_file_of_a_recipe() -> None:
    code, output = run("recipe", "show", "churn-risk")
    assert code == 0
    for file in ("bridge.yaml", "target.sql", "source.sql", "samples.json"):
        assert recipe("churn-risk").text(file) in output


def test_schema_recipe_prints_the_tables_of_either_side() -> None:
    assert run("schema", "recipe", "churn-risk") == (0, recipe("churn-risk").text("target.sql"))
    assert run("schema", "recipe", "churn-risk", "--source") == (0, recipe("churn-risk").text("source.sql"))
    code, output = run("schema", "recipe", "waitlist", "--source")
    assert code == 1
    assert "there is no recipe 'waitlist' that looks anything up" in output


def test_the_page_of_recipes_is_the_one_that_the_command_prints() -> None:
    code, output = run("recipe", "list", "--markdown")
    assert code == 0
    assert output == (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8"), (
        "run: bridge recipe list --markdown > docs/recipes.md"
    )


def test_signups_fits_the_table_of_the_product_page() -> None:
    one = recipe("signups")
    body = re.search(
        r"create table if not exists events.signups \((.*?)\n\);", one.text("target.sql"), re.DOTALL
    )
    assert body is not None
    assert re.findall(r"^ +(\w+)", body[1], re.MULTILINE) == ["user_id", "email", "plan", "source", "payload"]
    assert "primary key" not in body[1]
    [events] = load(one.folder / "bridge.yaml", {}, offline=True).pipelines["signups"].destinations.values()
    assert isinstance(events, TableDestination)
    assert events.mode == "insert"


def test_signups_can_keep_only_the_domain_of_an_address(tmp_path: Path) -> None:
    text = re.sub(r"# - (set|redact):", r"- \1:", recipe("signups").text("bridge.yaml"))
    path = tmp_path / "bridge.yaml"
    path.write_text(text.replace("email: $event.email\n", "email: $domain\n"))
    config = load(path, {}, offline=True)
    event = {"user_id": "usr_1", "email": "ada@acme.com", "plan": "pro"}
    kept = {"email": "acme.com", "payload": {"user_id": "usr_1", "plan": "pro"}}
    case = Case.model_validate(
        {"name": "domain", "pipeline": "signups", "event": event, "expect": {"events": kept}}
    )
    [result] = run_cases(config.model_copy(update={"tests": (case,)}))
    assert not result.differences


def test_a_recipe_is_added_to_a_file_that_a_variable_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text('version: 1\nadmin: { listen: "${ADDRESS}" }\n')
    monkeypatch.delenv("ADDRESS", raising=False)
    code, output = run("recipe", "add", "waitlist", "-c", str(path))
    assert code == 1
    assert "ADDRESS is not set" in output
    monkeypatch.setenv("ADDRESS", "127.0.0.1:8377")
    assert run("recipe", "add", "waitlist", "-c", str(path))[0] == 0
    assert "${ADDRESS}" in path.read_text()


def test_a_misspelt_recipe_is_told_the_right_name() -> None:
    assert run("recipe", "show", "usage-limit") == (
        1,
        "there is no recipe 'usage-limit'\n  fix: did you mean usage-limits?",
    )


@pytest.mark.parametrize("arguments", [[], ["--recipe", "usage-limits"]])
def test_init_writes_files_that_load_and_never_overwrites(tmp_path: Path, arguments: list[str]) -> None:
    where = tmp_path / "new"
    code, output = run("init", *arguments, str(where))
    assert code == 0
    assert "bridge doctor && bridge run" in output
    written = {path.name for path in where.iterdir()}
    assert {"bridge.yaml", ".env.example", "target.sql"} <= written
    assert "bridge schema target" in (where / "target.sql").read_text()
    variables = [line for line in (where / ".env.example").read_text().splitlines() if line.endswith("=")]
    assert variables == ["SOURCE_DSN=", "WAREHOUSE_DSN="]
    assert load(where / "bridge.yaml", {}, offline=True).pipelines

    (where / "bridge.yaml").write_text("mine")
    code, output = run("init", *arguments, str(where))
    assert code == 1
    assert "--force" in output
    assert (where / "bridge.yaml").read_text() == "mine"
    assert run("init", *arguments, "--force", str(where))[0] == 0
    assert (where / "bridge.yaml").read_text() != "mine"


def test_a_recipe_is_added_beside_what_is_there_and_comments_stay(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    before = recipe(STARTER).text("bridge.yaml") + "# the end\n"
    path.write_text(before)
    assert run("recipe", "add", "usage-limits", "-c", str(path))[0] == 0
    text = path.read_text()
    assert [line for line in before.splitlines() if line not in text.splitlines()] == []
    config = load(path, {}, offline=True)
    assert list(config.pipelines) == ["signups", "usage-limits"]
    assert list(config.connections) == ["warehouse"]
    assert len(config.tests) == 6


def test_a_recipe_that_is_there_already_is_not_added_again(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(recipe("usage-limits").text("bridge.yaml"))
    code, output = run("recipe", "add", "usage-limits", "-c", str(path))
    assert code == 1
    assert "events.usage.limit_reached exists already" in output
    assert path.read_text() == recipe("usage-limits").text("bridge.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\n",
        "version: 1\nevents:\n    other: { a: string }\nadmin: { listen: 127.0.0.1:0 }\n",
        "version: 1\ntests: []\nconnections:\n      warehouse: { type: postgres, dsn: dbname=w }",
        "pipelines:\nversion: 1\n",
        "version: 1\nevents: { other: { a: string } }\n",
    ],
)
def test_adding_to_any_file_gives_one_that_loads_or_says_why_not(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(text)
    code, output = run("recipe", "add", "usage-limits", "-c", str(path))
    if code == 0:
        assert "usage-limits" in load(path, {}, offline=True).pipelines
    else:
        assert "on a line of its own" in output or "is empty" in output
        assert path.read_text() == text


def test_lint_exits_by_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(recipe(STARTER).text("bridge.yaml"))
    monkeypatch.setenv("BRIDGE_CONFIG", str(path))
    monkeypatch.delenv("SOURCE_DSN", raising=False)
    assert run("lint")[0] == 0
    assert run("lint", "--strict")[0] == 1
    monkeypatch.setenv("SOURCE_DSN", "dbname=s")
    monkeypatch.setenv("WAREHOUSE_DSN", "dbname=w")
    assert run("lint", "--strict") == (0, f"{path}: no findings\n")
    path.write_text("version: 3\n")
    assert run("lint")[0] == 1


@pytest.mark.parametrize("name", [STARTER, *(one.name for one in recipes())])
def test_init_writes_several_sources_for_each_recipe(tmp_path: Path, name: str) -> None:
    words = [] if name == STARTER else ["--recipe", name]
    done = CliRunner().invoke(cli, ["init", *words, "--source", "eu", "--source", "us", str(tmp_path)])
    assert done.exit_code == 0, done.output
    given = {"EU_DSN": "dbname=eu", "US_DSN": "dbname=us"}
    variables = dict.fromkeys(
        re.findall(r"^(\w+)=$", (tmp_path / ".env.example").read_text(), re.M), "https://example.com/x"
    )
    assert given.keys() <= variables.keys()
    assert "SOURCE_DSN" not in done.output
    config = load(tmp_path / "bridge.yaml", {**variables, "WAREHOUSE_DSN": "dbname=w", **given})
    assert {one: section.dsn for one, section in config.sources.items()} == {
        "eu": "dbname=eu",
        "us": "dbname=us",
    }
    added = CliRunner().invoke(
        cli,
        [
            "recipe",
            "add",
            "waitlist" if name != "waitlist" else "signups",
            "-c",
            str(tmp_path / "bridge.yaml"),
        ],
    )
    assert added.exit_code == 0, added.output
    assert "SOURCE_DSN" not in (tmp_path / "bridge.yaml").read_text()


@pytest.mark.parametrize(
    ("names", "said"), [(["eu", "eu"], "twice"), (["E-U"], "source's name"), (["1"], "name")]
)
def test_init_refuses_what_cannot_be_sources(tmp_path: Path, names: list[str], said: str) -> None:
    words = [word for name in names for word in ("--source", name)]
    done = CliRunner().invoke(cli, ["init", *words, str(tmp_path / "made")])
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)
    assert not (tmp_path / "made").exists()
