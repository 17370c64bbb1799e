"""The table of `make bench-peers`: medians, who is best, and what it says where a peer is better."""

from __future__ import annotations

import json
import re

import pytest

from bench.drain import Drain
from bench.latency import Latency
from bench.peers import install, table
from bench.peers.catalog import not_to_be_had, peers
from bench.peers.install import DRIVERS, HERE, Installed
from bench.peers.measure import Kills

OURS, PEER = "bridge, synchronous_commit = on", "peer"


def drained(rate: float, process: float) -> Drain:
    return Drain(1000, 10, rate, 0.5, {"process": process, "postgres": 10.0}, 80_000_000)


def trickled(p50: float) -> Latency:
    return Latency(1000, p50, 3.0, 0.1, {"process": 600.0, "postgres": 800.0})


def text(failed: dict[str, str] | None = None) -> str:
    found = table.figures(
        {
            OURS: [drained(90_000, 6.0), drained(50_000, 6.2), drained(80_000, 6.4)],
            PEER: [drained(30_000, 9.0)],
        },
        {OURS: [trickled(1.0)], PEER: [trickled(0.7)]},
        {OURS: Kills(3000, 0, 0, 1.0, [1000, 2000]), PEER: Kills(3000, 0, 40, 2.0, [1000, 2000])},
    )
    return table.markdown(
        found,
        [(PEER, "1.2.0", "as documented")],
        failed or {},
        machine={"cores": 2, "processor": "a processor", "load_average_at_start": 0.3},
        postgres="18.6",
        payload=333,
        command="make bench-peers",
        options={
            "rounds": 3,
            "events": 1000,
            "limit": 15.0,
            "rate": 200.0,
            "seconds": 8.0,
            "killed": 3000,
            "patience": 30,
        },
    )


def row(name: str) -> list[str]:
    lines = [line for line in text().splitlines() if line.startswith(f"| {name}")]
    assert len(lines) == 1
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_table_has_medians_and_the_best_of_a_column_is_bold() -> None:
    assert row(OURS)[1] == "**80,000**"
    assert row(PEER)[1] == "30,000"
    assert "**0.70**" in row(PEER)
    assert "1.00" in row(OURS)
    assert row(PEER)[-1] == "40"


def test_table_says_where_a_peer_is_better_and_nowhere_else() -> None:
    said = text()
    assert "- p50 ms, 1.00: peer 0.70" in said
    assert "events/s, 80,000:" not in said
    assert "doubled, 0:" not in said


def test_table_names_what_was_not_measured_and_why() -> None:
    assert "- Not measured: other: no such package" in text({"other": "no such package"})


def test_table_goes_between_its_marks_and_nowhere_else() -> None:
    document = "before\n<!-- make bench-peers -->\nold\n<!-- end of make bench-peers -->\nafter\n"
    placed = table.place("new", document)
    assert "old" not in placed
    assert placed.startswith("before\n")
    assert placed.endswith("\nafter\n")
    assert table.place("new", placed) == placed
    with pytest.raises(ValueError, match="between the lines"):
        table.place("new", "a document without marks")


def pinned() -> dict[str, str]:
    """Versions by package, as if all had been installed."""
    python = dict(re.sub(r"\[.*\]", "", line).split("==") for line in install.requirements())
    node = json.loads((HERE / "package.json").read_text())["dependencies"]
    return {**python, **node, "python": "3.13"}


def test_a_package_that_cannot_be_had_costs_its_peers_and_is_named() -> None:
    versions = pinned()
    everybody = {spec.key for spec in peers(Installed("python", "node", versions, {}))}
    assert not_to_be_had(Installed("python", "node", versions, {})) == {}
    del versions["node"]
    installed = Installed("python", "node", versions, {"node": "npm is not installed"})
    left = {spec.key for spec in peers(installed)}
    assert everybody - left == {"pg_logical_replication", "pg_boss", "graphile_worker"}
    assert not_to_be_had(installed)["pg-boss"] == "node: npm is not installed"


def test_every_peer_has_a_driver_and_a_version_that_is_installed() -> None:
    specs = peers(Installed("python", "node", pinned(), {}))
    drivers = {HERE / "drivers" / spec.command[-1].removeprefix(f"{DRIVERS}/") for spec in specs}
    helpers = {
        HERE / "drivers" / name for name in ("target.py", "target.mjs", "upsert.sql", "mq_bridge_route.py")
    }
    assert drivers | helpers == {path for path in (HERE / "drivers").iterdir() if path.is_file()}
    assert len({spec.key for spec in specs}) == len(specs)
    assert install.WHERE.parts[-2:] == ("build", "peers")
