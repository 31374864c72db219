"""OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.events import FinishPart, Part, ReasoningPart, RefusalPart, TextPart, ToolCallPart
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols.openai import (
    Common,
    NamedTool,
    NonNegative,
    OpenAIEncoder,
    Peek,
    Positive,
    Tool,
    ToolChoice,
    ask_of,
    body_of,
    datas,
    delta_of,
    message_parts,
    parts_of,
)

PATH = "/v1/chat/completions"


class ChatRequest(Common, kw_only=True):
    """A chat as an engine reads it."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: NonNegative | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None  # None: yes
    continue_final_message: bool | None = None
    echo: Literal[False] | None = None  # vLLM's: the beginning of an answer is not told again here

    @property
    def begun(self) -> str | None:
        """What is said already of the answer: the text of the last message, where it is to go on."""
        last = self.messages[-1]
        if not self.continue_final_message and not (
            last.get("role") == "assistant" and last.get("prefix") is True
        ):
            return None
        content = last.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        return "".join([str(one.get("text") or "") for one in parts if isinstance(one, dict)])

    @property
    def wants_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"


class _Message(Struct):
    role: Annotated[str, Meta(min_length=1)]


class _ChatPeek(Peek, kw_only=True):
    """A chat as a door reads it: what it says passes unseen."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None


class AllowedTools(Struct):
    """Those of the tools that may be called, and whether one of them must be."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedToolChoice(Struct):
    """OpenAI's choice of several tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class _Offer(Struct):
    tool_choice: AllowedToolChoice
    tools: list[Tool] | None = None


def _allow(ask: Ask, body: bytes) -> None:
    """Say a choice of several tools in words that every server knows: as a list of those alone, and the mode."""
    offer = decode(body, _Offer)
    chosen = offer.tool_choice.allowed_tools
    names = {one.function.name for one in chosen.tools}
    raws = msgspec.json.decode(ask.fields["tools"], type=list[msgspec.Raw]) if offer.tools else []
    pairs = zip(offer.tools or (), raws, strict=True)
    allowed = [raw for tool, raw in pairs if tool.function.name in names]
    ask.fields["tools"] = msgspec.Raw(msgspec.json.encode(allowed))
    ask.fields["tool_choice"] = msgspec.Raw(msgspec.json.encode(chosen.mode))
    ask.raw = b""


class ChatProtocol(WireProtocol):
    name, path = "chat", PATH

    def read(self, body: bytes) -> Ask:
        peek = decode(body, _ChatPeek)
        ask = ask_of(PATH, peek, body)
        ask.max_tokens = peek.max_completion_tokens or peek.max_tokens
        if (choice := ask.fields.get("tool_choice")) is not None and b"allowed_tools" in bytes(choice):
            _allow(ask, body)
        return ask

    def encoder(self, ask: Ask) -> ChatEncoder:
        return ChatEncoder(ask)


class ChatEncoder(OpenAIEncoder):
    def __init__(self, ask: Ask) -> None:
        super().__init__(
            ask, "chatcmpl", "chat.completion.chunk", "chat.completion", chat_parts, chat_answer_parts
        )

    def empty_choice(self, index: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": ""}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": None}

    def add_to(self, choice: dict[str, Any], part: Part) -> None:
        message = choice["message"]
        for key, part_type in (
            ("content", TextPart),
            ("reasoning_content", ReasoningPart),
            ("refusal", RefusalPart),
        ):
            if isinstance(part, part_type):
                message[key] = (message.get(key) or "") + part.text
        if isinstance(part, ToolCallPart):
            calls = message.setdefault("tool_calls", [])
            while len(calls) <= part.index:
                calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call = calls[part.index]
            call["id"] = call["id"] or part.id
            call["function"]["name"] = call["function"]["name"] or part.name
            call["function"]["arguments"] += part.arguments

    def chunk_choice(self, part: Part) -> dict[str, Any]:
        finish = part.reason if isinstance(part, FinishPart) else None
        index = getattr(part, "choice", 0)
        return {"index": index, "delta": delta_of(part), "logprobs": None, "finish_reason": finish}


def chat_parts(raw: bytes) -> Sequence[Part]:
    """The parts of `chat.completion.chunk` events."""
    return parts_of(datas(raw), lambda choice: message_parts(choice, "delta"))


def chat_answer_parts(body: bytes) -> Sequence[Part]:
    """The parts of a whole `chat.completion`."""
    return parts_of([body_of(body)], lambda choice: message_parts(choice, "message"))
