"""`python -m bench.scale`: does an event cost the same when there are ten million, and what does `bridge prove` take?

Apart from the comparisons because it needs tens of gigabytes and a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from bench.backlog import produce
from bench.contestants import Ours
from bench.drain import drain
from bench.report import machine
from bench.servers import Servers
from bridge.demo.process import CONFIG

_ROWS = 1000  # a transaction of the backlog

# Rows that each tenth of the drain's commits made visible, and the seconds from its first commit to its last.
_TENTHS = """
with commits as (
    select pg_xact_commit_timestamp(xmin) as at, count(*) as rows from events.usage_limits group by xmin
), numbered as (
    select at, rows, ntile(10) over (order by at) as tenth from commits
)
select sum(rows)::bigint, extract(epoch from max(at) - min(at))::float8 from numbered group by tenth order by tenth
"""


def tenths(servers: Servers, database: str) -> list[float]:
    """Events a second in each tenth of a drain."""
    return [rows / max(seconds, 1e-6) for rows, seconds in servers.on_target(database, _TENTHS)]


def prove(servers: Servers) -> dict[str, Any]:
    """`bridge prove --json` as a process of its own: seconds, peak bytes, exit code, what it counted."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "bridge", "prove", "-c", str(CONFIG), "--json"],
        env={**os.environ, **servers.bridge_environment},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": round(time.monotonic() - began, 1),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "exit_code": process.returncode,
        "report": said,
    }


def main() -> None:
    """Fill, drain, prove; damage the target, prove again. Writes build/scale.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000, help="default %(default)s")
    events = parser.parse_args().events
    with Servers() as servers:
        ours = Ours(servers, servers.workspace.root)
        ours.prepare()
        began = time.monotonic()
        last = produce(servers, events, _ROWS)
        print(f"{events:,} events written in {time.monotonic() - began:.0f} s", flush=True)
        drained = drain(servers, ours, last)
        rates = tenths(servers, ours.database)
        print(f"drained at {drained.rate:,.0f} events/s, peak RSS {(drained.memory or 0) / 1e6:.0f} MB")
        print("by tenths: " + " ".join(f"{rate:,.0f}" for rate in rates), flush=True)
        servers.on_source("analyze outbox.event")
        servers.on_target(ours.database, "analyze events.usage_limits")
        clean = prove(servers)
        print(
            f"prove: exit {clean['exit_code']}, {clean['seconds']} s, {clean['peak_rss_bytes'] / 1e6:.0f} MB"
        )
        with psycopg.connect(servers.database_dsn(ours.database), autocommit=True) as connection:
            connection.execute("delete from events.usage_limits where event_id = %s", [last])
        damaged = prove(servers)
        print(
            f"prove, one row missing: exit {damaged['exit_code']}, {damaged['seconds']} s,"
            f" {damaged['peak_rss_bytes'] / 1e6:.0f} MB, named: {str(last) in json.dumps(damaged['report'])}"
        )
    build = Path("build")
    build.mkdir(exist_ok=True)
    report = {
        "machine": machine(),
        "events": events,
        "rate": drained.rate,
        "tenths": rates,
        "peak_rss_bytes": drained.memory,
        "prove": clean,
        "prove_damaged": damaged,
    }
    (build / "scale.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
