"""A person on call, in a shell that has none of the unit's variables: from the alert to the row, by what is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.e2e.shell import Shell, transcript, typed_seconds
from tests.support.servers import Database

_UNITS_FILE = "/etc/outbox-bridge/bridge.yaml"
_MOST_SECONDS = 120


def test_an_operator_without_the_units_environment_mends_in_two_minutes(
    prepared: Shell, wheel_commands: Path, tmp_path: Path, app: Database, warehouse: Database
) -> None:
    """The bridge runs with the unit's variables. The operator has bridge.yaml's path from the unit, and psql."""
    file = prepared.directory / "bridge.yaml"
    warehouse.execute("alter table events.usage_limits rename column mrr to revenue")
    prepared.start()
    event, *_ = [line for line in transcript()[0] if line.startswith("bridge emit")]
    prepared(re.sub(r" && .*", "", event) + " --wait 0")

    operator = Shell(wheel_commands, tmp_path, app.dsn, warehouse.dsn)
    for name in ("SOURCE_DSN", "WAREHOUSE_DSN"):
        del operator.environment[name]
    typed: list[str] = []

    def run(line: str, shows: str = "", code: int = 0) -> str:
        """The line as it is typed where the unit's file is, and what it says."""
        typed.append(line)
        line = line.replace(_UNITS_FILE, shlex.quote(str(file)))
        return operator.until(line, shows) if shows else operator(line, code)

    said = run(f"bridge status -c {_UNITS_FILE}", "column_missing")
    assert f"using the values that the running bridge (pid {prepared.daemon and prepared.daemon.pid}" in said
    assert "events.usage_limits has no column" in said
    assert "mrr" in said
    looked = run(f"bridge doctor -c {_UNITS_FILE}", code=1)
    [fix] = re.findall(r"fix: (alter table .*? add column .*?;)", looked)
    typed.append(f"psql -h db warehouse -c {shlex.quote(fix)}")
    operator(f"psql {shlex.quote(warehouse.dsn)} -c {shlex.quote(fix.replace('<type>', 'numeric'))}")
    run(f"bridge status -c {_UNITS_FILE}", "ready\n")
    newest = run(f"bridge tail --no-follow -c {_UNITS_FILE}", "applied").split()[2]
    assert "-> " in run(f"bridge explain {newest} -c {_UNITS_FILE}")
    assert "no open dead letters" in run(f"bridge dead list -c {_UNITS_FILE}")
    assert warehouse.value("select count(*) from events.usage_limits where mrr is not null") == 1
    assert typed_seconds(typed) < _MOST_SECONDS
