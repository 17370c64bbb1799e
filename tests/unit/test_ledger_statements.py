"""The ledger's statements write what the protocol decided, all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.postgres import ledger as ledger_sql
from bridge.protocol.events import Lsn
from bridge.protocol.facts import Ledger, Mode

STREAMING = Ledger("s", 1, "00000000-0000-0000-0000-000000000000", mode=Mode.STREAM, timeline=1)


def test_an_ordinary_commit_writes_positions_and_witness_only() -> None:
    after = replace(STREAMING, applied_lsn=Lsn(8), safe_lsn=Lsn(8), witness_id="w", witness_xid=4)
    assert len(ledger_sql.change(STREAMING, after).parameters) == 10


@pytest.mark.parametrize("change", [{"timeline": 2}, {"incarnation": 2}, {"system_identifier": "7"}])
def test_a_new_timeline_is_written_though_the_stream_only_goes_on(change: dict[str, object]) -> None:
    after = replace(STREAMING, **change)  # type: ignore[arg-type]
    parameters = ledger_sql.change(STREAMING, after).parameters
    assert str(next(iter(change.values()))).encode() in parameters[6:]
