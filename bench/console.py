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
from bench.drain import Drain, drain
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
        drains: dict[str, list[Drain]] = {one.name: [] for one in ours}
        for number in range(chosen.rounds):
            for one in ours if number % 2 == 0 else ours[::-1]:
                one.prepare()
                last = produce(servers, chosen.events, 1)
                drains[one.name].append(drain(servers, one, last))
                forget(servers)
            told = "  ".join(f"{name}: {_told(some[-1])}" for name, some in drains.items())
            print(f"round {number + 1}: {told}", flush=True)
        alone = drains[ours[0].name]
        for one in ours[1:]:
            pairs = list(zip(alone, drains[one.name], strict=True))
            rate = median(theirs.rate / mine.rate for mine, theirs in pairs)
            cpu = median(theirs.cpu["bridge"] / mine.cpu["bridge"] for mine, theirs in pairs)
            print(
                f"{one.name}, to nobody looking: rate {rate:.3f}, CPU an event {cpu:.3f} (medians of the pairs)"
            )


def _told(one: Drain) -> str:
    return f"{one.rate:,.0f} events/s, {one.cpu['bridge']:.2f} us CPU"


if __name__ == "__main__":
    main()
