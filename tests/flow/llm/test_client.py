"""The chat client against servers that say, byte by byte, what a test tells them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.flow.llm.fake_openai import STREAM, openai, said
from weighbridge.flow import flow, llm
from weighbridge.flow.llm import client as chat_client
from weighbridge.flow.llm.client import ChatClient, ChatEndpoint, LlmError

HELLO = b"data: " + json.dumps(said("hello")).encode()


@asynccontextmanager
async def server(*pieces: bytes, close: bool = True) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers every request with `pieces`, each in a packet of its own, and closes the connection if told to."""
    heads: list[bytes] = []
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if not close:
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", heads
    finally:
        listener.close()
        for task in tasks:
            task.cancel()


def plain(status: str, body: bytes, *headers: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status}".encode(), b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


async def text_of(url: str) -> str:
    return await llm(url, retries=0, timeout=20.0).text("x")


@pytest.mark.parametrize(
    "pieces",
    [
        (HELLO + b"\n\ndata: [DONE]\n\n",),
        (HELLO[:9], HELLO[9:] + b"\n", b"\ndata: [DO", b"NE]\n\n"),
        (b": keep-alive\n\nevent: x\n" + HELLO + b"\r\n\r\ndata:[DONE]\r\n\r\n",),
        (HELLO + b"\n\n", b"data: [DONE]"),
    ],
)
async def test_events_come_in_whatever_pieces(pieces: tuple[bytes, ...]) -> None:
    async with server(UNTIL_CLOSE, *pieces) as (url, _):
        assert await text_of(url) == "hello"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((UNTIL_CLOSE, HELLO + b"\n\n"), "broke off in the middle of an answer"),
        ((STREAM, b"ff\r\n" + HELLO), "no answer from .*: closed"),
        ((STREAM, b"ff\r\n" + HELLO + b"\n\n"), "broke off in the middle of an answer: "),
        ((UNTIL_CLOSE, b"data: {nonsense}\n\n"), "sent an event that is no JSON object"),
        ((UNTIL_CLOSE, b"data: 17\n\n"), "sent an event that is no JSON object"),
        ((UNTIL_CLOSE, b'data: {"error": {"message": "out of memory"}}\n\n'), ": out of memory"),
        ((UNTIL_CLOSE, b'data: {"error": "out of luck"}\n\n'), ": out of luck"),
        ((plain("503 Busy", b'{"error": {"message": "come back"}}'),), "answered 503: come back"),
        ((plain("502 Bad", b"<html>proxy</html>"),), "answered 502: <html>proxy</html>"),
        ((plain("307 Gone", b"", b"Location: http://elsewhere/v1"),), "it has moved to http://elsewhere/v1"),
        ((b"SSH-2.0-OpenSSH_9.6\r\n",), "no answer from .*no HTTP"),
        ((), "no answer from"),
    ],
)
async def test_an_answer_that_is_none_says_why(pieces: tuple[bytes, ...], message: str) -> None:
    async with server(*pieces) as (url, _):
        with pytest.raises(LlmError, match=message):
            await text_of(url)


async def test_a_redirect_is_not_followed() -> None:
    async with openai(lambda body, n: [said("secret")]) as (target, seen):
        moved = plain("308 Moved", b"", b"Location: " + target.encode() + b"/chat/completions")
        async with server(moved) as (url, _):
            with pytest.raises(LlmError, match="answered 308"):
                await text_of(url)
        assert not seen.requests


async def test_no_event_and_no_error_fills_our_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "MAX_ERROR_BYTES", 1000)
    endless = b"HTTP/1.1 500 Oh\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 5000
    async with server(endless, close=False) as (url, _):
        with pytest.raises(LlmError, match="answered 500: xxx") as caught:
            await text_of(url)
        assert len(str(caught.value)) < 500
    monkeypatch.setattr("weighbridge.wire.sse.LARGEST_EVENT", 1000)
    async with server(UNTIL_CLOSE, b"data: " + b"x" * 5000, close=False) as (url, _):
        with pytest.raises(LlmError, match="sent an event of more than"):
            await text_of(url)


async def test_a_flow_uses_a_connection_again() -> None:
    async with openai(lambda body, n: [said("a")] if n != 2 else [429]) as (url, seen):
        ask = llm(url, retries=0)

        @flow
        async def body() -> str:
            texts = [await ask.text(f"{n}") for n in range(2)]
            with pytest.raises(LlmError, match="answered 429"):
                await ask.text("2")
            return "".join([*texts, await ask.text("3")])

        assert await body() == "aaa"
        assert (len(seen.requests), seen.connections) == (4, 1)


async def test_a_body_that_does_not_end_costs_its_connection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "END_SECONDS", 0.05)
    async with server(UNTIL_CLOSE, HELLO + b"\n\ndata: [DONE]\n\n", close=False) as (url, _):
        assert await asyncio.wait_for(text_of(url), 5.0) == "hello"


async def test_what_is_sent() -> None:
    async with openai(lambda body, n: [said("a")]) as (url, seen):
        await llm(url, api_key="k").text("x")
        headers = seen.headers[0]
        assert headers["authorization"] == "Bearer k"
        assert headers["accept-encoding"] == "identity"
        assert headers["user-agent"] == "weighbridge"
        assert headers["content-type"] == "application/json"
        assert len(headers["x-weighbridge-ticket"]) == 32
        assert seen.requests[0]["stream_options"] == {"include_usage": True}


async def test_a_password_in_a_url_is_for_the_server_only() -> None:
    async with openai(lambda body, n: [401]) as (url, seen):
        with pytest.raises(LlmError) as caught:
            await text_of(url.replace("http://", "http://me:secret@"))
        assert "secret" not in str(caught.value)
        assert seen.headers[0]["authorization"] == "Basic bWU6c2VjcmV0"


async def test_cancelling_a_stream_closes_its_connection() -> None:
    async with openai(lambda body, n: [said("a"), 30.0]) as (url, seen):
        client = ChatClient()
        stream = await client.open(ChatEndpoint(url), {"messages": []}, False).start()
        assert await stream.next() == said("a")
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await stream.close()
        await seen.settled(cut=1)
        await client.close()
