"""The server under test is the one asked for: a matrix of one server would prove nothing."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.servers import Database, provider


@pytest.mark.matrix
def test_the_server_is_the_one_asked_for(source: Database) -> None:
    major = int(source.value("show server_version_num")) // 10000
    assert 14 <= major <= 18
    directory = os.environ.get("BRIDGE_PG_BIN")
    if directory and provider() == "embedded":
        answer = subprocess.run(
            [f"{directory}/postgres", "--version"], capture_output=True, text=True, check=True
        )
        assert answer.stdout.split()[2].startswith(f"{major}.")
