"""Every page of the console in a real browser, over real servers: what it shows, runs and asks, and how it is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.doors.doors import Loop
from tests.models.tiny_moe import make_tiny_moe
from tests.server.console.chromium import PROGRAM, Tab
from tests.server.console.hostile import TEXTS
from tests.server.console.pages import KINDS, PAGES, asked_elsewhere, gateway, say, shows, simulated
from tests.server.running import free_port, running, serving, wait_until_ready
from tests.server.test_roles import CONFIG, KEYS
from weighbridge.wire.identity import callers

pytestmark = [pytest.mark.proof, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_shows_every_kind_of_server_and_asks_nobody_else(kind: str, tab: Tab) -> None:
    with Loop(KINDS[kind]()) as url:
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light")):
            tab.size(width, 844, phone=width < 700)
            tab.colours(scheme)
            for page in PAGES:
                shows(tab, url, page)
                assert tab.run("document.documentElement.scrollWidth") <= width, (page, width)
        tab.until("document.querySelector('#pulse').classList.contains('ok')")
        assert tab.problems == []
        assert asked_elsewhere(tab, url) == []


def test_a_chat_is_answered_stopped_changed_asked_again_and_kept(tab: Tab) -> None:
    with Loop(simulated()) as url:
        shows(tab, url, "chat")
        say(tab, "Tell me *something*")
        tab.until("document.querySelector('.compose button').textContent === 'Stop'")
        tab.until("document.querySelector('.figures')?.textContent.includes('tok/s')")
        assert "60 tokens" in tab.text()
        answer = "document.querySelectorAll('article.turn').length"
        say(tab, "And more")
        tab.until(f"{answer} === 2 && document.querySelectorAll('article .tail')[1].textContent")
        tab.run("document.querySelector('.compose button').click()")
        tab.until("document.body.innerText.includes('stopped')")
        tab.run(
            "[...document.querySelectorAll('button')].filter(one => one.textContent === 'Regenerate')[0].click()"
        )
        tab.until(f"{answer} === 1 && document.querySelectorAll('.figures').length === 1")
        tab.run("[...document.querySelectorAll('button')].find(one => one.textContent === 'Edit').click()")
        tab.run("document.querySelector('.turn textarea').value = 'Something else'")
        tab.run(
            "[...document.querySelectorAll('button')].find(one => one.textContent === 'Send again').click()"
        )
        tab.until(
            "document.querySelector('.turn.user .said')?.textContent === 'Something else'"
            " && document.querySelector('.figures')"
        )
        tab.call("Page.reload")
        tab.until("document.querySelector('aside li a')")
        tab.run("document.querySelector('aside li a').click()")
        tab.until("document.querySelector('.turn.user .said')?.textContent === 'Something else'")
        tab.run("[...document.querySelectorAll('a')].find(one => one.textContent === 'Ticket').click()")
        tab.until(
            "document.body.innerText.includes('Where its time went')"
            " && document.querySelectorAll('.track i').length >= 2"
        )
        assert tab.problems == []


def test_a_message_that_was_refused_spoils_no_other(tab: Tab) -> None:
    with Loop(simulated()) as url:
        shows(tab, url, "chat")
        say(tab, "x" * 9000)
        tab.until("document.querySelector('.turn .error')?.textContent.includes('context')")
        say(tab, "short")
        tab.until(
            "document.querySelectorAll('.figures').length === 2 && document.body.innerText.includes('tok/s')"
        )


def test_hostile_texts_run_nothing_ask_nobody_and_style_nothing(tab: Tab) -> None:
    """As the server renders them; and as they are, as if it did not, past the page's own list of elements."""
    with Loop(gateway()) as url:
        shows(tab, url, "chat")
        for raw in (False, True):
            ran = tab.run(
                "(async () => { const { fill } = await import('/console/markup.js');"
                f"for (const text of {json.dumps(TEXTS)}) {{ const place = document.createElement('div');"
                "document.querySelector('#main').append(place);"
                f"fill(place, {json.dumps(raw)} ? text : (await (await fetch('/console/api/markdown', {{method: 'POST',"
                "headers: {'content-type': 'application/json'}, body: JSON.stringify({text})})).json()).html);"
                "for (const one of place.querySelectorAll('*')) { one.click?.(); one.focus?.(); } }"
                "await new Promise(after => setTimeout(after, 500));"
                "return [window.ran ?? null, document.querySelectorAll('#main script, #main iframe, #main img').length,"
                "location.origin] })()"
            )
            assert ran == [None, 0, url], raw
        assert not [one for one in tab.problems if "dialog" in one]
        assert asked_elsewhere(tab, url) == []


def test_whoever_comes_from_afar_signs_in_with_the_keyboard_alone(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "is_loopback", lambda host: False)
    with Loop(gateway(top=CONFIG)) as url:
        tab.go(f"{url}/")
        tab.until("document.body.innerText.includes('Sign in to look')")
        tab.run("document.querySelector('#sign').focus()")
        tab.press("Enter")
        tab.until("document.querySelector('dialog input') === document.activeElement")
        tab.type("a wrong key")
        tab.press("Enter")
        tab.until("document.querySelector('dialog .error:not([hidden])')")
        tab.run("document.querySelector('dialog input').value = ''")
        tab.run("document.querySelector('dialog input').focus()")
        tab.type(KEYS["tenant"])
        tab.press("Enter")
        tab.until("document.querySelector('nav a[aria-current]')?.textContent === 'Now'")
        assert tab.run("Object.values({...sessionStorage}).length") == 1
        assert KEYS["tenant"] not in tab.run(
            "location.href + JSON.stringify({...localStorage}) + document.cookie"
        )
        assert tab.run("[...document.querySelectorAll('nav a')].map(one => one.textContent)") == [
            "Now",
            "Tickets",
            "Chat",
            "Plan",
        ]
        tab.run("document.querySelector('#sign').click()")
        tab.until("document.body.innerText.includes('Sign in to look')")
        tab.go(f"{url}/?key={KEYS['watcher']}#now")
        tab.until("document.body.innerText.includes('Replicas')")
        assert "key=" not in tab.run("location.href")


def test_a_page_that_lost_its_server_says_so_and_is_well_when_it_is_back(tab: Tab) -> None:
    port = free_port()
    command = [sys.executable, "-m", "weighbridge", "replica", "--simulated", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, 15) as process:
        wait_until_ready(url, process)
        shows(tab, url, "now")
        tab.until("document.querySelector('#pulse').textContent === 'live'")
        process.kill()
        process.wait()
        tab.until("document.body.classList.contains('stale') && !document.querySelector('#banner').hidden")
        assert "does not answer" in tab.text()
    with running(command, 15) as process:
        wait_until_ready(url, process)
        tab.until("!document.body.classList.contains('stale')")


def test_fifty_replicas_are_on_one_screen_and_can_be_found(tab: Tab) -> None:
    with Loop(gateway(50)) as url:
        tab.size(1440, 1000)
        shows(tab, url, "now")
        tab.until("document.querySelectorAll('.map li').length === 50")
        assert tab.run("document.querySelector('.map').getBoundingClientRect().bottom") < 1000
        tab.run(
            "(() => { const one = document.querySelector('input[type=search]'); one.value = 'replica-17';"
            "one.dispatchEvent(new Event('input')) })()"
        )
        assert tab.run("document.querySelectorAll('.map li').length") == 1


def test_an_operator_adds_drains_and_removes_replicas_and_sees_what_was_changed(tab: Tab) -> None:
    def press(words: str, where: str = "document") -> None:
        tab.until(
            f"[...{where}.querySelectorAll('button')].some(one => one.textContent === {json.dumps(words)})"
        )
        tab.run(
            f"[...{where}.querySelectorAll('button')].find(one => one.textContent === {json.dumps(words)}).click()"
        )

    with Loop(gateway(2, top=CONFIG)) as url:
        tab.go(f"{url}/?key={KEYS['operator']}#fleet")
        tab.until("document.querySelectorAll('main tbody tr').length === 2")
        press("Drain")
        tab.until("document.querySelector('main .tag.warn')?.textContent === 'draining'")
        tab.until("document.body.innerText.includes('drain replica-')")
        press("Add a replica")
        tab.until("document.querySelector('dialog input[type=url]') === document.activeElement")
        tab.type(f"{url}")
        tab.press("Enter")
        tab.until("document.body.innerText.includes('is added; it gets requests once it answers')")
        tab.until("document.querySelectorAll('section[aria-label=Replicas] tbody tr').length === 3")
        press(
            "Remove", "[...document.querySelectorAll('main tr')].find(one => one.innerText.includes('added'))"
        )
        tab.until("document.querySelector('dialog')")
        press("Remove", "document.querySelector('dialog')")
        tab.until("document.querySelectorAll('section[aria-label=Replicas] tbody tr').length === 2")
        tab.until("document.body.innerText.includes('remove m-added')")
        assert not [one for one in tab.problems if "favicon" not in one]
        assert asked_elsewhere(tab, url) == []


def test_an_operator_gives_a_tenant_a_key_and_limits_and_takes_the_key_back(tab: Tab) -> None:
    def press(words: str, where: str = "document") -> None:
        found = (
            f"[...{where}.querySelectorAll('button')].find(one => one.textContent === {json.dumps(words)})"
        )
        tab.until(found)
        tab.run(f"{found}.click()")

    bobs = (
        "[...document.querySelectorAll('[aria-label=Tenants] tr')].find(one => one.innerText.includes('bob'))"
    )
    with Loop(gateway(top=CONFIG)) as url:
        tab.go(f"{url}/?key={KEYS['operator']}#fleet")
        press("New tenant")
        tab.until("document.querySelector('dialog input') === document.activeElement")
        tab.type("bob")
        tab.press("Enter")
        tab.until("document.body.innerText.includes('A key for bob')")
        key = tab.run("document.querySelector('dialog input[readonly]').value")
        press("I have it")
        tab.until(f"!document.querySelector('dialog') && {bobs}")
        assert key not in tab.run("document.body.innerHTML")
        press("Limits", bobs)
        tab.until("document.querySelector('dialog input') === document.activeElement")
        tab.type("7")
        tab.press("Enter")
        tab.until(f"{bobs}?.innerText.includes('0 of 7 requests')")
        assert status_with(url, key) == 200
        press("Revoke", bobs)
        tab.until("document.querySelector('dialog')")
        press("Revoke", "document.querySelector('dialog')")
        tab.until("document.body.innerText.includes('revoke key of tenant bob')")
        assert status_with(url, key) == 401
        tab.size(390, 844, phone=True)
        assert tab.run("document.documentElement.scrollWidth") <= 390
        assert not [one for one in tab.problems if "favicon" not in one]
        assert asked_elsewhere(tab, url) == []


def status_with(url: str, key: str) -> int:
    """What a chat with a key is answered."""
    request = Request(
        f"{url}/v1/chat/completions",
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_what_if_and_plan_answer_with_charts_by_keyboard_alone(tab: Tab) -> None:
    with Loop(simulated()) as url:
        shows(tab, url, "chat")
        for number in range(5):
            say(tab, f"question {number}")
            tab.until(f"document.querySelectorAll('.figures').length === {number + 1}")
        shows(tab, url, "what if")
        tab.run("document.querySelector('form.ask input').focus()")
        tab.press("Enter")
        tab.until("document.querySelectorAll('[aria-label=Answer] tbody tr').length > 10", 60)
        tab.until("document.querySelectorAll('.chart path').length === 2")
        assert "1 replica and 2" in tab.text()
        shows(tab, url, "plan")
        tab.until("document.querySelectorAll('#plan-models option').length", 60)
        for place, word in enumerate(("qwen3-8b", "H100-80GB")):
            tab.run(f"document.querySelectorAll('form.ask input')[{place}].focus()")
            tab.type(word)
        tab.press("Enter")
        tab.until("document.body.innerText.includes('It fits.')", 60)
        tab.until("document.querySelectorAll('.chart path').length === 2")
        assert tab.problems == []
        assert asked_elsewhere(tab, url) == []


def test_experts_are_a_map_that_is_walked_with_the_keys(tab: Tab, tmp_path: Path) -> None:
    model = make_tiny_moe("qwen3-moe", tmp_path / "moe")
    with serving(model) as (url, _):
        shows(tab, url, "chat")
        say(tab, "hello")
        tab.until("document.querySelector('.figures')?.textContent.includes('tok')")
        shows(tab, url, "experts")
        tab.until("document.querySelectorAll('svg.heat rect').length > 64")
        tab.run("document.querySelector('svg.heat').focus()")
        before = tab.run("document.querySelector('.heat .here').getAttribute('x')")
        tab.run(
            "document.querySelector('svg.heat').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
        )
        assert tab.run("document.querySelector('.heat .here').getAttribute('x')") != before
        assert "expert 1:" in tab.text()
        tab.picture(tmp_path / "experts.png")
        assert tab.problems == []


def test_refusals_are_counted_and_found_among_the_tickets(tab: Tab) -> None:
    limited = "limits: {requests_per_minute: 2}"
    with Loop(gateway(top=limited)) as url:
        shows(tab, url, "chat")
        for number in range(3):
            say(tab, f"question {number}")
            tab.until(f"document.querySelectorAll('.figures').length === {number + 1}")
        tab.until("document.querySelector('.turn .error')?.textContent.includes('requests_per_minute')")
        shows(tab, url, "now")
        tab.until("[...document.querySelectorAll('.tile')].some(one => /Refused\\s*1/.test(one.innerText))")
        shows(tab, url, "tickets")
        tab.until("document.querySelectorAll('tbody tr').length === 3")
        tab.run(
            "(() => { const one = document.querySelector('.filters select'); one.value = 'refused';"
            "one.dispatchEvent(new Event('input', {bubbles: true})) })()"
        )
        tab.until("document.querySelectorAll('tbody tr').length === 1")
        tab.run("document.querySelector('tbody a').click()")
        tab.until("document.body.innerText.includes('requests_per_minute')")
