"""A Chromium without a window, driven by the DevTools protocol: enough of it to look at pages as their readers do."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--no-first-run", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-port=0"),
)


class Tab:
    """One tab. `requests`: the addresses that it asked for. `problems`: what its console and its policy said."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.requests: list[str] = []
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for its answer; what comes in between is noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=90))
            if message.get("id") == self._number:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(
                    str(params["exceptionDetails"].get("exception", params["exceptionDetails"]))
                )
            case "Log.entryAdded":
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Page.javascriptDialogOpening":
                self.problems.append(f"a dialog was opened: {params['message']}")
                self._number += 1
                self._socket.send(
                    json.dumps(
                        {
                            "id": self._number,
                            "method": "Page.handleJavaScriptDialog",
                            "params": {"accept": True},
                        }
                    )
                )

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """What an expression comes to; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str, timeout: float = 20.0) -> None:
        """Wait until an expression holds; fail with what the page says when it does not."""
        deadline = time.monotonic() + timeout
        while not self.run(f"(() => {{ try {{ return !!({script}) }} catch {{ return false }} }})()"):
            assert time.monotonic() < deadline, f"{script}\n{self.text()[:2000]}\n{self.problems}"
            time.sleep(0.05)

    def text(self) -> str:
        return str(self.run("document.body?.innerText"))

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def colours(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str) -> None:
        """A key that is no letter, such as Tab or Enter."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        text = {"Enter": "\r"}.get(key)
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more
            )

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(folder: Path, *options: str) -> Iterator[Tab]:
    """A tab of a fresh browser whose profile is in `folder`, with further `options`, until the block ends."""
    assert PROGRAM is not None
    command = [PROGRAM, *OPTIONS, *options, f"--user-data-dir={folder}", "about:blank"]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with connect(_address(folder), max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _address(folder: Path) -> str:
    """Where the first tab of the browser listens."""
    place, deadline = folder / "DevToolsActivePort", time.monotonic() + 30
    while not (place.exists() and place.read_text().count("\n")):
        assert time.monotonic() < deadline, (folder / "browser.log").read_text()
        time.sleep(0.05)
    port, _ = place.read_text().split("\n", 1)
    with urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
        pages = json.load(answer)
    address = next(one["webSocketDebuggerUrl"] for one in pages if one["type"] == "page")
    assert re.match(r"ws://127\.0\.0\.1:\d+/", address)
    return str(address)
