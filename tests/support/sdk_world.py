"""A real bridge with an ingress for tests in other languages: `python -m tests.support.sdk_world RATE_LIMIT [NAME]...`.

NAME: of one more source. Prints one line of JSON (url, key, config, source_dsn) when it is ready. Each line on standard
input is then a question; `arrived` is answered with one line: the rows of the target's table, once everything is
applied; `outbox NAME` with how many events that source has. It ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.servers import Database, Servers, free_port
from tests.support.world import Document, World, make_database

KEY = "sdk-key"


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _several(document: Document, outboxes: Mapping[str, Database]) -> None:
    section = document.pop("source")
    document["sources"] = {
        name: section if name == "source" else {**section, "dsn": one.bridge_dsn}
        for name, one in outboxes.items()
    }


def main() -> None:
    """Serve until standard input ends."""
    port = free_port()
    with closing(Servers()) as servers, tempfile.TemporaryDirectory() as directory:
        source = make_database(servers.private("source"), "source", "source")
        target = make_database(servers.private("target"), "target", "target")
        outboxes = {"source": source}
        for name in sys.argv[2:]:
            outboxes[name] = make_database(source.server, f"source_{name}", "source")
            outboxes[name].execute(
                f"create publication outbox_bridge_{name} for table outbox.event with (publish = 'insert')"
            )
        with closing(World(source, target, Path(directory))) as world:
            if len(outboxes) > 1:
                world.configure(lambda document: _several(document, outboxes))
            world.text += (
                f"ingress: {{ listen: 127.0.0.1:{port}, api_keys: [{KEY}], rate_limit: {sys.argv[1]} }}\n"
            )
            world.bridge().start().wait_ready()
            url = f"http://127.0.0.1:{port}"
            _say({"url": url, "key": KEY, "config": str(world.config), "source_dsn": source.bridge_dsn})
            for line in sys.stdin:
                if line.startswith("outbox "):
                    _say(outboxes[line.split()[1]].value("select count(*) from outbox.event"))
                    continue
                world.caught_up()
                rows = target.execute("select payload from events.usage_limits order by occurred_at")
                _say([row[0] for row in rows])


if __name__ == "__main__":
    main()
