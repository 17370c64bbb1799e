"""A link behind which nobody is, though every packet is acknowledged: the control connections notice."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from bridge.postgres import source as source_module
from bridge.postgres import wire
from tests.support.proxy import FaultProxy
from tests.support.servers import Database


def test_a_control_connection_gives_up_on_a_link_that_only_acknowledges(
    source: Database, proxy_to: Callable[[str], FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_ANSWER_SECONDS", 0.5)
    link = proxy_to(source.bridge_dsn)
    connection = source_module.connect_source(link.dsn, "s")
    assert connection.execute("select 1").fetchone() == (1,)
    link.blackhole()
    with pytest.raises(psycopg.OperationalError, match="the link is dead"):
        connection.execute("select 1")
    assert connection.closed
