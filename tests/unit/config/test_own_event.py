"""`bridge init` for an event of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli import cli
from bridge.config.own_event import own_event, usual_table
from bridge.errors import ConfigError
from tests.support.terminal import terminal
from tests.unit.config.test_editor_schema import refused, tree_of


@pytest.mark.parametrize(
    "event",
    [
        "a",
        "order.placed",
        "Order.Placed",
        "yes",
        "123",
        "ünïcode",
        "a:b",
        "user's",
        "x" * 200,
        "order.created#1",
    ],
)
def test_whatever_the_event_is_called_its_configuration_is_sound(event: str, tmp_path: Path) -> None:
    fields = ["yes:string", "event_id:string", "payload:object", "number:number?", "user:any", "at:timestamp"]
    options = [part for one in fields for part in ("--field", one)]
    ran = CliRunner().invoke(cli, ["init", "--event", event, *options, str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    tree = tree_of((tmp_path / "bridge.yaml").read_text())
    assert list(tree["events"]) == [event]
    assert refused(tree) == []
    ran = CliRunner().invoke(cli, ["test", "-c", str(tmp_path / "bridge.yaml")])
    assert ran.exit_code == 0, ran.output
    assert f"create table if not exists {usual_table(event)} (" in (tmp_path / "target.sql").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--event", "a"], "needs a field"),
        (["--event", "a", "--field", "x"], "name:type"),
        (["--event", "a", "--field", "x:strng"], "did you mean string?"),
        (["--event", "a", "--field", "x:string", "--table", "limits"], "no table of a schema"),
        (["--event", "a", "--field", "x:string", "--table", "pg_x.limits"], "PostgreSQL's own"),
        (["--event", "a", "--field", "x:string", "--table", f"public.{'t' * 64}"], "63 bytes"),
        (["--event", "a", "--field", "x:string", "--field", "x:number"], "x is there twice"),
        (["--event", "a b", "--field", "x:string"], "no blanks"),
        (["--event", "", "--field", "x:string"], "no event type"),
        (["--event", "${HOME}", "--field", "x:string"], "no event type"),
        (["--field", "x:string"], "--event TYPE"),
        (["--recipe", "signups", "--event", "a"], "--recipe has an event of its own"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(options: list[str], said: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bridge", "init", *options, str(tmp_path / "made")],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ran.returncode == 2
    assert said in ran.stderr
    assert not (tmp_path / "made").exists()


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    with terminal("order.placed\nid:strng\nid:string\n\npublic.orders\n") as theirs:
        ran = subprocess.run(
            [sys.executable, "-m", "bridge", "init", str(tmp_path)],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert ran.returncode == 0, ran.stderr
    assert "did you mean string?" in ran.stderr
    assert "table: public.orders" in (tmp_path / "bridge.yaml").read_text()


def test_a_name_that_no_configuration_can_have_is_an_error() -> None:
    with pytest.raises(ConfigError):
        own_event("a*b", [("x", "string")], "public.t")
