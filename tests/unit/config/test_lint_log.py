"""What lint says of `scale.log`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config.lint import lint

FILE = """
version: 1
source: {{ dsn: service=app{source} }}
scale: {{ log: {log}, partitions: 3 }}
connections:
  warehouse: {{ type: postgres, dsn: service=warehouse }}
  bus: {{ type: nats, servers: ["nats://localhost:4222"] }}
events:
  a: {{ id: string }}
pipelines:
  p:
    event: a
    destinations:
      t: {{ connection: warehouse, table: public.t, mode: upsert, key: [event_id], columns: {{ event_id: $meta.id }} }}
"""


def found(tmp_path: Path, log: str = "bus", source: str = "") -> list[str]:
    path = tmp_path / "bridge.yaml"
    path.write_text(FILE.format(log=log, source=source))
    return [f"{one.name}: {one.message}; {one.fix}" for one in lint(path, {})]


def test_a_connection_that_is_only_the_log_is_used(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("log", "source", "told"),
    [
        ("bos", "", "invalid: bos: there is no such connection; did you mean bus?"),
        ("warehouse", "", "invalid: warehouse: it is not one of type nats"),
        ("bus", ", capture: poll", "log-without-slot: poll: no relay reads this source"),
        (
            "bus",
            ", table: public.o, columns: { id: id, type: type, payload: payload }",
            "invalid: has no xid, and scale.log needs it",
        ),
    ],
)
def test_what_cannot_be_over_a_log_is_told(tmp_path: Path, log: str, source: str, told: str) -> None:
    findings = found(tmp_path, log, source)
    assert any(one.startswith(told) for one in findings), findings
