"""What the console costs the stream: the same backlog drained while nobody looks and while ten viewers do.

With --before PATH also by the bridge of another checkout, such as one from before the console.

    python -m bench.console --rounds 6 --before /path/to/checkout
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import aiohttp

from bench.backlog import forget, produce
from bench.contestants import Ours
from bench.drain import drain
from bench.servers import Servers

VIEWERS = 10
POLL_SECONDS = 2.0  # as the page does


class Watched(Ours):
    """The bridge, with so many viewers of its overview."""

    def __init__(self, servers: Servers, directory: Path, viewers: int, tree: Path | None = None) -> None:
        super().__init__(servers, directory)
        self.name = f"bridge, {viewers} viewers" if tree is None else f"bridge of {tree}"
        self._viewers = viewers
        self._watching: subprocess.Popen[bytes] | None = None
        if tree is not None:
            self.bridge.environment = {**self.bridge.environment, "PYTHONPATH": str(tree)}

    def start(self) -> None:
        super().start()
        if self._viewers:
            command = [sys.executable, "-m", "bench.console", "--look", self.bridge.admin, str(self._viewers)]
            self._watching = subprocess.Popen(command)

    def stop(self) -> None:
        if self._watching is not None:
            self._watching.terminate()
            self._watching.wait()
            self._watching = None
        super().stop()


async def look(address: str, viewers: int) -> None:
    """As so many browsers do, until it is killed."""

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(POLL_SECONDS * number / viewers)
        for turn in range(10**9):
            paths = ["/part/overview", *(["/api/history"] if turn % 15 == 0 else [])]
            for path in paths:
                try:
                    async with session.get(f"http://{address}{path}") as answer:
                        await answer.read()
                except aiohttp.ClientError:
                    pass  # it starts
            await asyncio.sleep(POLL_SECONDS)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(session, number) for number in range(viewers)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--look", nargs=2, metavar=("ADDRESS", "VIEWERS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.look:
        asyncio.run(look(chosen.look[0], int(chosen.look[1])))
        return
    with tempfile.TemporaryDirectory() as place, Servers() as servers:
        ours = [Watched(servers, Path(place), 0), Watched(servers, Path(place), VIEWERS)]
        if chosen.before:
            ours.append(Watched(servers, Path(place), 0, chosen.before))
        rates: dict[str, list[float]] = {one.name: [] for one in ours}
        for number in range(chosen.rounds):
            for one in ours if number % 2 == 0 else ours[::-1]:
                one.prepare()
                last = produce(servers, chosen.events, 1)
                rates[one.name].append(drain(servers, one, last).rate)
                forget(servers)
            told = "  ".join(f"{name}: {some[-1]:,.0f}" for name, some in rates.items())
            print(f"round {number + 1}: {told} events/s", flush=True)
        alone = rates[ours[0].name]
        for one in ours[1:]:
            pairs = [
                (theirs / mine if one.name.startswith("bridge,") else mine / theirs)
                for mine, theirs in zip(alone, rates[one.name], strict=True)
            ]
            what = "with viewers to without" if one.name.startswith("bridge,") else "now to before"
            print(f"{one.name}: {what}, median of the pairs: {median(pairs):.3f}")


if __name__ == "__main__":
    main()
