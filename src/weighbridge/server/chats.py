"""Chats as clients write them, checked and turned into the token ids of a model's prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.chat import ChatRequest


class ChatTokenizer(Protocol):
    """What the server needs of a tokenizer."""

    vocab_size: int

    def encode(self, text: str, add_special_tokens: bool = True, *, most: int | None = None) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token_text(self, token: int) -> str: ...
    def encode_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        *,
        most: int | None = None,
    ) -> list[int]: ...
    @property
    def supports_tools(self) -> bool: ...


def chat_tokens(tokenizer: ChatTokenizer, body: ChatRequest, longest: int | None = None) -> list[int]:
    """Token ids of a chat. Raises ApiError for tools or messages that the template cannot show, and NeverFits for more
    than `longest` tokens."""
    if body.wants_tools and not tokenizer.supports_tools and body.tool_choice in (None, "auto"):
        raise ApiError(400, "tools: this model's chat template has no place for tools", param="tools")
    messages = [checked_message(message, index) for index, message in enumerate(body.messages)]
    tools = [msgspec.to_builtins(tool) for tool in body.tools or ()] if body.wants_tools else None
    return tokenizer.encode_chat(
        messages, tools, body.add_generation_prompt, body.chat_template_kwargs, most=longest
    )


def checked_message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message a template can read. Raises ApiError naming what is missing."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise ApiError(
            400, f"messages[{index}]: the field 'role' is required and must be a string", param="messages"
        )
    if not isinstance(content, str | list) and not (content is None and role == "assistant"):
        message_text = f"messages[{index}].content: must be a string or a list of parts"
        raise ApiError(400, message_text, param="messages")
    if not message.get("tool_calls"):
        return {**message, "content": content or ""}
    return {
        **message,
        "content": content or "",
        "tool_calls": [_parsed(call) for call in message["tool_calls"]],
    }


def _parsed(call: Any) -> Any:
    """Templates expect the arguments of earlier calls as objects, OpenAI sends them as text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:
        return call
