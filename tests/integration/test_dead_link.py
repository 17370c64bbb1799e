"""A link behind which nobody is, though every packet is acknowledged: the control connections notice."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from bridge.postgres.connect import connect
from bridge.postgres.profiles import SOURCE
from tests.support.proxy import FaultProxy
from tests.support.servers import Database


def test_a_control_connection_gives_up_on_a_link_that_only_acknowledges(
    source: Database, proxy_to: Callable[[str], FaultProxy]
) -> None:
    link = proxy_to(source.bridge_dsn)
    connection = connect(link.dsn, SOURCE, "s")
    assert connection.answer_seconds > SOURCE.statement_seconds
    connection.answer_seconds = 0.5
    assert connection.execute("select 1").fetchone() == (1,)
    link.blackhole()
    with pytest.raises(psycopg.OperationalError, match="the link is dead"):
        connection.execute("select 1")
    assert connection.closed
