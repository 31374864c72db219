"""Tools of a chat request, and the calls in its answer, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from weighbridge.engine.request import Guide
from weighbridge.server.engine.constraints.guides import schema_guide
from weighbridge.server.engine.constraints.schemas import closed
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.pieces import CallArguments, CallBegun, Piece, Thought
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


@dataclass(frozen=True, slots=True)
class WholeMessage:
    """What was said, thought and called in a whole answer."""

    text: str
    thought: str
    calls: Sequence[WrittenToolCall]


def parse(text: str, reading: AnswerReading) -> WholeMessage:
    """A whole answer: what a stream of it comes to."""
    stream = reading.stream()
    said: list[str] = []
    thoughts: list[str] = []
    calls: list[WrittenToolCall] = []
    arguments: list[list[str]] = []
    for piece in [*stream.push(text), *stream.finish()]:
        if isinstance(piece, str):
            said.append(piece)
        elif isinstance(piece, Thought):
            thoughts.append(piece.text)
        elif isinstance(piece, CallBegun):
            calls.append(WrittenToolCall(piece.id, piece.name, ""))
            arguments.append([])
        else:
            arguments[-1].append(piece.text)
    whole = [replace(call, arguments="".join(parts)) for call, parts in zip(calls, arguments, strict=True)]
    return WholeMessage("".join(said), "".join(thoughts), whole)


def as_delta(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Pieces as OpenAI's `delta`: a call's id and name come first, its arguments in as many parts as they came."""
    delta: dict[str, Any] = {}
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    if text:
        delta["content"] = text
    if thought := "".join(piece.text for piece in pieces if isinstance(piece, Thought)):
        delta["reasoning_content"] = thought
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


def offered_tools(request: ChatRequest) -> Mapping[str, Any] | None:
    """The schemas of the tools that may be called, by name; None when none may."""
    if not request.wants_tools:
        return None
    schemas = {tool.function.name: tool.function.parameters for tool in request.tools or ()}
    if isinstance(request.tool_choice, NamedTool):
        name = request.tool_choice.function.name
        return {name: schemas.get(name)}
    return schemas


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
    return schema_guide(_calls_schema(tools))


def call_or_text_guide(request: ChatRequest) -> Guide:
    """Where a model was told in words how to call: an answer that begins with `{` is a call of a tool that was
    offered, with the arguments that it has; any other is text."""
    schema = closed(_calls_schema(request.tools or []))
    text = r"text: /([^{\s](.|\n)*)?/"
    return Guide("lark", f"start: text | call\n{text}\ncall: %json {msgspec.json.encode(schema).decode()}")


def _calls_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """The schema of a call of any of these."""
    definitions: dict[str, Any] = {}
    try:
        options = [_call_schema(tool, number, definitions) for number, tool in enumerate(tools)]
    except RecursionError:
        raise ApiError(400, "tools: parameters are nested too deeply", param="tools") from None
    schema = options[0] if len(options) == 1 else {"anyOf": options}
    return {**schema, "$defs": definitions} if definitions else schema


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
