"""What a model answered: text and tool calls, put together while they come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage, charge
from weighbridge.errors import WeighbridgeError
from weighbridge.flow.bets.prefetch import prefetch
from weighbridge.flow.llm.client import LlmError
from weighbridge.flow.llm.json_stream import JsonEnd
from weighbridge.flow.step import Step
from weighbridge.wire.usage import read_usage

#: What a delta may carry; all of it is billed.
_GENERATED = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")


@dataclass(slots=True)
class ToolCall:
    """A call that the model wants made."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Reply:
    """What a model answered."""

    text: str
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def start(self, *tools: Step[..., Any]) -> list[Awaitable[Any]]:
        """Call the tools the model asked for. Reads that were prefetched are there already.

        Raises WeighbridgeError for a tool that is not among `tools`.
        """
        by_name = {tool.name: tool for tool in tools}
        for call in self.calls:
            if call.name not in by_name:
                raise WeighbridgeError(
                    f"the model called {call.name!r}; it may call: {', '.join(by_name) or 'nothing'}"
                )
        return [by_name[call.name](**call.arguments) for call in self.calls]

    @property
    def message(self) -> dict[str, Any]:
        """The reply as a message, to continue from."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": msgspec.json.encode(call.arguments).decode(),
                    },
                }
                for call in self.calls
            ]
        return message


class ReplyBuilder:
    """A reply as it comes; tool calls that have come whole are prefetched."""

    def __init__(
        self, tools: dict[str, Step[..., Any]], on_text: Callable[[str], None] | None = None
    ) -> None:
        self._tools = tools
        self._on_text = on_text
        self._text: list[str] = []
        self._calls: dict[int, tuple[dict[str, str], JsonEnd]] = {}
        self._usage: Usage | None = None
        self._finish: str | None = None
        self.pieces = 0

    def add(self, event: dict[str, Any]) -> None:
        told = read_usage(event.get("usage"), self.pieces)
        if told is not None:
            self._usage = told.after(self._usage)
        for choice in event.get("choices", ()):
            delta = choice.get("delta") or {}
            self._finish = choice.get("finish_reason") or self._finish
            self.pieces += any(delta.get(name) for name in _GENERATED)
            if delta.get("content"):
                self._text.append(delta["content"])
                if self._on_text is not None:
                    self._on_text(delta["content"])
            for position, piece in enumerate(delta.get("tool_calls") or ()):
                self._add_call(piece.get("index", position), piece)

    def _add_call(self, index: int, piece: dict[str, Any]) -> None:
        call, end = self._calls.setdefault(index, ({"id": "", "name": "", "arguments": ""}, JsonEnd()))
        function = piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        call["name"] = function.get("name") or call["name"]
        arguments = function.get("arguments") or ""
        call["arguments"] += arguments
        if end.feed(arguments) and call["name"] in self._tools:
            parsed = _parsed(call["arguments"])
            if isinstance(parsed, dict):
                prefetch(self._tools[call["name"]], **parsed)

    def reply(self) -> Reply:
        calls = []
        for call, _ in self._calls.values():
            arguments = _parsed(call["arguments"] or "{}")
            if not isinstance(arguments, dict):
                raise LlmError(
                    f"the model called {call['name']} with what is no JSON object: {call['arguments'][:200]}"
                )
            calls.append(ToolCall(call["id"], call["name"], arguments))
        return Reply(
            "".join(self._text),
            calls,
            self._finish,
            self.usage.prompt_tokens,
            self.usage.output_tokens,
            self.usage.cached_tokens,
        )

    @property
    def usage(self) -> Usage:
        """What it took: as the server told, and no less output than came."""
        return charge(self._usage, self.pieces, 0).usage


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return None
