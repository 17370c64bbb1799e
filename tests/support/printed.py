"""What the program and its documents print for a person to type: the commands and the SQL in their texts.

Texts are found in the source by its syntax tree; what is filled in when a text is printed is HOLE here.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import rich_click as click
from click.exceptions import Exit

from bridge.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
HOLE = "\0"
_MENTION = re.compile(
    r"(?P<before>\S+\s+|`)?\b(?:outbox-)?bridge (?P<first>[a-z][a-z-]*)(?=(?P<rest>[^\n`]*))"
)
_PROSE = frozenset(
    ["the", "a", "this", "that", "another", "any", "no", "of", "each", "every", "our", "outbox"]
)
_ENDS = ("|", "&&", "||", "#", "--", ">", "or", "and", "\\")
_CREATED = "or replace|unique|table|index|role|schema|trigger|publication|function"
SQL_VERBS = (
    f"alter|grant|revoke|create (?:{_CREATED})|drop|select|update|insert into|delete from|reset|truncate"
)
_STATEMENT = re.compile(rf"(?:^|(?<=[;:,(] )|(?<=\n)|(?<=   ))((?:{SQL_VERBS}) [^;]*);", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Text:
    """Something that is printed. where: file:line."""

    where: str
    text: str


def source_texts() -> Iterator[Text]:
    """Every text in the package but docstrings; pieces that are one text are together."""
    for path in sorted((ROOT / "bridge").rglob("*.py")):
        tree = ast.parse(path.read_text())
        done = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) not in done and (text := _text(node)) is not None:
                done |= {id(one) for one in ast.walk(node)}
                yield Text(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", text)


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else HOLE for one in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        if left is not None or right is not None:
            return f"{HOLE if left is None else left}{HOLE if right is None else right}"
    if isinstance(node, ast.Call) and node.args:  # words that a function joins to a command
        words = [HOLE if (said := _text(one)) is None else said for one in node.args]
        if len(words) > 1 and words[0].startswith("bridge "):
            return " ".join(words)
    return None


def document_texts() -> Iterator[Text]:
    """Every line of the shell blocks of the documents, and the alerts' texts."""
    for path in sorted(
        [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    ):
        inside = False
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.lstrip().startswith("```"):
                inside = not inside and line.strip()[3:] in ("sh", "bash", "console", "shell")
            elif inside or line.startswith("    "):
                yield Text(f"{path.relative_to(ROOT)}:{number}", line)
            else:
                for quoted in re.findall(r"`((?:outbox-)?bridge [^`]+)`", line):
                    yield Text(f"{path.relative_to(ROOT)}:{number}", f"`{quoted}`")
    for path in sorted((ROOT / "deploy").rglob("*.yml")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield Text(f"{path.relative_to(ROOT)}:{number}", line)


# -- commands -------------------------------------------------------------------------------------------


def commands_in(text: str) -> Iterator[str]:
    """`bridge COMMAND ...` as written, from its first word to where the command ends, or the text does."""
    for found in _MENTION.finditer(text):
        before = (found["before"] or "").strip()
        if found["first"] in COMMANDS:
            if before.lower() not in _PROSE:
                yield f"{found['first']}{found['rest']}"
        elif before == "`":
            yield f"{found['first']}{found['rest']}"


def complaint(written: str) -> str:
    """Why click refuses this; empty: it does not. The words that follow a command in a sentence are not of it."""
    words = written.split()
    path: list[str] = []
    command = _found(words, path)
    if isinstance(command, click.Group):  # it is named, or asked for its help
        return f"bridge {' '.join(path)} has no command {words[0]!r}" if words else ""
    given, unknown = _arguments(command, words)
    if not given:
        return ""
    try:
        with redirect_stdout(io.StringIO()):  # of --help
            command.make_context(" ".join(path), given)
    except Exit:
        return ""
    except click.UsageError as error:
        return "" if unknown and isinstance(error, click.MissingParameter) else error.format_message()
    return ""


def _found(words: list[str], path: list[str]) -> click.Command:
    """The command that `words` begin with, which are taken from them; a group, if there is none."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        word = words[0].rstrip(".,:;)").partition("|")[0]  # `bridge schema source|target`
        if word == "--help":
            words.clear()
        elif (found := command.get_command(click.Context(command), word)) is None:
            break
        else:
            command = found
            path.append(words.pop(0))
    return command


def _arguments(command: click.Command, words: list[str]) -> tuple[list[str], bool]:
    """The options and arguments, with a value for what is not known here; is there anything more in a HOLE?"""
    options = {name: one for one in command.params for name in one.opts if isinstance(one, click.Option)}
    room = sum(
        one.nargs if one.nargs > 0 else 99 for one in command.params if isinstance(one, click.Argument)
    )
    given: list[str] = []
    unknown = ended = False
    while words and not ended:
        word = words.pop(0)
        if word in _ENDS or word.startswith(("(", "<<")):
            break
        ended = word[-1] in ";,:)."
        word = word.rstrip(";,:).").strip("[]")
        if not word or word == "...":
            continue
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            given.append(name)
            one = options.get(name)
            if one is not None and not one.is_flag:
                if equals or (words and not ended):
                    raw = value if equals else words.pop(0)
                    ended = ended or raw[-1:] in (";", ",", ":")
                    given.append(_value(one, raw.rstrip(";,:.")))
                elif not unknown:
                    unknown = not given.pop()
        elif HOLE in word or _is_value(word):
            if room > 0 or word.isupper():
                given.append(word.replace(HOLE, "x"))
                room -= 1
            elif HOLE in word:
                unknown = True
            else:
                break
        else:
            break
    return given, unknown


def _is_value(word: str) -> bool:
    plain = word.strip("'\"")
    return (
        plain != word
        or word.startswith(("<", "$", "./"))
        or not word.islower()
        or bool(re.search(r"[/._\d]", word))
    )


def _value(option: click.Option, raw: str) -> str:
    """As written, where it is an example; else what its type takes."""
    if not (HOLE in raw or raw.strip("'\"").isupper() or raw.startswith("<")):
        return raw.strip("'\"")
    kind = option.type
    if isinstance(kind, click.Choice):
        return str(kind.choices[0])
    if kind.name in ("time",):
        return "24h"
    return (
        "1"
        if kind.name.startswith(("integer", "float"))
        else "unknown-name"
        if "lint" in option.opts[0]
        else "x"
    )


# -- SQL ------------------------------------------------------------------------------------------------


def statements_in(text: str) -> Iterator[str]:
    """The SQL of a text, without the semicolons that end it; a name where something is filled in."""
    for found in _STATEMENT.finditer(text):
        if found[1].count("'") % 2 or found[1].count("$$") % 2:
            continue  # a part of another statement
        yield re.sub(
            rf"{HOLE}|(?<!\{{)\{{\w+\}}|<[\w ]+>", "x", found[1].replace("{{", "{").replace("}}", "}")
        )


# -- the shell's programs --------------------------------------------------------------------------------

_PROGRAMS = (
    r"kill -|systemctl |getent |ss -|openssl \w|psql -|psql \"|pip install |sed -i|docker |kubectl |ssh -|"
    r"pg_dump(?:all)? -|promtool |sudo outbox-bridge |python -m |bridge [^\n`|;]*\| psql"
)
_LINE = re.compile(
    rf"(?<![\w-])((?:{_PROGRAMS})[^\n`;]*?)(?=\s*(?:[;`\n)]|,? \(|   |, | --?  | -- |  #|: |\.$|$))"
)


def lines_in(text: str) -> Iterator[str]:
    """Lines for a shell that begin with another program than ours, or end in one; `x` where something is filled in."""
    for found in _LINE.finditer(text):
        yield re.sub(rf"{HOLE}|\{{\w+\}}|<[\w ]+>|(?<=psql )\.\.\.", "x", found[1])


# -- all of them ----------------------------------------------------------------------------------------


def typed() -> dict[str, list[str]]:
    """SQL, commands with arguments and lines for a shell that the program and the runbook print -> where. `x` stands
    for what is filled in."""
    found: dict[str, list[str]] = {}
    for one in (*source_texts(), *runbook_texts()):
        if one.where.startswith(("bridge/demo/", "bridge/cli/demo.py")):
            continue
        for line in (*statements_in(one.text), *_with_arguments(one.text), *lines_in(one.text)):
            found.setdefault(" ".join(line.split()), []).append(one.where)
    return found


def _with_arguments(text: str) -> Iterator[str]:
    for written in commands_in(text):
        words, path = written.split(), list[str]()
        command = _found(words, path)
        if not isinstance(command, click.Group) and (given := _arguments(command, words)[0]):
            yield " ".join(["bridge", *path, *given])


def runbook_line(begins: str) -> str:
    """The first line of docs/operations.md to be typed that begins so, as it stands there."""
    return next(one.text for one in _runbook() if one.text.startswith(begins))


def runbook_texts() -> Iterator[Text]:
    """The same lines, where names in capitals are to be filled in."""
    for one in _runbook():
        sql = re.match(SQL_VERBS, one.text) and "..." not in one.text
        yield Text(one.where, _filled(f"{one.text.rstrip(';')};" if sql else one.text))


def _runbook() -> Iterator[Text]:
    """What docs/operations.md gives to be typed: its blocks, and what is set as code in its sentences."""
    path = ROOT / "docs" / "operations.md"
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path.relative_to(ROOT)}:{number}"
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    bridge "):
            yield Text(where, line.strip().partition("  ")[0])
        else:
            yield from (Text(where, quoted) for quoted in re.findall(r"`([^`]+)`", line))


def _filled(text: str) -> str:
    return re.sub(r"(?<![-\w])[A-Z][A-Z_]+(?:/[A-Z]+)?\b(?!-)|(?<=psql )\.\.\.", HOLE, text)
