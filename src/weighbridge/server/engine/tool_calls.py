"""Tools of a chat request, and the calls in its answer, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weighbridge.engine.request import Guide
from weighbridge.server.engine.sampling import schema_guide
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


def parse(text: str, tools: Iterable[str], forced: bool = False) -> tuple[str, list[WrittenToolCall]]:
    """What was said, and the calls, of a whole answer: what a stream of it comes to."""
    stream = ToolStream(tools, forced)
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
    if isinstance(request.tool_choice, NamedTool):
        return frozenset((request.tool_choice.function.name,))
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
    definitions: dict[str, Any] = {}
    try:
        options = [_call_schema(tool, number, definitions) for number, tool in enumerate(tools)]
    except RecursionError:
        raise ApiError(400, "tools: parameters are nested too deeply", param="tools") from None
    schema = options[0] if len(options) == 1 else {"anyOf": options}
    return schema_guide({**schema, "$defs": definitions} if definitions else schema)


def _call_schema(tool: Tool, number: int, definitions: dict[str, Any]) -> dict[str, Any]:
    """The object that a call is. Parameters that refer to parts of themselves go into `definitions`, whole."""
    parameters: Any = tool.function.parameters
    if not isinstance(parameters, dict):  # a function without parameters is called without arguments
        parameters = {"type": "object", "properties": {}}
    elif (moved := _moved(parameters, f"#/$defs/tool{number}")) != parameters:
        definitions[f"tool{number}"] = moved
        parameters = {"$ref": f"#/$defs/tool{number}"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, to: str) -> Any:
    """A schema with its references to itself as they are where it stands below another one."""
    if isinstance(schema, list):
        return [_moved(one, to) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _moved(value, to) for name, value in schema.items()}
    if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#"):
        made["$ref"] = to + ref[1:]
    return made
