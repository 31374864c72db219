"""Every page in every state of a server, wide and on a phone, light and dark: it fits, and shuts nobody out."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.doors.doors import Loop
from tests.models.tiny_moe import make_tiny_moe
from tests.server.console.chromium import PROGRAM, Tab
from tests.server.console.pages import (
    KINDS,
    MODELS,
    asked_elsewhere,
    busy,
    gateway,
    serious,
    simulated,
    status_of,
)
from tests.server.running import serving
from tests.server.test_roles import CONFIG, KEYS
from weighbridge.secret import Secret
from weighbridge.wire.identity import callers
from weighbridge.wire.keys import ApiKey

pytestmark = [pytest.mark.proof, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")]

#: Widths and heights, and colours, that each page is looked at in.
VIEWS = [(size, scheme) for size in ((1280, 900), (390, 844)) for scheme in ("light", "dark")]
PHONE = 700
#: What a page that anybody may open is called in the address.
OPEN = ["#now", "#tickets", "#chat", "#whatif", "#plan"]
#: A server of each kind that asks for keys.
KEYED: dict[str, Callable[[], AbstractAsyncContextManager[str]]] = {
    "engine": lambda: simulated(
        api_keys=(ApiKey("tenant", Secret(KEYS["tenant"])),), admin_key=Secret(KEYS["operator"])
    ),
    "gateway": lambda: gateway(2, top=CONFIG),
}
#: The pages that a role is offered there.
MAY = {
    ("engine", "tenant"): ["#now", "#tickets", "#chat", "#plan"],
    ("engine", "operator"): ["#now", "#tickets", "#whatif", "#plan"],
    ("gateway", "tenant"): ["#now", "#tickets", "#chat", "#plan"],
    ("gateway", "watcher"): OPEN,
    ("gateway", "operator"): ["#now", "#tickets", "#fleet", "#whatif", "#plan"],
}


def begin(tab: Tab, url: str, key: str = "") -> list[str]:
    """Open the console; the pages that are offered."""
    tab.go(f"{url}/?key={key}" if key else f"{url}/")
    tab.until(
        "document.querySelector('nav a[aria-current]') && document.querySelector('#main').children.length"
    )
    found: list[str] = tab.run("[...document.querySelectorAll('nav a')].map(one => one.getAttribute('href'))")
    return found


def go(tab: Tab, page: str) -> None:
    """Another page of the console, as a link would bring it."""
    tab.run(f"location.hash = {json.dumps(page)}")
    shown = page.split("/")[0]
    tab.until(f"document.querySelector('nav a[aria-current]')?.getAttribute('href') === {json.dumps(shown)}")
    tab.until("document.querySelector('#main').children.length > 0")


def look(tab: Tab, *pages: str) -> None:
    """Look at pages in every view."""
    for page in pages:
        go(tab, page)
        for (width, height), scheme in VIEWS:
            tab.size(width, height, phone=width < PHONE)
            tab.colours(scheme)
            assert tab.run("document.documentElement.scrollWidth") <= width, (page, width)
            assert serious(tab) == [], (page, width, scheme)


def newest(tab: Tab, url: str) -> str:
    """The page of the newest ticket that has ended."""
    asked = "fetch('/v1/tickets?limit=50', {headers: sessionStorage['weighbridge.key'] ? {authorization: "
    asked += "`Bearer ${sessionStorage['weighbridge.key']}`} : {}}).then(one => one.json())"
    found: list[dict[str, Any]] = tab.run(asked)["data"]
    return "#tickets/" + next(one["id"] for one in found if one["finished"] is not None)


def well(tab: Tab, url: str, *, but: str = "Failed to load resource") -> None:
    """Nothing went wrong in the browser, and nobody else was asked. `but`: words of what may have."""
    assert [one for one in tab.problems if but not in one] == []
    assert asked_elsewhere(tab, url) == []


@pytest.mark.parametrize("kind", KINDS)
def test_idle(kind: str, tab: Tab) -> None:
    with Loop(KINDS[kind]()) as url:
        assert begin(tab, url) == OPEN
        look(tab, *OPEN)
        go(tab, "#now")
        tab.until("document.body.innerText.includes('Nobody waits.')")
        go(tab, "#tickets")
        tab.until("document.body.innerText.includes('No request has come yet.')")
        well(tab, url, but="never")


@pytest.mark.parametrize("kind", KINDS)
def test_loaded(kind: str, tab: Tab) -> None:
    with Loop(KINDS[kind]()) as url, busy(url, MODELS[kind]):
        begin(tab, url)
        tab.until(
            "[...document.querySelectorAll('.tile')].some(one => /Output\\s*[1-9]/.test(one.innerText))"
        )
        look(tab, *OPEN, newest(tab, url))
        go(tab, "#tickets")
        tab.until("document.querySelectorAll('tbody tr.linked').length > 3")
        well(tab, url, but="never")


@pytest.mark.parametrize("kind", ["gateway", "routes"])
def test_refused(kind: str, tab: Tab) -> None:
    with Loop(KINDS[kind](top="limits: {requests_per_minute: 2}\n")) as url:
        assert [status_of(url, MODELS[kind]) for _ in range(6)].count(429) == 4
        begin(tab, url)
        tab.until("[...document.querySelectorAll('.tile')].some(one => /Refused\\s*4/.test(one.innerText))")
        look(tab, *OPEN, newest(tab, url))
        assert tab.run("!!document.querySelector('main .error')")
        well(tab, url, but="never")


def test_refused_by_an_engine(tab: Tab) -> None:
    with Loop(simulated()) as url:
        late = {"weighbridge": {"deadline_ms": 1}, "max_tokens": 500}
        assert {status_of(url, MODELS["engine"], **late) for _ in range(4)} == {504}
        begin(tab, url)
        tab.until("[...document.querySelectorAll('.tile')].some(one => /Refused\\s*4/.test(one.innerText))")
        look(tab, *OPEN)
        well(tab, url, but="never")


@pytest.mark.parametrize(("kind", "role"), MAY)
def test_keys_on(kind: str, role: str, tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    """From afar: who is on this machine sees what is of everybody."""
    monkeypatch.setattr(callers, "is_loopback", lambda host: False)
    with Loop(KEYED[kind]()) as url:
        assert status_of(url, MODELS[kind], KEYS["tenant"]) == 200
        assert begin(tab, url, KEYS[role]) == MAY[kind, role]
        look(tab, *MAY[kind, role], newest(tab, url))
        well(tab, url, but="never")


@pytest.mark.parametrize("kind", KINDS)
def test_server_gone(kind: str, tab: Tab) -> None:
    with Loop(KINDS[kind]()) as url:
        assert status_of(url, MODELS[kind]) == 200
        begin(tab, url)
        tab.until("document.querySelector('#pulse').textContent === 'live'")
        ticket = newest(tab, url)
    tab.until("document.body.classList.contains('stale')")
    for page in (*OPEN, ticket):
        look(tab, page)
        assert "does not answer" in tab.run("document.querySelector('#banner:not([hidden])').textContent")
        assert tab.run("getComputedStyle(document.querySelector('main')).filter") == "grayscale(1)"
    assert not [one for one in tab.problems if "Uncaught" in one or "TypeError" in one], tab.problems


@pytest.mark.parametrize("role", ["anyone", "operator"])
def test_fifty_replicas(role: str, tab: Tab) -> None:
    keyed = role == "operator"
    with Loop(gateway(50, top=CONFIG if keyed else "")) as url:
        key = KEYS["tenant"] if keyed else ""
        assert {status_of(url, "m", key) for _ in range(5)} == {200}
        pages = begin(tab, url, KEYS["operator"] if keyed else "")
        tab.until("document.querySelectorAll('.map li').length === 50")
        look(tab, *pages, newest(tab, url))
        if keyed:
            go(tab, "#fleet")
            tab.until("document.querySelectorAll('section[aria-label=Replicas] tbody tr').length === 50")
        well(tab, url, but="never")


def test_experts(tab: Tab, tmp_path: Path) -> None:
    with serving(make_tiny_moe("qwen3-moe", tmp_path / "moe")) as (url, _):
        assert "#experts" in begin(tab, url)
        look(tab, "#experts")
        assert status_of(url, "tiny") == 200
        go(tab, "#now")
        go(tab, "#experts")
        tab.until("document.querySelectorAll('svg.heat rect').length > 64")
        look(tab, "#experts")
        well(tab, url, but="never")
