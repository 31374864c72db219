"""An OpenAI-compatible stub with latency, prices in mind and failures on order, over a real socket.

It writes down everything it receives, and what each request would be billed: the oracle for egress and money.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

OK, BUSY, BROKEN, CUT, HANG = "ok", "429", "500", "cut", "hang"


@dataclass
class Entry:
    """One request as the stub saw it. Tokens are what it bills."""

    raw: str
    fate: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    complete: bool = False
    at: float = field(default_factory=time.monotonic)


def echo(body: dict[str, Any]) -> str:
    """The text of the last message: what a model would quote back."""
    content = body["messages"][-1].get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return content or ""


@dataclass
class Stub:
    """`fates`: what happens to each request in turn, then OK. `answer`: the text, cut into `piece` characters.

    One piece is one token; a prompt's tokens are its bytes divided by four.
    """

    fates: Iterable[str] = ()
    answer: Callable[[dict[str, Any]], str] = echo
    arguments: Callable[[dict[str, Any]], str | None] = lambda body: None
    called: Callable[[dict[str, Any]], str] = lambda body: "send"  # the tool, where there are arguments
    piece: int = 4
    first: float = 0.0  # seconds to the first token
    pause: float = 0.0  # seconds between tokens
    logprob: float | None = None
    usage: bool = True
    thoughts: int = 0  # chunks of reasoning before the answer
    rest: str | Callable[[], str] = "0.05"  # what a busy one writes as its Retry-After
    raw_usage: str | None = None  # what it writes in place of its usage, JSON or not
    log: list[Entry] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_work: int = 0
    most_at_work: int = 0

    def __post_init__(self) -> None:
        self._fates = iter(self.fates)
        self.app = web.Application(client_max_size=1 << 26)
        self.app.router.add_post("/v1/chat/completions", self.chat)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            return await self._chat(request)
        finally:
            self.at_work -= 1

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.text()
        fate = next(self._fates, OK)
        entry = Entry(raw, fate)
        self.log.append(entry)
        self.headers.append(dict(request.headers))
        self.paths.append(request.path_qs)
        body = json.loads(raw)
        if fate == BUSY:
            headers = {"retry-after": self.rest if isinstance(self.rest, str) else self.rest()}
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)
        if fate == BROKEN:
            return web.json_response({"error": {"message": "out of luck"}}, status=500)
        size = len(json.dumps(body["messages"], ensure_ascii=False).encode())
        entry.prompt_tokens = max(1, size // 4)
        if fate == HANG:
            await asyncio.sleep(3600)
        return await self._stream(request, body, entry)

    async def _stream(self, request: web.Request, body: dict[str, Any], entry: Entry) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await asyncio.sleep(self.first)
        await answer.prepare(request)
        text, arguments = self.answer(body), self.arguments(body)
        most = body.get("max_tokens") or 10**6
        pieces = [text[i : i + self.piece] for i in range(0, len(text), self.piece)][:most]
        finish = "length" if len(pieces) * self.piece < len(text) else "stop"
        for number in range(self.thoughts):
            await self._event(answer, {"reasoning_content": f"thought {number}"})
            entry.output_tokens += 1
            await asyncio.sleep(self.pause)
        for number, piece in enumerate(pieces):
            if entry.fate == CUT and number >= max(1, len(pieces) // 2):
                request.transport.close()
                return answer
            await asyncio.sleep(self.pause)
            await self._event(answer, {"content": piece}, logprobs=self._logprobs(piece))
            entry.output_tokens += 1
        for number in range(0, len(arguments or ""), self.piece):
            part = {"arguments": arguments[number : number + self.piece]}
            call: dict[str, Any] = {"index": 0, "function": part}
            if number == 0:
                call |= {"id": "call_1", "type": "function"}
                part["name"] = self.called(body)
            finish = "tool_calls"
            await self._event(answer, {"tool_calls": [call]})
            entry.output_tokens += 1
        await self._event(answer, {}, finish=finish)
        if self.usage:
            usage = {"prompt_tokens": entry.prompt_tokens, "completion_tokens": entry.output_tokens}
            told = json.dumps(usage) if self.raw_usage is None else self.raw_usage
            await answer.write(f'data: {{"choices": [], "usage": {told}}}\n\n'.encode())
        await answer.write(b"data: [DONE]\n\n")
        entry.complete = True
        return answer

    def _logprobs(self, piece: str) -> dict[str, Any] | None:
        if self.logprob is None:
            return None
        return {"content": [{"token": piece, "logprob": self.logprob, "top_logprobs": []}]}

    @staticmethod
    async def _event(
        answer: web.StreamResponse, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None
    ) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        await answer.write(f"data: {json.dumps({'id': 'stub', 'choices': [choice]})}\n\n".encode())


@asynccontextmanager
async def serving(*stubs: Stub) -> AsyncIterator[list[str]]:
    """Base URLs of the stubs, as a client would configure them."""
    servers = [TestServer(stub.app) for stub in stubs]
    try:
        for server in servers:
            await server.start_server()
        yield [str(server.make_url("/v1")) for server in servers]
    finally:
        for server in servers:
            await server.close()
