"""Tools of a chat request, and the calls in its answer, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from weighbridge.engine.request import Guide
from weighbridge.server.engine.tool_stream import CallArguments, CallBegun, Piece, ToolStream
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.openai import NamedTool, Tool


@dataclass(frozen=True, slots=True)
class WrittenToolCall:
    """One call; `arguments` is JSON text, as OpenAI has it."""

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def parse(text: str, tools: Iterable[str]) -> tuple[str, list[WrittenToolCall]]:
    """What was said, and the calls, of a whole answer: what a stream of it comes to."""
    stream = ToolStream(tools)
    said: list[str] = []
    calls: list[WrittenToolCall] = []
    for piece in [*stream.push(text), *stream.finish()]:
        if isinstance(piece, str):
            said.append(piece)
        elif isinstance(piece, CallBegun):
            calls.append(WrittenToolCall(piece.id, piece.name, ""))
        else:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.text)
    return "".join(said), calls


def as_delta(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Pieces as OpenAI's `delta`: a call's id and name come first, its arguments in as many parts as they came."""
    delta: dict[str, Any] = {}
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    if text:
        delta["content"] = text
    parts: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if isinstance(piece, CallBegun):
            parts[piece.index] = {"index": piece.index, **WrittenToolCall(piece.id, piece.name, "").as_dict()}
        elif isinstance(piece, CallArguments):
            part = parts.setdefault(piece.index, {"index": piece.index, "function": {"arguments": ""}})
            part["function"]["arguments"] += piece.text
    if parts:
        delta["tool_calls"] = list(parts.values())
    return delta


def tool_names(request: ChatRequest) -> frozenset[str] | None:
    """The names of the tools that may be called; None when none may."""
    return frozenset(tool.function.name for tool in request.tools or ()) if request.wants_tools else None


def forced_call_guide(request: ChatRequest) -> Guide | None:
    """`required` or a named function: the output must be a call, so a schema makes sure of it."""
    choice = request.tool_choice
    if choice in (None, "none", "auto") or not request.tools:
        if isinstance(choice, NamedTool) or choice == "required":
            raise ApiError(400, "tool_choice: asks for a call, but `tools` is empty", param="tool_choice")
        return None
    tools = request.tools
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            message = f"tool_choice: no tool is called {choice.function.name!r}"
            raise ApiError(400, message, param="tool_choice")
    options = [_call_schema(tool) for tool in tools]
    schema = options[0] if len(options) == 1 else {"anyOf": options}
    return Guide("json_schema", msgspec.json.encode(schema).decode())


def _call_schema(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            "arguments": parameters if isinstance(parameters, dict) else {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
