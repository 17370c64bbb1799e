"""The ingress in front of a test's own source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ingress.serving import IngressServer
from tests.support.servers import Database


@pytest.fixture
def serving(source: Database, tmp_path: Path) -> Iterator[Callable[..., IngressServer]]:
    """Makes servers that end with the test; `dsn` and `text` (the configuration) may be given."""
    with ExitStack() as stack:

        def serve(**given: Any) -> IngressServer:
            arguments = {"dsn": source.bridge_dsn, "directory": tmp_path, **given}
            return stack.enter_context(IngressServer(**arguments))

        yield serve


@pytest.fixture
def ingress(serving: Callable[..., IngressServer]) -> IngressServer:
    return serving()
