"""The chat step over real sockets: streams, tools, money, cancellation, bets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flow.llm.fake_openai import called, openai, said, used
from tests.server.running import serving
from tests.tiny import make_tiny
from weighbridge.cost.price import Price
from weighbridge.errors import BadInput
from weighbridge.flow import Budget, first, flow, guess, llm, step
from weighbridge.flow.llm.client import ChatClient, ChatEndpoint, LlmError


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = make_tiny("llama", tmp_path_factory.mktemp("flow") / "tiny")
    with serving(model, "--kv-cache-memory", "4MiB") as (url, _):
        yield url


async def test_text_usage_and_price() -> None:
    async with openai(lambda body, n: [said("Hel"), said("lo"), used(100, 20, 40)]) as (url, seen):
        ask = llm(url, "m", price=Price(1.0, 10.0, 0.5), temperature=0.5)

        @flow
        async def body() -> str:
            return await ask.text("Hi", max_tokens=7)

        assert await body() == "Hello"
        assert body.last is not None
        assert body.last.usd == pytest.approx((60 * 1.0 + 40 * 0.5 + 20 * 10.0) / 1e6)
        request = seen.requests[0]
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.5, 7)
        assert request["messages"] == [{"role": "user", "content": "Hi"}]
        assert "x-weighbridge-speculative" not in seen.headers[0]
        assert (await ask("Hi")).text == "Hello", "outside a flow it is an ordinary coroutine"


async def test_a_tool_starts_when_its_arguments_close() -> None:
    looked: list[str] = []
    started = asyncio.Event()
    wrote: list[str] = []

    @step(effect="read")
    async def look(key: str, depth: int = 1) -> str:
        """Look a key up."""
        looked.append(key)
        started.set()
        return f"{key} found"

    @step
    async def save(text: str) -> str:
        wrote.append(text)
        return "saved"

    chunks: list[Any] = [
        called(0, "", "look"),
        called(0, '{"key": "a}'),
        called(0, '"}'),
        called(1, '{"text": "x"}', "save"),
        started,  # the rest of the answer comes when the tool has started
        said("done"),
    ]
    async with openai(lambda body, n: chunks) as (url, seen):
        ask = llm(url)

        @flow
        async def body() -> list[str]:
            reply = await ask("go", tools=[look, save])
            assert not wrote, "a write waits for the flow to call it"
            return [await one for one in reply.start(look, save)]

        assert await body() == ["a} found", "saved"]
        assert looked == ["a}"]
        function = seen.requests[0]["tools"][0]["function"]
        assert function["name"].endswith("look")
        assert function["description"] == "Look a key up."
        assert function["parameters"]["required"] == ["key"]


async def test_structured_output() -> None:
    @dataclass
    class Intent:
        kind: str
        sure: bool

    async with openai(lambda body, n: [said('{"kind": "refund",'), said('"sure": true}')]) as (url, seen):
        assert await llm(url).json("?", Intent) == Intent("refund", True)
        schema = seen.requests[0]["response_format"]["json_schema"]["schema"]
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
    async with openai(lambda body, n: [said('{"kind": 3}')]) as (url, _):
        with pytest.raises(LlmError, match="what is no Intent"):
            await llm(url, retries=0).json("?", Intent)


async def test_a_bet_is_sent_as_one_and_again_when_it_is_needed() -> None:
    """A speculative request that has not begun when its guess is confirmed would wait behind all others."""

    def script(body: dict[str, Any], number: int) -> list[Any]:
        return [30.0, said("late")] if number == 0 else [said("yes")]

    @step(effect="pure")
    async def think() -> str:
        await asyncio.sleep(0.2)
        return "q"

    async with openai(script) as (url, seen):
        ask = llm(url)

        @flow
        async def body() -> str:
            return await ask.text(await guess(think(), by=lambda: "q"))

        assert await asyncio.wait_for(body(), 5.0) == "yes"
        assert seen.headers[0]["x-weighbridge-speculative"] == "true"
        assert "x-weighbridge-speculative" not in seen.headers[1]
        await seen.settled(cut=1)


async def test_a_wrong_guess_reaches_no_committed_prompt_and_is_cut_off() -> None:
    @step(effect="pure")
    async def think() -> str:
        await asyncio.sleep(0.2)
        return "right"

    def script(body: dict[str, Any], number: int) -> list[Any]:
        return [said("a"), 30.0] if "wrong" in str(body["messages"]) else [said("b")]

    async with openai(script) as (url, seen):
        ask = llm(url, price=Price(1.0, 1.0))

        @flow(budget=Budget(usd=1.0))
        async def body() -> str:
            return await ask.text(f"about {await guess(think(), by=lambda: 'wrong')}")

        assert await body() == "b"
        bets = [headers.get("x-weighbridge-speculative") for headers in seen.headers]
        committed = [r for r, bet in zip(seen.requests, bets, strict=True) if bet is None]
        assert all("wrong" not in str(request) for request in committed)
        await seen.settled(cut=1)
        assert body.last is not None
        assert body.last.wasted_usd > 0.0, "a cancelled request was not free"


async def test_errors_are_retried_when_they_may_pass() -> None:
    async with openai(lambda body, n: [503] if n == 0 else [said("ok")]) as (url, seen):
        flow_of = flow(lambda_body(llm(url, retries=1)))
        assert await flow_of() == "ok"
        assert len(seen.requests) == 2
    async with openai(lambda body, n: [400]) as (url, seen):
        with pytest.raises(LlmError, match="answered 400: refused by script"):
            await flow(lambda_body(llm(url, retries=3)))()
        assert len(seen.requests) == 1
    with pytest.raises(LlmError, match="no answer from"):
        await llm("http://127.0.0.1:9", retries=0).text("x")
    with pytest.raises(BadInput, match="is not a URL"):
        llm("localhost:8080")


def lambda_body(ask: Any) -> Any:
    async def body() -> str:
        return str(await ask.text("x"))

    return body


async def test_a_slow_first_token_is_hedged_to_the_other_replica_only() -> None:
    def slow(body: dict[str, Any], number: int) -> list[Any]:
        return [10.0, said("slow")] if number == 25 else [said("one")]

    async with openai(slow) as (one, seen), openai(lambda body, n: [said("two")]) as (two, other):
        ask = llm([one, two], hedge=0.1)

        @flow
        async def body() -> list[str]:
            return [await ask.text(f"q{n}") for n in range(30)]

        began = time.monotonic()
        texts = await body()
        assert time.monotonic() - began < 5.0
        assert texts[25] == "two"
        assert len(seen.requests) == 30
        assert len(other.requests) <= 5
        await seen.settled()
        await other.settled()


# -- against our server ------------------------------------------------------------------------------------


async def idle_within(url: str, seconds: float) -> bool:
    ends = time.monotonic() + seconds
    async with httpx.AsyncClient() as session:
        while time.monotonic() < ends:
            load = (await session.get(f"{url}/v1/load")).json()
            if not load["running_requests"] and not load["queued_requests"] and not load["kv_blocks_used"]:
                return True
            await asyncio.sleep(0.002)
    return False


@pytest.mark.parametrize("pause", [0.0, 0.002, 0.01, 0.03, 0.1, 0.3])
async def test_a_flow_cancelled_anywhere_frees_its_slots(tiny_server: str, pause: float) -> None:
    ask = llm(tiny_server, max_tokens=900, ignore_eos=True)

    @flow
    async def body() -> list[str]:
        return [await one for one in [ask.text(f"Story {n}") for n in range(4)]]

    task = asyncio.create_task(body())
    await asyncio.sleep(pause)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await idle_within(tiny_server, 10.0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_request_cancelled_before_its_first_token_is_confirmed_by_its_ticket(tmp_path: Path) -> None:
    """Also when it is the first to its server, which has said nothing yet: the client proposed the ticket."""
    story = {"messages": [{"role": "user", "content": "Story"}], "max_tokens": 900, "ignore_eos": True}
    with serving(make_tiny("llama", tmp_path / "tiny"), "--max-sequences", "1") as (url, _):
        holder, client, endpoint = ChatClient(), ChatClient(), ChatEndpoint(url)
        held = await holder.open(ChatEndpoint(url), story, False).start()  # takes the only place
        async with httpx.AsyncClient() as session:

            async def record(ticket: str) -> dict[str, Any]:
                answer = await session.get(f"{url}/v1/tickets/{ticket}")
                found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
                return found

            stream = client.open(endpoint, story, False)
            task = asyncio.create_task(stream.start())
            for _ in range(2000):
                if await record(stream.ticket):
                    break
                await asyncio.sleep(0.002)
            assert endpoint.ours is None
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            ended, other = await record(stream.ticket), await record(held.ticket)
        assert len(client.freed_seconds) == 1
        assert endpoint.ours is True
        assert (ended["finish_reason"], ended["first_token"], ended["output_tokens"]) == ("abort", None, 0)
        assert ended["finished"] is not None
        assert other["finished"] is None, "it waited behind this one"
        await held.close()
        assert len(holder.freed_seconds) == 1
        await client.close()
        await holder.close()


async def test_a_foreign_server_is_asked_for_no_ticket_twice() -> None:
    async with openai(lambda body, n: [30.0, said("late")]) as (url, seen):
        client, endpoint = ChatClient(), ChatEndpoint(url)
        for expected in (None, False):
            assert endpoint.ours is expected
            task = asyncio.create_task(client.open(endpoint, {"messages": []}, False).start())
            await seen.settled(open=1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await seen.settled()
        assert (client.freed_seconds, endpoint.ours, seen.asked) == ([], False, 1)
        await client.close()


async def test_the_loser_of_a_race_frees_its_slot(tiny_server: str) -> None:
    ask = llm(tiny_server, ignore_eos=True)

    @flow
    async def race() -> str:
        winner = await first(ask.text("short", max_tokens=2), ask.text("long", max_tokens=900))
        assert await idle_within(tiny_server, 10.0), "before the flow has ended"
        return winner

    await race()


async def test_speculative_requests_run_at_the_lowest_priority(tiny_server: str) -> None:
    @step(effect="pure")
    async def think() -> str:
        await asyncio.sleep(0.5)
        return "q"

    ask = llm(tiny_server, max_tokens=4)

    @flow
    async def body() -> str:
        return await ask.text(await guess(think(), by=lambda: "q"))

    await body()
    async with httpx.AsyncClient() as session:
        tickets = (await session.get(f"{tiny_server}/v1/tickets?limit=2")).json()["data"]
    assert 1_000_000 in [ticket["priority"] for ticket in tickets]


def test_the_headline(default_model_path: Path) -> None:
    """Three tools of 300 ms and a synthesis: the decorators alone bring 900 ms down to 300."""
    from benchmarks.flow.headline import measure

    with serving(default_model_path, "--dtype", "bfloat16") as (url, _):
        figures = asyncio.run(measure(url, 3))
    assert figures["sequential_tools_best"] >= 0.9
    assert figures["flow_tools_best"] < 0.6, "not even two of the three ran side by side"


@pytest.mark.proof
def test_the_headline_to_the_millisecond(default_model_path: Path) -> None:
    """On a machine that has time: the tools of one of three runs take at most 330 ms, all three as written 900."""
    from benchmarks.flow.headline import measure

    with serving(default_model_path, "--dtype", "bfloat16") as (url, _):
        figures = asyncio.run(measure(url, 3))
    assert figures["sequential_tools_best"] >= 0.9
    assert figures["flow_tools_best"] <= 0.33
