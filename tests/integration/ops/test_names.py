"""A name that means nothing is an error, in every command that takes one, with the name that was meant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rich_click as click

from bridge.cli import cli
from tests.integration.ops.conftest import emit, usage
from tests.support.servers import free_port
from tests.support.world import STREAM, Document, World, until
from tests.unit.test_commands_docs import commands

PIPELINE, MISSPELT = "usage-limit-hits", "usage-limit-hit"
_CASE = {"name": "one of seats", "pipeline": PIPELINE, "event": usage(), "expect": {"branch": "none"}}


def hooked(port: int, document: Document) -> None:
    """A sink that nobody listens for, two branches, and a test."""
    document["connections"]["hook"] = {
        "type": "webhook",
        "url": f"http://127.0.0.1:{port}/",
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "allow": ["127.0.0.0/8"],
    }
    document["pipelines"][PIPELINE]["destinations"]["alerts"] = {
        "connection": "hook",
        "data": {"used": "$event.used"},
    }
    document["tests"] = [{**_CASE, "expect": {"events": {"customer_id": "cus_1"}}}]


@pytest.fixture
def stopped(world: World) -> World:
    """One stream: a message that waits, and dead letters of the contract that are open."""
    port = free_port()
    world.configure(lambda document: hooked(port, document))
    bridge = world.bridge().start().wait_ready()
    emit(world.source, usage(), usage(used="many"))
    until(
        lambda: world.target.value("select count(*) from bridge.delivery where last_error is not null"),
        "an attempt",
    )
    until(lambda: world.target.value("select count(*) from bridge.dead_letter where state = 'open'"), "one")
    assert bridge.terminate() == 0
    return world


def typos(code: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(command, the name that was meant). code: of the message that waits."""
    for act in ("list", "retry", "discard", "restore"):
        for option, word, meant in (
            ("--pipeline", MISSPELT, PIPELINE),
            ("--destination", "event", "events"),
            ("--cause", "contrakt", "contract"),
        ):
            yield ("dead", act, option, word), meant
    yield ("dead", "list", "--pipeline", PIPELINE, "--destination", "evnts"), "events"
    yield ("replay", "--destination", "evnts", "--since", "1h"), "events"
    yield ("replay", "--destination", f"{MISSPELT}/events", "--since", "1h"), f"{PIPELINE}/events"
    for act in ("pause", "resume"):
        yield ("sink", act, "alert"), "alerts"
        yield ("sink", act, f"{MISSPELT}/alerts"), PIPELINE
        yield ("sink", act, "alerts", "--pipeline", MISSPELT), PIPELINE
        yield ("sink", act, "--all", "--pipeline", MISSPELT), PIPELINE
        yield ("sink", act, "alerts", "--cause", f"{code}x"), code
    for act in ("list", "retry", "discard", "restore"):
        every = () if act == "list" else ("--all",)
        yield ("sink", act, "alert", *every), "alerts"
        yield ("sink", act, "--pipeline", MISSPELT, *every), f"{PIPELINE}/alerts"
        yield ("sink", act, "--type", "usage.limit_reachd"), "usage.limit_reached"
        yield ("sink", act, "--cause", f"{code}x"), code
    yield ("sink", "move", "alert", "alerts"), "alerts"
    yield ("sink", "move", "old", "alert"), "alerts"
    for act in ("preview", "test"):
        yield ("sink", act, "alert"), "alerts"
        yield ("sink", act, "alerts", "--pipeline", MISSPELT), PIPELINE
        yield (
            ("sink", act, "alerts", "--event", "{}", "--type", "usage.limit_reachd"),
            "usage.limit_reached",
        )
    yield ("tail", "--no-follow", MISSPELT), PIPELINE
    yield ("prove", "--pipeline", MISSPELT), PIPELINE
    yield ("run", "--stream", f"{STREAM}s"), STREAM
    yield ("recover", "--accept-gap", "--stream", f"{STREAM}s"), STREAM
    yield ("recover", "--adopt-outbox", "--dry-run", "--stream", f"{STREAM}s"), STREAM
    yield ("rename-stream", "outbox_bridge_old", f"{STREAM}s"), STREAM
    yield ("schema", "event", "usage.limit_reachd"), "usage.limit_reached"
    yield ("schema", "event", "--typescript", "usage.limit_reachd"), "usage.limit_reached"
    yield ("schema", "table", f"{PIPELINE}/evnts"), f"{PIPELINE}/events"
    yield ("recipe", "add", "signup"), "signups"
    for command in ("run", "lint", "doctor", "relay", "worker"):
        yield (command, "--allow-lint", "unknown-nme"), "unknown-name"
    for command in ("run", "relay", "worker"):
        yield (command, "--log-level", "warnin"), "warning"
    yield ("test", "-k", "one of seat5"), "one of seats"


def test_every_command_says_that_a_name_means_nothing_and_which_was_meant(stopped: World) -> None:
    code = str(stopped.target.value("select split_part(last_error, ':', 1) from bridge.delivery limit 1"))
    wrong = {}
    for words, meant in typos(code):
        ran = stopped.run(*words)
        if ran.returncode != 2 or f"did you mean {meant}?" not in ran.stderr:
            wrong[" ".join(words)] = (ran.returncode, ran.stdout, ran.stderr)
    assert wrong == {}
    # what is known is no error, though nothing has it now
    for known in (
        ("dead", "list", "--cause", "23505"),
        ("dead", "list", "--cause", "missing_entity"),
        ("dead", "retry", "--destination", "alerts", "--cause", "23505"),
        ("sink", "list", "--cause", "http_503"),
    ):
        stopped.command(*known)
    assert "there is no dead letter 00000000" in stopped.run("dead", "discard", "00000000").stderr
    # a stream that is not there any more: of the configuration, of the registry
    stopped.configure(lambda document: document["source"].update(slot="other"))
    for words in (
        ("decommission", f"{STREAM}s"),
        ("rename-stream", f"{STREAM}s", "other_warehouse"),
    ):
        ran = stopped.run(*words)
        assert (ran.returncode, f"did you mean {STREAM}?" in ran.stderr) == (2, True), ran.stderr
    stopped.command("rename-stream", STREAM, "other_warehouse")


FREE = {
    *("--config", "--env-file", "--reason", "--name", "--key", "--idempotency-key", "--id", "--event"),
    *("--recipient", "--since", "--until", "--older", "--after", "--limit", "--last", "--wait", "--interval"),
    *(
        "--state",
        "--old-source",
        "--target",
        "--publication",
        "--role",
        "--module",
        "--report",
        "--events",
        "--tamper",
    ),
    *("--messages", "--dead-letters"),  # discard or keep
    *("--sources",),  # of demo: how many
    *("--source",),  # where there are several: ops/test_sources.py
    *("--recipe", "--field", "--table"),  # of init: unit/config/test_own_event.py, test_recipe.py
}
"""Options with a value that names nothing that must exist, or that click itself checks."""


def test_every_option_and_argument_that_names_something_is_tried() -> None:
    """An option or argument that is new must be in typos() or in FREE."""
    tried = {(words, part) for words, part in _tried()}
    for name, command in commands(cli):
        for one in command.params:
            if (name, one.name) == ("worker", "streams"):
                continue  # it needs a log: ops/test_over_log.py
            if isinstance(one, click.Option) and not one.is_flag and not {*one.opts} & FREE:
                assert any((name, option) in tried for option in one.opts), f"{name} {one.opts}"


def _tried() -> Iterator[tuple[str, str]]:
    names = {name for name, _ in commands(cli)}
    for words, _ in typos("connect"):
        name = " ".join(words[:2]) if " ".join(words[:2]) in names else words[0]
        yield from ((name, word) for word in words if word.startswith("-"))


def test_without_a_sink_nothing_waits_and_a_name_is_still_an_error(world: World) -> None:
    assert world.command("sink", "list") == "no message waits\n"
    ran = world.run("sink", "list", "nope")
    assert ran.returncode == 2
    assert "there is no sink nope" in ran.stderr
