"""Stands between an agent and its server, passes everything on as it comes, and writes down each turn of the model.

It reads Messages and Responses, which the agents speak, streamed or whole.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

#: What ends at a server and is not passed on, and what is made anew on the way.
_OWN = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "content-encoding"}
)
#: What a call of a tool looks like where it stands in a text.
_LIKE_A_CALL = re.compile(r'<tool_call|<function|"arguments"\s*:|"tool_use"|<invoke')


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool, as the agent was told of it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Result:
    """What an agent says came of a call."""

    id: str
    text: str
    failed: bool


@dataclass(slots=True)
class Turn:
    """One request of an agent and what the model made of it. Seconds since it was asked."""

    tools: Sequence[str] = ()
    results: Sequence[Result] = ()
    status: int = 0
    refused: str = ""
    ticket: str = ""
    first_s: float | None = None
    whole_s: float | None = None
    text: str = ""
    calls: Sequence[Call] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ended: str = ""

    @property
    def missed(self) -> bool:
        """Whether its text seems to hold a call that was not made."""
        return not self.calls and bool(self.tools) and bool(_LIKE_A_CALL.search(self.text))


@dataclass
class Tap:
    """`upstream`: the server's URL. `most`: turns with tools after which it is `enough`."""

    upstream: str
    most: int
    turns: list[Turn] = field(default_factory=list)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its URL while the block runs."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._passed)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        forever = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=forever) as self._client:
            try:
                yield "http://{}:{}".format(*runner.addresses[0][:2])
            finally:
                await runner.cleanup()

    async def _passed(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        turn = asked(request.path, body)
        if turn is not None:
            if sum(bool(one.tools) for one in self.turns) >= self.most:
                self.enough.set()
            self.turns.append(turn)
        began, kept = time.monotonic(), bytearray()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN}
        async with self._client.request(
            request.method, self.upstream + request.raw_path, data=body or None, headers=headers
        ) as found:
            answer = web.StreamResponse(
                status=found.status,
                headers={name: value for name, value in found.headers.items() if name.lower() not in _OWN},
            )
            with suppress(
                ConnectionError, aiohttp.ClientError
            ):  # the agent has left, and so the server is; or it has
                await answer.prepare(request)
                async for piece in found.content.iter_any():
                    kept += piece
                    if turn is not None and turn.first_s is None and _has_begun(kept):
                        turn.first_s = time.monotonic() - began
                    await answer.write(piece)
                await answer.write_eof()
        if turn is not None:
            turn.status, turn.whole_s = found.status, time.monotonic() - began
            turn.ticket = found.headers.get("x-weighbridge-ticket", "")
            answered(turn, request.path, bytes(kept))
        return answer


def asked(path: str, body: bytes) -> Turn | None:
    """The turn that a request asks for; None where it asks for something else."""
    if path == "/v1/messages":
        told = json.loads(body)
        return Turn([tool["name"] for tool in told.get("tools") or ()], list(_results(told["messages"][-1])))
    if path == "/v1/responses":
        told = json.loads(body)
        return Turn(list(_tool_names(told.get("tools") or ())), list(_outputs(told["input"])))
    return None


def _tool_names(tools: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for tool in tools:
        if tool["type"] == "namespace":
            yield from (f"{tool['name']}.{one['name']}" for one in tool["tools"])
        else:
            yield tool.get("name") or tool["type"]


def _results(last: Mapping[str, Any]) -> Iterator[Result]:
    """What a turn of Messages says of the calls before it."""
    for block in last["content"] if isinstance(last["content"], list) else ():
        if block["type"] == "tool_result":
            yield Result(block["tool_use_id"], _text(block.get("content")), bool(block.get("is_error")))


def _outputs(items: Any) -> Iterator[Result]:
    """What the end of an input of Responses says of the calls before it."""
    if isinstance(items, str):
        return
    for item in reversed(items):
        if not item.get("type", "").endswith("_call_output"):
            break
        text = _text(item["output"])
        yield Result(item["call_id"], text, not re.search(r"exited with code 0\b", text))


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content)


def _has_begun(kept: bytearray) -> bool:
    """Whether a stream has brought anything that the model said."""
    return any(
        mark in kept for mark in (b"content_block_delta", b".delta", b"output_item.done", b'"stop_reason":"')
    )


def answered(turn: Turn, path: str, answer: bytes) -> None:
    """Note what the model said."""
    if turn.status >= 400:
        turn.refused = answer.decode("utf-8", "replace")[:2000]
        return
    events = [json.loads(line[5:]) for line in answer.split(b"\n") if line.startswith(b"data:")]
    if path == "/v1/messages":
        _message(turn, events or [{"type": "message", **json.loads(answer)}])
    else:
        _response(turn, events or [{"type": "response.completed", "response": json.loads(answer)}])


def _message(turn: Turn, events: Iterable[Mapping[str, Any]]) -> None:
    calls: dict[int, list[str]] = {}
    for event in events:
        block, delta = event.get("content_block") or {}, event.get("delta") or {}
        if block.get("type") == "tool_use":
            calls[event["index"]] = [block["id"], block["name"], ""]
        turn.text += delta.get("text", "")
        if "partial_json" in delta:
            calls[event["index"]][2] += delta["partial_json"]
        if event["type"] == "message":  # whole
            uses = [one for one in event["content"] if one["type"] == "tool_use"]
            calls = {at: [one["id"], one["name"], json.dumps(one["input"])] for at, one in enumerate(uses)}
            turn.text = _text(event["content"])
        if event["type"] in ("message", "message_delta"):
            turn.ended = event.get("stop_reason") or delta.get("stop_reason") or ""
            _used(turn, event["usage"])
        if event["type"] == "error":
            turn.refused = json.dumps(event["error"])
    turn.calls = [Call(*one) for one in calls.values()]


def _used(turn: Turn, usage: Mapping[str, Any]) -> None:
    turn.cached_tokens = usage.get("cache_read_input_tokens") or 0
    made = usage.get("cache_creation_input_tokens") or 0
    turn.prompt_tokens = (usage.get("input_tokens") or 0) + turn.cached_tokens + made
    turn.output_tokens = usage["output_tokens"]


def _response(turn: Turn, events: Iterable[Mapping[str, Any]]) -> None:
    for event in events:
        if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
            told = event["response"]
            turn.ended = (told.get("incomplete_details") or {}).get("reason") or told["status"]
            turn.refused = json.dumps(told["error"]) if told.get("error") else ""
            output = told["output"]
            turn.text = "".join(_text(item["content"]) for item in output if item["type"] == "message")
            turn.calls = [
                Call(item["call_id"], item["name"], item.get("arguments") or item.get("input") or "")
                for item in output
                if item["type"] in ("function_call", "custom_tool_call")
            ]
            usage = told.get("usage") or {}
            turn.prompt_tokens = usage.get("input_tokens", 0)
            turn.cached_tokens = (usage.get("input_tokens_details") or {}).get("cached_tokens", 0)
            turn.output_tokens = usage.get("output_tokens", 0)
