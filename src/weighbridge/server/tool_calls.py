"""Tool calls in the text of an answer: found, held back while they stream, and parsed."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from weighbridge.engine.request import Guide
from weighbridge.server.errors import ApiError
from weighbridge.server.protocol import ChatRequest, NamedTool, Tool

#: How models mark a call: Hermes and Qwen, Mistral, and Llama 3 (an object at the very start).
MARKERS = ("<tool_call>", "[TOOL_CALLS]")
_HERMES = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
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


def parse(text: str) -> tuple[str, list[ToolCall]]:
    """What was said before the calls, and the calls. Text that only looks like a call stays text."""
    for marker in MARKERS:
        at = text.find(marker)
        if at >= 0:
            calls = _calls(_HERMES.findall(text) if marker == "<tool_call>" else [text[at + len(marker) :]])
            return (text[:at].strip(), calls) if calls else (text, [])
    stripped = text.strip()
    if stripped.startswith(("{", "[")):
        calls = _calls([stripped])
        if calls:
            return "", calls
    return text, []


def _calls(sources: Sequence[str]) -> list[ToolCall]:
    calls = []
    for source in sources:
        try:
            value = json.loads(source.strip())
        except ValueError:
            return []
        for one in value if isinstance(value, list) else [value]:
            call = _call(one)
            if call is None:
                return []
            calls.append(call)
    return calls


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None:
        return None
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(f"call_{uuid.uuid4().hex[:24]}", value["name"], text)


class ToolStream:
    """Lets text through until a call begins; from there everything is kept for `finish`."""

    def __init__(self) -> None:
        self._held = ""
        self._shown = False
        self._calling = False

    def push(self, text: str) -> str:
        """The part of `text` that is surely not a call."""
        self._held += text
        if self._calling:
            return ""
        if not self._shown and self._held.lstrip()[:1] in ("{", "["):
            self._calling = True  # perhaps a call in Llama's way; `finish` decides
            return ""
        for marker in MARKERS:
            at = self._held.find(marker)
            if at >= 0:
                self._calling = True
                shown, self._held = self._held[:at], self._held[at:]
                return self._show(shown)
        keep = max((n for m in MARKERS for n in range(1, len(m)) if self._held.endswith(m[:n])), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return self._show(shown)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What is left: text to show, and the calls."""
        held, self._held = self._held, ""
        return parse(held) if self._calling else (held, [])

    def _show(self, text: str) -> str:
        self._shown = self._shown or bool(text.strip())
        return text


def tools_for_template(request: ChatRequest) -> list[dict[str, Any]] | None:
    return [msgspec.to_builtins(tool) for tool in request.tools or ()] if request.wants_tools else None


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
