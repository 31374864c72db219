"""A server that speaks Anthropic's Messages as a test tells it, in the forms that the SDK's types have."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Block = dict[str, Any]

TEXT: list[Block] = [{"type": "text", "text": "It weighs twelve grams."}]
CALLS: list[Block] = [
    {"type": "thinking", "thinking": "I look both up.", "signature": "c2ln"},
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "id": "toolu_1", "name": "weigh", "input": {"thing": "żaba", "unit": "g"}},
    {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
]
USAGE = {
    "input_tokens": 11,
    "cache_read_input_tokens": 20,
    "cache_creation_input_tokens": 4,
    "output_tokens": 9,
}


def pieces(text: str, size: int = 5) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)] or [""]


def message(blocks: list[Block], stop: str, by: str | None = None) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": blocks,
        "stop_reason": stop,
        "stop_sequence": by,
        "usage": USAGE,
    }


def events(blocks: list[Block], stop: str, by: str | None = None) -> list[dict[str, Any]]:
    """The same as its events."""
    begun = {**message([], stop), "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    found: list[dict[str, Any]] = [{"type": "message_start", "message": begun}, {"type": "ping"}]
    for index, block in enumerate(blocks):
        kind = block["type"]
        deltas: list[Block]
        if kind == "text":
            start = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": one} for one in pieces(block["text"])]
        elif kind == "thinking":
            start = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": one} for one in pieces(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        else:
            start = {**block, "input": {}}
            written = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
            deltas = [{"type": "input_json_delta", "partial_json": one} for one in ["", *pieces(written)]]
        found.append({"type": "content_block_start", "index": index, "content_block": start})
        found += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        found.append({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": stop, "stop_sequence": by}
    found.append(
        {"type": "message_delta", "delta": ended, "usage": {"output_tokens": USAGE["output_tokens"]}}
    )
    return [*found, {"type": "message_stop"}]


@dataclass
class AnthropicServer:
    """ASGI. Whoever has another key than `key` is refused; `statuses` are those of the next answers."""

    blocks: list[Block] = field(default_factory=lambda: TEXT)
    stop: str = "end_turn"
    by: str | None = None
    key: str = "k-ant"
    statuses: list[int] = field(default_factory=list)
    breaks: bool = False  # with an error, in the middle of a stream
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (got := await receive())["type"] == "http.request":
            body += got.get("body", b"")
            if not got.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if scope["path"] == "/v1/models":
            page = {"data": [{"type": "model", "id": "claude-x", "display_name": "X"}], "has_more": False}
            await self._json(send, 200, page)
            return
        self.paths.append(scope["path"])
        self.headers.append(headers)
        if headers.get("x-api-key") != self.key or not headers.get("anthropic-version"):
            await self._json(send, 401, self.error("authentication_error", "invalid x-api-key"))
            return
        self.asked.append(json.loads(body))
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            kind = "overloaded_error" if status == 529 else "invalid_request_error"
            await self._json(
                send, status, self.error(kind, "not now" if status == 529 else "max_tokens: too many")
            )
        elif not self.asked[-1].get("stream"):
            await self._json(send, 200, message(self.blocks, self.stop, self.by))
        else:
            await self._stream(send)

    @staticmethod
    def error(kind: str, text: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_1"}

    async def _stream(self, send: Any) -> None:
        head = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"request-id", b"req_1")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        told = events(self.blocks, self.stop, self.by)
        if self.breaks:
            told = [*told[:5], self.error("overloaded_error", "Overloaded")]
        for one in told:
            data = f"event: {one['type']}\ndata: {json.dumps(one, ensure_ascii=False)}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _json(self, send: Any, status: int, value: Any) -> None:
        head = [(b"content-type", b"application/json"), (b"request-id", b"req_1")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": json.dumps(value).encode()})
