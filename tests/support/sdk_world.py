"""A real bridge with an ingress for tests that are not Python: `python -m tests.support.sdk_world RATE_LIMIT`.

Prints one line of JSON (url, key, config, source_dsn) when it is ready. Each line on standard input is then a
question; `arrived` is answered with one line: the rows of the target's table, once everything is applied.
It ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.servers import Servers, free_port
from tests.support.world import World, make_database

KEY = "sdk-key"


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until standard input ends."""
    port = free_port()
    with closing(Servers()) as servers, tempfile.TemporaryDirectory() as directory:
        source = make_database(servers.private("source"), "source", "source")
        target = make_database(servers.private("target"), "target", "target")
        with closing(World(source, target, Path(directory))) as world:
            world.text += (
                f"ingress: {{ listen: 127.0.0.1:{port}, api_keys: [{KEY}], rate_limit: {sys.argv[1]} }}\n"
            )
            world.bridge().start().wait_ready()
            url = f"http://127.0.0.1:{port}"
            _say({"url": url, "key": KEY, "config": str(world.config), "source_dsn": source.bridge_dsn})
            for _ in sys.stdin:
                world.caught_up()
                rows = target.execute("select payload from events.usage_limits order by occurred_at")
                _say([row[0] for row in rows])


if __name__ == "__main__":
    main()
