"""The configuration that runs, beside the file: what a reload refused, what lint finds, what differs.

Secrets are hidden from everybody, in both texts: scalars of the keys that hold them, unless they only name a variable
or a file.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from starlette.requests import Request

from bridge.config.lint import lint
from bridge.console.desk import Desk
from bridge.console.operations import Done, Operation
from bridge.console.operations import Request as Asked
from bridge.console.pages import HIDDEN
from bridge.problem import InvalidConfig

SECRET_KEYS = frozenset(
    {
        "api_keys",
        "dsn",
        "headers",
        "password",
        "secret",
        "secrets",
        "sslpassword",
        "token",
        "url",
        "webhook_url",
    }
)
"""A test compares them with the fields of the models that are not to be printed."""
_REFERENCE = re.compile(r"(\$\{(file:[^}]+|\w+)\})+")


def masked(text: str) -> str | None:
    """The text without secrets; None: it is no YAML, and nobody knows where they are."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    spans = sorted(set(_secrets(root, secret=False)) if root is not None else (), reverse=True)
    for start, end in spans:
        text = f"{text[:start]}{HIDDEN}{text[end:]}"
    return text


def _secrets(node: yaml.Node, *, secret: bool) -> Iterator[tuple[int, int]]:
    if isinstance(node, yaml.ScalarNode):
        if secret and node.value and not _REFERENCE.fullmatch(node.value):
            yield node.start_mark.index, node.end_mark.index
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _secrets(one, secret=secret)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _secrets(value, secret=secret or key.value in SECRET_KEYS)


def _told(desk: Desk) -> dict[str, Any]:
    made_of = desk.config().original
    path = Path(made_of.file)
    runs = masked(made_of.text)
    try:
        found = path.read_text()
        now, why = masked(found), ""
    except OSError as error:
        found, now, why = "", None, f"{path} cannot be read: {error.strerror}"
    try:
        findings = [one.text(path.name) for one in lint(path, os.environ)]
    except InvalidConfig as invalid:
        findings = [str(invalid)]
    diff: list[str] = []
    if runs is not None and now is not None:
        lines = difflib.unified_diff(
            runs.splitlines(), now.splitlines(), "what runs", str(path), lineterm="", n=2
        )
        diff = list(lines)
    refused = desk.metrics.health.reload_refused
    return {
        "file": str(path),
        "pid": os.getpid(),
        "runs": runs or "",
        "same": not why and found == made_of.text,
        "why": why
        or ("" if now is not None else "the file is no YAML, so it is not shown: it may hold secrets"),
        "diff": diff,
        "findings": findings,
        "refused": None if refused is None else dict(refused),
    }


async def configuration(desk: Desk, _: Request) -> tuple[str, dict[str, Any]]:
    return "configuration.html", await desk.work(_told, desk)


def _configuration(asked: Asked) -> Done:
    return Done(_told(asked.desk))


PAGES = {"/configuration": configuration}
OPERATIONS = (
    Operation(
        "GET",
        "/configuration",
        "What runs, what the last reload refused, what lint finds in the file, and how it differs. Without secrets.",
        _configuration,
    ),
)
