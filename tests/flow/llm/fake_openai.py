"""A server that speaks OpenAI's chat protocol over real sockets and does exactly what a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Script = Callable[[dict[str, Any], int], list[Any]]


@dataclass
class Seen:
    """What reached the server."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    open: int = 0
    asked: int = 0  # for tickets, which it has not
    cut: int = 0  # exchanges the client ended early

    async def settled(self, open: int = 0, cut: int | None = None) -> None:
        """Returns once so many exchanges are open and were cut; fails after five seconds."""
        for _ in range(500):
            if self.open == open and cut in (None, self.cut):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.open} exchanges are open, {self.cut} were cut; not {open} and {cut}")


@asynccontextmanager
async def openai(script: Script) -> AsyncIterator[tuple[str, Seen]]:
    """`script(body, number)` gives what to send: chunks (dicts), pauses (floats), or a status (int) to refuse.

    An `asyncio.Event` is a pause until it is set; it must be within ten seconds.
    """
    seen = Seen()

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.requests.append(body)
        seen.headers.append({name.lower(): value for name, value in request.headers.items()})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        seen.open += 1
        ended = False
        try:
            for piece in script(body, len(seen.requests) - 1):
                if isinstance(piece, int):
                    return web.json_response({"error": {"message": "refused by script"}}, status=piece)
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                    continue
                if isinstance(piece, asyncio.Event):
                    await asyncio.wait_for(piece.wait(), 10.0)
                    continue
                if not response.prepared:
                    await response.prepare(request)
                await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
            ended = True
            return response
        finally:
            seen.open -= 1
            seen.cut += not ended

    async def ticket(request: web.Request) -> web.Response:
        seen.asked += 1
        return web.json_response({"error": {"message": "no such page", "code": "not_found"}}, status=404)

    app = web.Application()
    app.router.add_get("/v1/tickets/{ticket}", ticket)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"http://127.0.0.1:{port}/v1", seen
    finally:
        await runner.cleanup()


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def called(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    """A piece of a tool call."""
    function = {"arguments": arguments} | ({"name": name} if name else {})
    piece = {"index": index, "function": function} | ({"id": f"call{index}"} if name else {})
    return {"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]}


def used(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return {"choices": [], "usage": usage}
