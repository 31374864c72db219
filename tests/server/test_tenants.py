"""Tenants at a real engine: who sends thousands of prompts keeps nobody else from being answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fleet.backends import clients, fleet, until
from tests.server.running import serving

TEXT = "/v1/completions"
ENDLESS = {"ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def narrow(tiny_model: Path) -> Iterator[str]:
    """A server with two seats, which asks for keys."""
    options = ["--max-sequences", "2", "--tenant-patience", "0.05", "--max-queue", "2100"]
    options += ["--tenant-priority", "a=-3"]
    with serving(tiny_model, *options, "--api-key", "a=key-of-a", "--api-key", "b=key-of-b") as (url, _):
        yield url


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with clients() as session:
        yield session


def key(tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-{tenant}"}


async def post(client: aiohttp.ClientSession, url: str, tenant: str, **fields: Any) -> tuple[int, Any, str]:
    body = {"model": "tiny", **ENDLESS, **fields}
    async with client.post(url + TEXT, json=body, headers=key(tenant)) as answer:
        return answer.status, await answer.json(), answer.headers.get("x-weighbridge-ticket", "")


async def ticket(client: aiohttp.ClientSession, url: str, tenant: str, name: str) -> dict[str, Any]:
    async with client.get(f"{url}/v1/tickets/{name}", headers=key(tenant)) as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def test_a_tenant_that_holds_all_seats_gives_one_up(narrow: str, client: aiohttp.ClientSession) -> None:
    alone = await post(client, narrow, "a", prompt="a long story", max_tokens=900)
    both = [
        asyncio.create_task(post(client, narrow, "a", prompt="a long story", max_tokens=900)) for _ in "12"
    ]
    await running(client, narrow, 2)
    status, _, name = await post(client, narrow, "b", prompt="in between", max_tokens=4)
    assert status == 200
    stories = await asyncio.gather(*both)
    assert [story[1]["choices"][0]["text"] for story in stories] == [alone[1]["choices"][0]["text"]] * 2
    theirs = [await ticket(client, narrow, "a", story[2]) for story in stories]
    ours = await ticket(client, narrow, "b", name)
    assert ours["finished"] < min(one["finished"] for one in theirs)
    assert sum(one["preemptions"] for one in theirs) == 1


@pytest.mark.parametrize("floods", [2, 4])
async def test_one_of_several_floods_that_fit_is_let_in_and_all_of_it(
    narrow: str, client: aiohttp.ClientSession, floods: int
) -> None:
    """They are queued a few prompts at a time: each used to fill the line for the other, and none got in."""
    flood = {"prompt": ["again and again"] * 1300, "max_tokens": 64}
    sent = [asyncio.create_task(post(client, narrow, "a", **flood)) for _ in range(floods)]
    pending = set(sent)
    while len(pending) > 1:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            assert (one.result()[0], one.result()[1]["error"]["code"]) == (429, "queue_full")
            assert "1300 requests" in one.result()[1]["error"]["message"]
    await told(client, narrow, lambda load: load["queued_requests"] > 1200)
    assert not any(one.done() for one in pending)
    await cut(pending, client, narrow)


async def test_more_prompts_than_may_ever_wait_are_refused_in_a_sentence(
    narrow: str, client: aiohttp.ClientSession
) -> None:
    status, answer, _ = await post(client, narrow, "a", prompt=["again"] * 1100, n=2, max_tokens=1)
    assert status == 400
    assert "2200 requests" in answer["error"]["message"]
    assert "--max-queue" in answer["error"]["message"]


async def test_thousands_of_prompts_leave_room_in_the_line(
    narrow: str, client: aiohttp.ClientSession
) -> None:
    flood = {"prompt": ["again and again"] * 2048, "max_tokens": 64}
    floods = [asyncio.create_task(post(client, narrow, "a", **flood)) for _ in "12"]
    done, _ = await asyncio.wait(floods, return_when=asyncio.FIRST_COMPLETED)
    refused = done.pop().result()  # the line takes 2,100, so one of the two finds no room
    assert (refused[0], refused[1]["error"]["code"]) == (429, "queue_full")
    answers = await asyncio.gather(
        *(post(client, narrow, "b", prompt=f"a short one {i}", max_tokens=2) for i in range(60))
    )
    assert [status for status, _, _ in answers] == [200] * 60
    assert any(not one.done() for one in floods)
    await cut(floods, client, narrow)


GATEWAY = """
health: {{slow_start: 0}}
models:
  tiny:
    replicas: [{{name: engine, url: "{url}", dialect: weighbridge, model: tiny{more}}}]
tenants: {{a: {{key: key-of-a}}, b: {{key: key-of-b}}}}
"""


FRONT = ["--api-key", "front=key-of-front", "--gateway", "front"]


@pytest.mark.parametrize("keyed", [False, True], ids=["no key", "a gateway's key"])
async def test_a_gateway_sends_a_tenant_on_that_waits_behind_all_seats(tiny_model: Path, keyed: bool) -> None:
    seats = ", capacity: {max_sequences: 2}" + (", key: key-of-front" if keyed else "")
    options = ["--max-sequences", "2", "--tenant-patience", "0.05", *(FRONT if keyed else [])]
    with serving(tiny_model, *options) as (url, _):
        async with fleet(config=GATEWAY.format(url=url, more=seats), wait=False) as front:
            await until(lambda: front.gateway.member("engine")[1].last_report is not None)
            queue = front.gateway.pools["tiny"].dispatcher.queue
            queue.settings = replace(queue.settings, tenant_patience=0.05)
            long = {"prompt": "a long story", "max_tokens": 900}
            flood = [asyncio.create_task(post(front.client, front.url, "a", **long)) for _ in range(4)]
            await running(front.client, url, 2)
            status, _, name = await post(front.client, front.url, "b", prompt="in between", max_tokens=4)
            ours = await ticket(front.client, front.url, "b", name)
            stories = await asyncio.gather(*flood)
            theirs = [await ticket(front.client, front.url, "a", story[2]) for story in stories]
            assert [status, *(story[0] for story in stories)] == [200] * 5
            assert ours["finished"] < min(one["finished"] for one in theirs)


@pytest.mark.parametrize(("told", "tenants"), [([], ["front"]), (["--gateway", "front"], ["a", "b"])])
async def test_a_replica_shares_its_seats_among_whom_a_gateway_speaks_for(
    tiny_model: Path, told: list[str], tenants: list[str]
) -> None:
    """The gateway does not know how few seats there are, so that all of a heavy tenant's requests are at the replica.

    One that takes the gateway for one tenant lets the light tenant wait for all of them.
    """
    options = ["--max-sequences", "2", "--tenant-patience", "0.05", "--api-key", "front=key-of-front", *told]
    with serving(tiny_model, *options) as (url, _):
        config = GATEWAY.format(url=url, more=", key: key-of-front")
        async with fleet(config=config, wait=False) as front:
            await until(lambda: front.gateway.member("engine")[1].last_report is not None)
            long = {"prompt": "a long story", "max_tokens": 900}
            flood = [asyncio.create_task(post(front.client, front.url, "a", **long)) for _ in range(6)]
            await running(front.client, url, 2)
            status, _, name = await post(front.client, front.url, "b", prompt="in between", max_tokens=4)
            ours = await ticket(front.client, front.url, "b", name)
            stories = await asyncio.gather(*flood)
            theirs = [(await ticket(front.client, front.url, "a", one[2]))["finished"] for one in stories]
        assert [status, *(one[0] for one in stories)] == [200] * 7
        first = sum(ours["finished"] > one for one in theirs)
        assert first == 0 if told else first >= 4
        seen = await tickets_of(url, tenants)
        assert seen == dict(zip(tenants, [6, 1] if told else [7], strict=True))


async def tickets_of(url: str, tenants: list[str]) -> dict[str, int]:
    """How many tickets the replica wrote for each tenant, as the gateway's key sees them."""
    found = {}
    async with clients() as client:
        for tenant in tenants:
            headers = {"Authorization": "Bearer key-of-front", "x-weighbridge-tenant": tenant}
            async with client.get(f"{url}/v1/tickets", headers=headers) as answer:
                found[tenant] = len((await answer.json())["data"])
    return found


async def test_nobody_is_more_urgent_than_the_operator_allows(
    narrow: str, client: aiohttp.ClientSession
) -> None:
    for tenant, asked, has in (("a", -10, -3), ("a", -2, -2), ("b", -10, 0), ("b", 7, 7), ("b", 5000, 1000)):
        wanted = {"prompt": "who goes first", "max_tokens": 1, "weighbridge": {"priority": asked}}
        _, _, name = await post(client, narrow, tenant, **wanted)
        assert (await ticket(client, narrow, tenant, name))["priority"] == has


async def cut(floods: Iterable[asyncio.Task[Any]], client: aiohttp.ClientSession, url: str) -> None:
    """Cancel what is under way, and wait until the engine is rid of it."""
    for one in floods:
        one.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    await running(client, url, 0)


async def running(client: aiohttp.ClientSession, url: str, count: int) -> None:
    """Wait until so many requests run there."""
    await told(client, url, lambda load: load["running_requests"] == count)


async def told(client: aiohttp.ClientSession, url: str, enough: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until a server tells enough of its load."""
    async with asyncio.timeout(60):
        while True:
            async with client.get(f"{url}/v1/load") as answer:
                if enough(await answer.json()):
                    return
            await asyncio.sleep(0.01)
