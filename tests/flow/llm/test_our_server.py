"""What flows get from our own server: streamed tool calls and plans, and its load in the gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.server.running import serving
from tests.server.tool_model import CALL, make_tool_model
from weighbridge.flow import Llm, flow, guess, llm, step
from weighbridge.flow.llm.client import ChatClient, ChatEndpoint
from weighbridge.flow.report.record import BetRecord


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = make_tool_model(tmp_path_factory.mktemp("flow-tools") / "tiny")
    with serving(model, "--kv-cache-memory", "4MiB", "--max-sequences", "2") as (url, _):
        yield url


async def test_a_read_tool_starts_while_our_server_still_writes_the_next_call(server: str) -> None:
    events: list[str] = []

    @step(effect="read", name="weigh")
    async def weigh(load: str, heavy: bool) -> str:
        events.append(load)
        return f"{load} is {'heavy' if heavy else 'light'}"

    two = f"Two[.]\n{CALL % ('weigh', 3)}\n{CALL % ('weigh', 300)}"
    ask = llm(server, max_tokens=900, seed=1, structured_outputs={"regex": two})

    @flow
    async def body() -> list[str]:
        reply = await ask("Weigh both.", tools=[weigh])
        events.append("reply")
        assert (reply.text, reply.finish_reason) == ("Two.", "tool_calls")
        assert [call.name for call in reply.calls] == ["weigh", "weigh"]
        return [await one for one in reply.start(weigh)]

    short, long = await body()
    assert (len(short.split()[0]), len(long.split()[0])) == (3, 300)
    assert events.index("reply") > events.index(short.split()[0])
    assert sorted(len(event) for event in events) == [3, 5, 300], "each tool ran once"


async def test_the_calls_of_a_plan_start_with_their_lines(server: str) -> None:
    events: list[str] = []

    @step(effect="read", name="search")
    async def search(query: str) -> str:
        events.append(query)
        return query.upper()

    plan = r'1[.] search\("[a-z]{3}"\)\n2[.] search\("[a-z]{300}"\)\n'
    ask = llm(server, max_tokens=900, seed=1, structured_outputs={"regex": plan})

    @flow
    async def body() -> list[str]:
        made = await ask.plan("Find both.", [search])
        events.append("plan")
        return [await made[number] for number in sorted(made)]

    found = await body()
    assert [len(one) for one in found] == [3, 300]
    assert events.index("plan") > events.index(found[0].lower())
    assert sorted(len(event) for event in events) == [3, 4, 300]


# -- the queue's part in the gate --------------------------------------------------------------------------


@asynccontextmanager
async def full(url: str, requests: int) -> AsyncIterator[None]:
    """So many endless answers at the server: two are written, the rest waits."""
    client, endpoint = ChatClient(), ChatEndpoint(url)
    story = {"messages": [{"role": "user", "content": "Story"}], "max_tokens": 900, "ignore_eos": True}
    streams = [client.open(endpoint, story, False) for _ in range(requests)]
    tasks = [asyncio.create_task(one.start()) for one in streams]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams:
            await stream.close()
        await client.close()


def thoughtful(ask: Llm) -> Any:
    """A flow whose guess is always right; whether its model is asked is up to the caller."""

    @step(effect="pure")
    async def think() -> str:
        await asyncio.sleep(0.1)
        return "q"

    @flow
    async def body(asking: bool) -> str:
        word = await guess(think(), by=lambda: "q")
        return await ask.text(word) if asking else word

    return body


async def until(body: Any, queued: bool) -> BetRecord:
    """The first bet that knows the server's queue to be so; each run asks for it, and the next one knows."""
    for _ in range(100):
        await body(False)
        (bet,) = body.last.bets
        if (bet.verdict.stakes.queue_usd > 0.001) is queued:
            found: BetRecord = bet
            return found
    raise AssertionError("the server's load never reached the gate")


async def test_the_gate_declines_while_others_wait_at_the_server(server: str) -> None:
    ask = llm(server, max_tokens=400, ignore_eos=True)
    body = thoughtful(ask)
    await body(True)  # the server says that it is one of ours, and how long the model's answers are
    assert (await until(body, queued=False)).verdict.launch
    async with full(server, 40):
        bet = await until(body, queued=True)
        stakes = bet.verdict.stakes
        assert not bet.verdict.launch
        assert bet.outcome == "declined"
        assert stakes.gain < stakes.queue_usd
        # Dollars by the same price of a second on both sides of the inequality.
        load = ask._endpoints[0].load_now()
        assert load is not None
        assert load.running <= 2 < load.waiting
        assert load.step_cost is not None
        assert "Q=$" in body.explain()
    assert (await until(body, queued=False)).verdict.launch
