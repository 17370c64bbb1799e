"""`python -m bench.many FOLDER`: `bridge run` of several files, source-00.yaml and so on, in one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bridge import daemon
from bridge.config.load import load
from bridge.config.model import Config
from bridge.observe.logs import configure
from bridge.plans import stream_plans
from bridge.stream.spec import StreamSpec


def run(folder: Path) -> None:
    """The daemon of the first file, with the streams of all."""

    def read(file: Path) -> Config:
        return load(file, os.environ)

    configs = [read(file) for file in sorted(folder.glob("source-*.yaml"))]

    def plans(_: object) -> list[StreamSpec]:
        return [plan for config in configs for plan in stream_plans(config)]

    configure()
    daemon.stream_plans = plans
    daemon.run_daemon(configs[0], lambda: read(folder / "source-00.yaml"))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
