"""A page in a real browser sends events: only one of a configured origin is let in."""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.ingress.serving import CONFIG, EVENT, KEY, IngressServer
from tests.support.debian import browser
from tests.support.servers import Database

PAGE = """<!doctype html><title>a shop</title><pre></pre><script>
const send = (key) => fetch("%s/v1/events/usage.limit_reached", {
  method: "POST", body: JSON.stringify(%s),
  headers: { authorization: "Bearer " + key, "content-type": "application/json", "idempotency-key": "from-a-page" },
}).then((answer) => answer.status, (error) => error.name);
Promise.all([send("%s"), send("wrong")]).then((found) => {
  document.querySelector("pre").textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the origin under which a browser finds it."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def shown(url: str, profile: Path) -> list[object]:
    """What the page at this address writes when both of its requests have ended."""
    program, environment = browser()
    done = subprocess.run(
        [
            program,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *(f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", url),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r"<pre>(.+?)</pre>", done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:] + done.stderr[-2000:]
    answers: list[object] = json.loads(html.unescape(found[1]))
    return answers


@pytest.mark.slow
def test_a_page_of_a_configured_origin_sends_and_another_is_refused(
    serving: Callable[..., IngressServer], source: Database, site: tuple[Path, str], tmp_path: Path
) -> None:
    folder, origin = site
    for number, (cors, wanted) in enumerate(
        (([origin], [202, 401]), (["https://another.example"], ["TypeError"] * 2), ([], ["TypeError"] * 2))
    ):
        server = serving(text=f"{CONFIG}  cors: {json.dumps(cors)}\n" if cors else CONFIG)
        address = f"http://127.0.0.1:{server.port}"
        (folder / f"{number}.html").write_text(PAGE % (address, json.dumps(EVENT), KEY))
        assert shown(f"{origin}/{number}.html", tmp_path / f"profile-{number}") == wanted
    assert source.value("select count(*) from outbox.event where idempotency_key = 'from-a-page'") == 1
