"""The console as it is served: its files, its policy, who may see what, and what it shows of each kind of server."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import pytest

from tests.fleet.backends import Backend, Front, fleet, serving, until
from tests.server.test_roles import CONFIG, KEYS, engine
from weighbridge.cli.serve.simulated import (
    ServedEngine,
    SimulatedMachine,
    SimulatedServer,
    assemble_simulated,
)
from weighbridge.server.console.assets import POLICY, read_assets
from weighbridge.server.console.endpoints import MOST_LINES, queue_lines
from weighbridge.wire.identity import callers

PLACES = """
models: {m: {replicas: [{name: near, url: 'URL', dialect: weighbridge}]}}
routes: {auto: {edge: {model: m}, cloud: {url: 'URL/v1', model: big}, cascade: {enabled: false}}}
"""


async def get(url: str, key: str = "") -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_files_are_served_with_a_policy_and_named_by_what_is_in_them() -> None:
    async with fleet(Backend()) as front:
        for name in ("", *(f"console/{name}" for name in read_assets())):
            async with front.client.get(f"{front.url}/{name}") as answer:
                assert answer.status == 200
                assert answer.headers["content-security-policy"] == POLICY
                assert answer.headers["x-content-type-options"] == "nosniff"
                mark = answer.headers["etag"]
            async with front.client.get(f"{front.url}/{name}", headers={"if-none-match": mark}) as answer:
                assert answer.status == 304
        for name in ("nothing.js", "..%2fassets.py", "%2e%2e%2fassets.py"):
            async with front.client.get(f"{front.url}/console/{name}") as answer:
                assert answer.status == 404


def test_the_policy_lets_no_script_or_style_stand_in_a_page() -> None:
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    for name, asset in read_assets().items():
        text = asset.body.decode()
        if name.endswith(".html"):
            assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|javascript:", text)
        if name.endswith((".html", ".css", ".js")):
            assert not re.search(r"(?:src|href|from|url\(|import)\s*[=(]?\s*[\"']?(?:https?:)?//", text), name


def test_text_becomes_elements_in_one_place_only() -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextual|DOMParser|eval\(|new Function"
    found = {name for name, asset in read_assets().items() if re.search(sinks, asset.body.decode())}
    assert found == {"markup.js"}


def test_every_module_that_is_named_is_there() -> None:
    assets = read_assets()
    for name, asset in assets.items():
        for wanted in re.findall(r'(?:from "\./|href="console/|src="console/)([\w.]+)"', asset.body.decode()):
            assert wanted in assets, (name, wanted)


@pytest.mark.parametrize(
    ("role", "look", "all_", "tickets", "ask", "change"),
    [
        ("none", False, False, False, False, False),
        ("tenant", True, False, True, True, False),
        ("watcher", True, True, True, True, False),
        ("operator", True, True, True, False, True),
    ],
)
async def test_a_session_says_what_is_open_to_whom(
    monkeypatch: pytest.MonkeyPatch, role: str, look: bool, all_: bool, tickets: bool, ask: bool, change: bool
) -> None:
    monkeypatch.setattr(callers, "is_loopback", lambda host: False)
    async with fleet(Backend(), top=CONFIG) as front:
        status, told = await get(f"{front.url}/console/api/session", KEYS.get(role, ""))
        assert status == 200
        may = told["may"]
        assert may == {
            "look": look,
            "see_all": all_,
            "read_tickets": tickets,
            "ask": ask,
            "change": change,
            "see_experts": False,
            "reset": role == "operator",
        }
        assert told["role"] == {"none": "nobody"}.get(role, role)
        assert [one["id"] for one in told["models"]] == (["m", "other"] if ask else [])
        status, _ = await get(f"{front.url}/console/api/now", KEYS.get(role, ""))
        assert status == (200 if look else 401)
        status, _ = await get(f"{front.url}/v1/tickets", KEYS.get(role, ""))
        assert status == (200 if tickets else 401)


async def test_a_wrong_key_is_told_from_none() -> None:
    async with engine() as url:
        assert (await get(f"{url}/console/api/session"))[1]["problem"] == ""
        _, told = await get(f"{url}/console/api/session", "wrong")
        assert told["role"] == "looker"


async def test_tenants_are_shown_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "is_loopback", lambda host: False)
    async with fleet(Backend(), top=CONFIG) as front:
        for role in ("tenant", "watcher"):
            async with front.post(headers={"authorization": f"Bearer {KEYS[role]}"}) as answer:
                assert answer.status == 200
        _, told = await get(f"{front.url}/console/api/now", KEYS["tenant"])
        assert "queue" not in told
        assert "models" not in told["load"]
        assert "output_tokens" not in told["history"]
        tenants = {}
        for role in ("tenant", "watcher", "operator"):
            _, found = await get(f"{front.url}/v1/tickets", KEYS[role])
            tenants[role] = {one["tenant"] for one in found["data"]}
        assert tenants == {
            "tenant": {"tenant"},
            "watcher": {"tenant", "watcher"},
            "operator": {"tenant", "watcher"},
        }
        _, found = await get(f"{front.url}/v1/tickets?tenant=watcher", KEYS["tenant"])
        assert found["data"] == []


async def seconds_of(url: str, wanted: Any, since: int = 0) -> dict[str, Any]:
    """What the console is shown once `wanted` holds of it."""
    while True:
        _, told = await get(f"{url}/console/api/now?since={since}")
        if wanted(told):
            found: dict[str, Any] = told
            return found
        await asyncio.sleep(0.05)


async def test_an_engine_shows_its_iterations_and_its_seconds() -> None:
    simulated = assemble_simulated(SimulatedMachine(time_scale=0.2), ServedEngine(), SimulatedServer())
    body = {"messages": [{"role": "user", "content": "x" * 60}], "max_tokens": 10}
    async with serving(simulated.app, "on") as url, aiohttp.ClientSession() as client:
        async with client.post(f"{url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
        for bad in ({"model": "nobody", **body}, {"messages": 7}):
            async with client.post(f"{url}/v1/chat/completions", json=bad) as answer:
                assert answer.status in (400, 404)
        told = await asyncio.wait_for(seconds_of(url, lambda one: sum(one["history"]["finished"])), 10)
        history, rows = told["history"], told["iterations"]["rows"]
        assert (sum(history["output_tokens"]), sum(history["good"]), sum(history["bad_requests"])) == (
            10,
            1,
            2,
        )
        prompts = [dict(zip(told["iterations"]["fields"], row, strict=True)) for row in rows]
        assert sum(one["prompt_tokens"] for one in prompts) == sum(history["prompt_tokens"])
        assert sum(one["decodes"] for one in prompts) == 9
        _, later = await get(f"{url}/console/api/now?since={history['seconds'][-1]}&iteration={rows[-1][0]}")
        assert later["iterations"]["rows"] == []
        assert len(later["history"]["seconds"]) <= 1
        assert (await get(f"{url}/console/api/now?since=x"))[0] == 400


async def test_a_gateway_shows_who_waits_and_counts_tokens_while_they_stream() -> None:
    gate = asyncio.Event()
    slow = Backend(tokens=6, gate=gate, hold_after=3)
    one_seat = ", capacity: {max_sequences: 1}"
    async with fleet(slow, replica=one_seat) as front:
        asked = [
            asyncio.create_task(front.stream(weighbridge={"tenant": name, "priority": urgency}))
            for name, urgency in (("ann", 0), ("bob", 0), ("bob", 5))
        ]
        await until(lambda: len(queue_of(front)) == 2)
        told = await asyncio.wait_for(
            seconds_of(front.url, lambda one: sum(one["history"]["output_tokens"]) >= 3), 10
        )
        assert [(line["class"], line["requests"]) for line in told["queue"]] == [(0, 1), (5, 1)]
        assert told["load"]["queued_requests"] == 2
        gate.set()
        await asyncio.gather(*asked)
        told = await asyncio.wait_for(
            seconds_of(front.url, lambda one: sum(one["history"]["finished"]) == 3), 10
        )
        assert sum(told["history"]["output_tokens"]) == 18


def queue_of(front: Front) -> Any:
    return front.gateway.pools["m"].dispatcher.queue


async def test_tickets_are_found_by_what_is_known_of_them() -> None:
    async with fleet(Backend("a"), Backend("b", statuses=[500] * 9)) as front:
        for number in range(4):
            async with front.post(weighbridge={"tenant": f"t{number % 2}"}) as answer:
                assert answer.status == 200
        every = (await front.get("/v1/tickets"))["data"]

        async def found(query: str) -> list[str]:
            return [one["id"] for one in (await front.get(f"/v1/tickets?{query}"))["data"]]

        for name, word in (("tenant", "t1"), ("replica", "a"), ("model", "m")):
            place = {"replica": "replica", "model": "model", "tenant": "tenant"}[name]
            assert await found(f"{name}={word}") == [one["id"] for one in every if one[place] == word]
        assert await found(f"search={every[2]['id'][:12]}") == [every[2]["id"]]
        assert await found("outcome=running") == []
        assert len(await found(f"outcome={every[0]['finish_reason']}")) == 4
        slowest = max(one["e2e_ms"] for one in every)
        assert await found(f"slower_ms={slowest + 1}") == []
        assert len(await found("slower_ms=0.001")) == 4
        for bad in ("x", "-1", "nan", "inf"):
            async with front.client.get(f"{front.url}/v1/tickets?slower_ms={bad}") as answer:
                assert answer.status == 400


def test_a_long_queue_is_told_in_few_lines() -> None:
    waiting = {(number % 3, f"t{number}"): (1, number) for number in range(200)}
    lines = queue_lines({**waiting, (1_000_000, "s"): (1, 900), (1000, "b"): (1, 901)})
    assert len(lines) == MOST_LINES + 1
    assert sum(line["tokens"] for line in lines) == sum(range(200)) + 1801
    assert [line["class"] for line in lines[:-1]] == sorted(line["class"] for line in lines[:-1])
    assert {line["kind"] for line in lines} == {"", "batch", "speculative"}


async def test_texts_are_rendered_and_only_texts() -> None:
    async with fleet(Backend()) as front:
        async with front.client.post(f"{front.url}/console/api/markdown", json={"text": "*a* <b>"}) as answer:
            assert await answer.json() == {"html": "<p><em>a</em> &lt;b&gt;</p>\n"}
        for body in (b"", b"{}", b'{"text": 7}', b"[]"):
            async with front.client.post(f"{front.url}/console/api/markdown", data=body) as answer:
                assert answer.status == 400
        async with front.client.post(f"{front.url}/console/api/markdown", data=b"x" * (1 << 20)) as answer:
            assert answer.status == 413


async def test_routes_are_named_as_such() -> None:
    backend = Backend()
    async with serving(backend) as url, fleet(backend, config=PLACES.replace("URL", url)) as front:
        _, told = await get(f"{front.url}/console/api/session")
        assert {one["id"]: one["is_route"] for one in told["models"]} == {"m": False, "auto": True}
        assert told["kind"] == "gateway"
        async with front.post(model="auto") as answer:
            assert answer.status == 200
        _, now = await get(f"{front.url}/console/api/now")
        [route] = now["routes"]
        assert [(place["name"], place["level"], place["requests"]) for place in route["places"]] == [
            ("edge", "edge", 1),
            ("cloud", "cloud", 0),
        ]
        assert route["saved_usd"] >= 0.0
