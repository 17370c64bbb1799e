"""A real browser: Debian's chromium, driven by the DevTools protocol over a web socket.

It waits for conditions of the page, types and clicks by selectors, and takes pictures. One page at a time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.debian import browser

_SECONDS = 30.0
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-port=0"),
)


class Chromium:
    """Close it."""

    def __init__(self, *, width: int = 1200, height: int = 900) -> None:
        program, environment = browser()
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self.complaints: list[str] = []  # what the browser said: errors of scripts, what the policy refused
        self._run(self._connect())
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._run(self._session.close())
        self._process.terminate()
        self._process.wait(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    # -- what a person does -------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until(
            "document.readyState === 'complete' && location.href !== 'about:blank'", f"{url} is loaded"
        )

    def click(self, selector: str) -> None:
        """And wait for the page that it leads to, where it leads to one."""
        self.run(f"window.__old = true; document.querySelector({json.dumps(selector)}).click()")

    def submit(self, selector: str) -> None:
        """Click what sends a form or follows a link; returns when the next page is there."""
        self.click(selector)
        self.until("!window.__old && document.readyState === 'complete'", f"the page after {selector}")

    def fill(self, selector: str, text: str) -> None:
        self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.focus();"
            f" one.value = {json.dumps(text)}; one.dispatchEvent(new Event('input', {{bubbles: true}}));"
            f" one.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
        )

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13, "Space": 32}[key]
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        name = " " if key == "Space" else key
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=key, windowsVirtualKeyCode=code, **more
            )

    # -- what is seen ---------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """All that a person can read."""
        return str(self.run("document.body.innerText"))

    def run(self, script: str) -> Any:
        """The value of an expression of the page."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str, what: str, seconds: float = _SECONDS) -> None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):  # between two pages there is none
                if self.run(script):
                    return
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}\n{self.text[:2000]}"
            time.sleep(0.05)

    def sees(self, text: str) -> None:
        self.until(f"document.body.innerText.includes({json.dumps(text)})", f"{text!r} on the page")

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, *, dark: bool) -> None:
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Of the whole page, or of what the window shows."""
        done = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(done["data"]))

    # -- the protocol -----------------------------------------------------------------------------------------

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        told: dict[str, Any] = self._run(self._call(method, parameters))
        return told

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_SECONDS)

    async def _connect(self) -> None:
        self._session = aiohttp.ClientSession()
        port = await self._port()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            [page] = [one for one in await answer.json() if one["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self._reading = asyncio.create_task(self._read())

    async def _port(self) -> str:
        file = Path(self._profile) / "DevToolsActivePort"
        end = time.monotonic() + _SECONDS
        while not file.exists() or not file.read_text().strip():
            assert time.monotonic() < end, "chromium did not start"
            await asyncio.sleep(0.05)
        return file.read_text().splitlines()[0]

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers[self._number] = answer
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        found = await answer
        assert "error" not in found, f"{method}: {found.get('error')}"
        result: dict[str, Any] = found["result"]
        return result

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.complaints.append(str(told["params"]["entry"]["text"]))
            elif told["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["params"]["exceptionDetails"])[:500])


Open = Callable[[str], Chromium]
