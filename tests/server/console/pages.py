"""Servers of every kind with a console, and what tests do on its pages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.fleet.backends import Backend, fleet, serving
from tests.server.console.chromium import Tab
from weighbridge.cli.serve.simulated import (
    ServedEngine,
    SimulatedMachine,
    SimulatedServer,
    assemble_simulated,
)

PAGES = ("now", "tickets", "chat", "what if", "plan")
ROUTES = """
routes: {auto: {edge: {url: 'URL/v1', model: m}, cloud: {url: 'URL/v1', model: big}, cascade: {enabled: false}}}
"""


@asynccontextmanager
async def simulated(**server: Any) -> AsyncIterator[str]:
    machine = SimulatedMachine(output_length="60", time_scale=0.5)
    made = assemble_simulated(machine, ServedEngine(max_model_len=2048), SimulatedServer(**server))
    async with serving(made.app, "on") as url:
        yield url


@asynccontextmanager
async def gateway(count: int = 1, top: str = "", **behaves: Any) -> AsyncIterator[str]:
    async with fleet(*(Backend(f"replica-{number}", **behaves) for number in range(count)), top=top) as front:
        yield front.url


@asynccontextmanager
async def routes(top: str = "") -> AsyncIterator[str]:
    backend = Backend()
    async with serving(backend) as url, fleet(config=top + ROUTES.replace("URL", url)) as front:
        yield front.url


KINDS: dict[str, Callable[..., AbstractAsyncContextManager[str]]] = {
    "engine": simulated,
    "gateway": gateway,
    "routes": routes,
}
#: What clients ask each of them for.
MODELS = {"engine": "simulated", "gateway": "m", "routes": "auto"}


def status_of(url: str, model: str, key: str = "", **more: Any) -> int:
    """What a chat is answered, streamed unless it is said otherwise."""
    body = {"model": model, "stream": True, "max_tokens": 12, "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body | more).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@contextmanager
def busy(url: str, model: str, key: str = "", clients: int = 4) -> Iterator[None]:
    """Clients that ask one thing after the other, until the block ends; by then some have been answered."""
    ended, answered = threading.Event(), threading.Event()

    def ask() -> None:
        while not ended.is_set():
            if status_of(url, model, key) == 200:
                answered.set()
            ended.wait(0.05)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for one in threads:
        one.start()
    try:
        assert answered.wait(60), "nobody was answered"
        yield
    finally:
        ended.set()
        for one in threads:
            one.join(60)


def shows(tab: Tab, url: str, page: str) -> None:
    tab.go(f"{url}/#{page.replace(' ', '')}")
    tab.until(
        "document.querySelector('nav a[aria-current]')?.textContent.toLowerCase() === " + json.dumps(page)
    )
    tab.until("document.querySelector('#main').children.length > 0")


def asked_elsewhere(tab: Tab, url: str) -> list[str]:
    here = urlsplit(url).netloc
    return [one for one in tab.requests if urlsplit(one).netloc not in ("", here)]


def say(tab: Tab, text: str) -> None:
    tab.until("document.querySelector('.compose textarea')")
    tab.run("document.querySelector('.compose textarea').focus()")
    tab.type(text)
    tab.press("Enter")


def serious(tab: Tab) -> list[Any]:
    """What axe-core finds on the page as it stands that shuts somebody out: rule, impact, the first element."""
    if not tab.run("!!window.axe"):
        tab.run(axe_core())
    found = tab.run(
        "axe.run().then(told => told.violations.map(one => [one.id, one.impact, one.nodes[0].html]))"
    )
    return [one for one in found if one[1] in ("serious", "critical")]


@cache
def axe_core() -> str:
    """The source of axe-core: a copy that AXE_CORE names, or npm's; skips the test where there is neither."""
    given = os.environ.get("AXE_CORE")
    if given:
        return Path(given).read_text(encoding="utf-8")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm to bring axe-core")
    with TemporaryDirectory() as folder:
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", folder, "axe-core"]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("npm could not bring axe-core")
        return Path(folder, "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
