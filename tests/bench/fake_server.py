"""A small OpenAI-compatible server that does what its script says, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass
class Script:
    """How the fake behaves. A token is a word here; `chunks` says how many of them each chunk holds."""

    chunks: list[int] | None = None  # none: one token a chunk, as many as asked
    usage: bool = True
    done: bool = True
    finish: bool = True
    fail_after: int | None = None  # chunks before an error event
    hang: bool = False
    takes_ids: bool = True
    tokenize: str | None = None  # vllm or llama: whose shape of /tokenize it has
    template: int = 0  # tokens that a tokenizer adds to every text
    pause: float = 0.0
    empty_finish: bool = False  # the last event holds no text
    bodies: list[dict[str, Any]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)  # of the clients' ends
    running: int = 0
    most: int = 0


def length_of(prompt: Any, script: Script) -> int:
    return len(prompt) if isinstance(prompt, list) else len(prompt.split()) + script.template


class FakeServer:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.app = web.Application()
        self.app.router.add_get("/v1/models", self.models)
        self.app.router.add_post("/v1/completions", self.complete)
        self.app.router.add_post("/v1/chat/completions", self.complete)
        if script.tokenize:
            self.app.router.add_post("/tokenize", self.tokenize)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        key = "prompt" if self.script.tokenize == "vllm" else "content"
        if key not in body:
            return web.json_response({"error": {"message": f"no {key}"}}, status=400)
        return web.json_response({"tokens": [0] * length_of(body[key], self.script)})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        if isinstance(prompt, list) and not self.script.takes_ids:
            return web.json_response({"error": {"message": "prompt must be a string"}}, status=422)
        self.script.bodies.append(body)
        assert request.transport is not None
        self.script.ports.append(request.transport.get_extra_info("peername")[1])
        self.script.running += 1
        self.script.most = max(self.script.most, self.script.running)
        try:
            return await self.stream(request, body, length_of(prompt, self.script), chat)
        finally:
            self.script.running -= 1

    async def stream(
        self, request: web.Request, body: dict[str, Any], prompt_tokens: int, chat: bool
    ) -> web.StreamResponse:
        script = self.script
        answer = web.StreamResponse()
        await answer.prepare(request)
        if chat:
            await self.event(answer, [{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        chunks = script.chunks or [1] * body["max_tokens"]
        for number, tokens in enumerate(chunks):
            if number == script.fail_after:
                await answer.write(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')
                return answer
            if script.hang:
                await asyncio.sleep(30)
            await asyncio.sleep(script.pause)
            last = script.finish and number == len(chunks) - 1 and not script.empty_finish
            await self.event(answer, [self.choice(" word" * tokens, "length" if last else None, chat)])
        if script.empty_finish:
            await self.event(answer, [self.choice("", "length", chat)])
        if script.usage:
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": sum(chunks)}
            await self.event(answer, [], usage=usage)
        if script.done:
            await answer.write(b"data: [DONE]\n\n")
        return answer

    @staticmethod
    def choice(text: str, finish: str | None, chat: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
        return {"index": 0, **body, "finish_reason": finish}

    @staticmethod
    async def event(answer: web.StreamResponse, choices: list[dict[str, Any]], **more: Any) -> None:
        await answer.write(f"data: {json.dumps({'id': 'x', 'choices': choices, **more})}\n\n".encode())


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    async with TestServer(FakeServer(script).app) as server:
        yield str(server.make_url("/"))
