"""Cancelled through the gateway: in the queue, in mid-answer, and without streaming."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.flow.llm.test_llm import idle_within
from tests.server.running import serving
from tests.tiny import make_tiny
from weighbridge.flow.llm.client import ChatClient, ChatEndpoint, ChatStream

STORY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Story"}],
    "max_tokens": 900,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = make_tiny("llama", tmp_path_factory.mktemp("gateway") / "tiny")
    with serving(model, "--replicas", "1", "--kv-cache-memory", "4MiB", "--max-sequences", "1") as (url, _):
        yield url


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[tuple[ChatClient, ChatEndpoint]]:
    client = ChatClient()
    try:
        yield client, ChatEndpoint(url)
    finally:
        await client.close()
    assert await idle_within(url, 10.0)


async def known(url: str, ticket: str) -> dict[str, Any]:
    """The ticket's record, once the gateway has one."""
    async with httpx.AsyncClient() as session:
        for _ in range(1000):
            answer = await session.get(f"{url}/v1/tickets/{ticket}")
            if answer.status_code == 200:
                record: dict[str, Any] = answer.json()
                return record
            await asyncio.sleep(0.01)
    raise AssertionError("the gateway does not know the ticket that was proposed")


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def ended(url: str, stream: ChatStream, client: ChatClient) -> dict[str, Any]:
    assert len(client.freed_seconds) == 1, "its end was confirmed by its ticket"
    record = await known(url, stream.ticket)
    assert record["finished"] is not None
    return record


async def test_in_the_queue(gateway: str) -> None:
    async with asking(gateway) as (holder, endpoint):
        held = await holder.open(endpoint, STORY, False).start()  # takes the only place
        client = ChatClient()
        stream = client.open(ChatEndpoint(gateway), STORY, False)
        task = asyncio.create_task(stream.start())
        await known(gateway, stream.ticket)
        await cancelled(task)
        record = await ended(gateway, stream, client)
        assert record["first_token"] is None
        assert record["output_tokens"] == 0
        assert (await known(gateway, held.ticket))["finished"] is None, "it waited behind this one"
        await held.close()
        await client.close()


async def test_in_mid_answer(gateway: str) -> None:
    async with asking(gateway) as (client, endpoint):
        stream = await client.open(endpoint, STORY, False).start()
        proposed = stream.ticket
        for _ in range(5):
            await stream.next()
        await stream.close()
        record = await ended(gateway, stream, client)
        assert stream.ticket == proposed
        assert 0 < record["output_tokens"] < 900


async def test_without_streaming(gateway: str) -> None:
    ticket = uuid.uuid4().hex

    async def ask() -> None:
        headers = {"x-weighbridge-ticket": ticket}
        async with httpx.AsyncClient(timeout=60.0) as session:
            await session.post(f"{gateway}/v1/chat/completions", json=STORY, headers=headers)

    task = asyncio.create_task(ask())
    await known(gateway, ticket)
    await cancelled(task)
    for _ in range(1000):
        if (await known(gateway, ticket))["finished"] is not None:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("the gateway never said that it has ended")
    assert await idle_within(gateway, 10.0)
