"""docs/commands.md has a section for every command, and in it every option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import rich_click as click

from bridge.cli import cli

DOCS = Path(__file__).parents[2] / "docs" / "commands.md"
_EVERYWHERE = {"--env-file", "--config", "-c", "--help"}


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield prefix + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")


def options(command: click.Command) -> set[str]:
    found = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    return {name for one in found for name in (*one.opts, *one.secondary_opts)} - _EVERYWHERE


def sections() -> dict[str, str]:
    parts = re.split(r"^#{2,3} (.+)$", DOCS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert set(sections()) == {name for name, _ in commands(cli)}


def test_every_option_stands_in_its_commands_section_and_no_other_does() -> None:
    written = sections()
    for name, command in commands(cli):
        rows = [row for row in written[name].splitlines() if row.startswith("| `-")]
        told = {
            option for row in rows for option in re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", row.split("|")[1])
        }
        assert told == options(command), name


def test_every_command_and_option_has_a_help_text() -> None:
    for name, command in commands(cli):
        assert command.help, name
        for one in command.params:
            if isinstance(one, click.Option):
                assert one.help, f"{name} {one.name}"
