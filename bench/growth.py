"""`python -m bench.growth`: does an event cost the same when there is more of everything? Writes docs/growth.svg.

Four series: the backlog, the rows that the target's table has already, the pipelines of the file, the rows of a
transaction. Each drain is of its own bridge; what is told is the CPU of an event by process, because that is nearly the
same on a busy machine, and the rate. `--most` is the largest number of events and rows: 1,000,000 needs half an hour.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import yaml

from bench.backlog import forget, produce
from bench.contestants import Ours
from bench.report import machine
from bench.servers import Servers
from bench.svg import Panel, Series, chart
from bridge.demo.process import CONFIG

_EVENTS = 100_000  # of a drain whose backlog is not what grows
_LIMIT = 900.0
_FILL = """
    insert into events.usage_limits (event_id, customer_id, payload)
    select gen_random_uuid(), 'cus_' || n %% 500, '{}' from generate_series(1, %s) as n"""


@dataclass(frozen=True, slots=True)
class Point:
    """at: of what grows. cpu: microseconds an event, by process."""

    at: int
    events_per_second: float
    cpu: dict[str, float]
    peak_rss_bytes: int


class Growth:
    """Drains on one pair of servers."""

    def __init__(self, servers: Servers, most: int) -> None:
        self._servers = servers
        self._most = most
        self._root = servers.workspace.root

    def series(self) -> dict[str, tuple[str, list[int], Callable[[int], Point]]]:
        """Name -> what grows, how far, and how one point is measured."""
        return {
            "backlog": ("events in the backlog", self._up_to(10_000), lambda at: self._drain(at, at)),
            "target": (
                "rows in the target's table",
                [0, *self._up_to(10_000)],
                lambda at: self._drain(at, _EVENTS, filled=at),
            ),
            "pipelines": ("pipelines", [1, 10, 50, 200], lambda at: self._drain(at, _EVENTS, pipelines=at)),
            "transaction": (
                "rows of a transaction",
                [1, 10, 100, 1000, *self._up_to(10_000)],
                lambda at: self._drain(at, max(at, _EVENTS), rows=at),
            ),
        }

    def _up_to(self, first: int) -> list[int]:
        found = []
        while first <= self._most:
            found.append(first)
            first *= 10
        return found

    def _drain(self, at: int, events: int, *, filled: int = 0, pipelines: int = 1, rows: int = 1) -> Point:
        servers = self._servers
        ours = Ours(servers, self._root)
        ours.bridge.config = self._config(pipelines)
        ours.prepare()
        if filled:
            servers.on_target(ours.database, _FILL, [filled])
        last = produce(servers, events, rows)
        servers.target.execute("checkpoint")
        ours.start()
        began, so_far = _streaming(ours)
        used = _cpu(ours.processes())
        _until_there(servers, ours, last)
        seconds = time.monotonic() - began
        _, after = _streaming(ours)
        cpu = {part: _cpu({part: pid})[part] for part, pid in ours.processes().items()}
        peak = _peak(ours.bridge.pid)
        ours.stop()
        forget(servers)
        done = max(1, after - so_far)
        each = {part: round((spent - used.get(part, 0.0)) / done * 1e6, 2) for part, spent in cpu.items()}
        return Point(at, round(done / seconds), each, peak)

    def _config(self, pipelines: int) -> Path:
        """The demo's, with as many pipelines; one of them takes the events."""
        document: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        [pipeline] = document["pipelines"].values()
        for number in range(1, pipelines):
            document["pipelines"][f"other-{number}"] = {**pipeline, "event": f"usage.other_{number}"}
            document["events"][f"usage.other_{number}"] = document["events"]["usage.limit_reached"]
        path = self._root / "growth.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path


def _streaming(ours: Ours) -> tuple[float, int]:
    """When the bridge said that it streams, and how many events it had applied by then."""
    end = time.monotonic() + _LIMIT
    while time.monotonic() < end:
        status, body = ours.bridge.get("/status")
        if status == 200:
            [stream] = json.loads(body)["streams"]
            if stream["phase"] == "streaming":
                return time.monotonic(), int(stream["events"])
        time.sleep(0.005)
    raise TimeoutError(f"the bridge does not stream\n{ours.bridge.log_tail()}")


def _until_there(servers: Servers, ours: Ours, last: UUID) -> None:
    end = time.monotonic() + _LIMIT
    with psycopg.connect(servers.database_dsn(ours.database), autocommit=True) as watch:
        there = "select 1 from events.usage_limits where event_id = %s"
        while watch.execute(there, [last]).fetchone() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"not drained\n{ours.bridge.log_tail()}")
            time.sleep(0.01)


def _cpu(processes: dict[str, int]) -> dict[str, float]:
    """Seconds so far, of all threads, to the nanosecond."""
    return {
        part: sum(
            int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
        )
        / 1e9
        for part, pid in processes.items()
    }


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _panels(found: dict[str, list[Point]], titles: dict[str, str]) -> Iterator[Panel]:
    for name, points in found.items():
        parts = dict.fromkeys(part for point in points for part in point.cpu)
        yield Panel(
            titles[name],
            [
                Series(part, [(point.at, point.cpu[part]) for point in points if part in point.cpu])
                for part in parts
            ],
        )


def main() -> None:
    """Measure, print, write docs/growth.svg and build/growth.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--most", type=int, default=1_000_000, help="events and rows (default %(default)s)")
    parser.add_argument(
        "--events", type=int, default=100_000, help="of the other drains (default %(default)s)"
    )
    parser.add_argument("--only", action="append", choices=["backlog", "target", "pipelines", "transaction"])
    chosen = parser.parse_args()
    found: dict[str, list[Point]] = {}
    titles: dict[str, str] = {}
    with Servers() as servers:
        version = servers.version()
        for name, (title, steps, measure) in Growth(servers, chosen.most).series().items():
            if chosen.only and name not in chosen.only:
                continue
            titles[name] = title
            print(title, flush=True)
            for at in steps:
                point = measure(at)
                found.setdefault(name, []).append(point)
                cpu = "  ".join(f"{part} {value:.2f}" for part, value in point.cpu.items())
                memory = point.peak_rss_bytes / 1e6
                print(
                    f"  {at:>9,}  {point.events_per_second:>9,.0f} ev/s  {cpu}  {memory:.0f} MB", flush=True
                )
    subtitle = f"us of CPU an event, by process; PostgreSQL {version}, {time.strftime('%Y-%m-%d')}"
    Path("docs/growth.svg").write_text(chart(subtitle, list(_panels(found, titles))))
    Path("build").mkdir(exist_ok=True)
    report = {"machine": machine(), **{name: [asdict(one) for one in some] for name, some in found.items()}}
    Path("build/growth.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
