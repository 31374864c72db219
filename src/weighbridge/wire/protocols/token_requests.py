"""Requests of the tokenizer's endpoints: a text or a chat into tokens, and back."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from weighbridge.wire.protocols.openai import NonNegative, Tool, ToolChoice


class TokenizeRequest(Struct):
    """A text, or a chat with all that is in its prompt."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None  # None: yes
    model: str | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None  # None: yes
    continue_final_message: bool | None = None


class DetokenizeRequest(Struct):
    tokens: list[NonNegative]
    model: str | None = None
