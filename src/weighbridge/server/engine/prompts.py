"""Prompts as clients write them, checked and turned into token ids: chats, texts, ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from weighbridge.server.engine.sampling import Limits
from weighbridge.server.engine.tool_calls import tools_for_template
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.chat import ChatRequest

#: Texts longer than this are tokenised in a thread, so that the event loop goes on.
LONG_TEXT = 20_000


class ChatTokenizer(Protocol):
    """What the server needs of a tokenizer."""

    vocab_size: int

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token_text(self, token: int) -> str: ...
    def encode_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]: ...
    @property
    def supports_tools(self) -> bool: ...


class PromptReader:
    """Reads prompts for one model."""

    def __init__(self, tokenizer: ChatTokenizer, limits: Limits) -> None:
        self.limits = limits
        self._tokenizer = tokenizer

    async def chat(self, body: ChatRequest) -> list[int]:
        """Token ids of a chat. Raises ApiError for tools or messages that the model's template cannot show."""
        if body.wants_tools and not self._tokenizer.supports_tools and body.tool_choice in (None, "auto"):
            raise ApiError(400, "tools: this model's chat template has no place for tools", param="tools")
        messages = [checked_message(message, index) for index, message in enumerate(body.messages)]
        options = body.chat_template_kwargs or {}
        size = sum(len(str(message.get("content"))) for message in messages)

        def encode() -> list[int]:
            return self._tokenizer.encode_chat(
                messages, tools_for_template(body), body.add_generation_prompt, options
            )

        return await asyncio.to_thread(encode) if size > LONG_TEXT else encode()

    async def texts(self, prompt: Any, field: str, largest: int | None = None) -> list[list[int]]:
        """Token ids of one prompt or several, texts or ids; much text is encoded in a thread.

        `largest`: so many at the most. Raises ApiError naming `field`.
        """
        prompts = prompts_of(prompt, self.limits, field)
        if largest is not None and len(prompts) > largest:
            message = (
                f"{field}: has {len(prompts)} texts, but one request takes at most {largest}; send several"
            )
            raise ApiError(400, message, param=field)
        encode = self._tokenizer.encode

        def tokenise() -> list[list[int]]:
            return [encode(item) if isinstance(item, str) else item for item in prompts]

        size = sum(len(item) for item in prompts if isinstance(item, str))
        return await asyncio.to_thread(tokenise) if size > LONG_TEXT else tokenise()


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


def prompts_of(prompt: Any, limits: Limits, field: str = "prompt") -> list[str | list[int]]:
    """One prompt or several, as text or token ids. Raises ApiError naming what is wrong, and in which of them."""
    if isinstance(prompt, str):
        return [_not_empty(prompt, field, field)]
    if not isinstance(prompt, list) or not prompt:
        message = f"{field}: must be a string, token ids, or a non-empty list of either"
        raise ApiError(400, message, param=field)
    if all(isinstance(one, str) for one in prompt):
        return [_not_empty(one, f"{field}[{index}]", field) for index, one in enumerate(prompt)]
    if all(isinstance(one, list) for one in prompt):
        return [_token_ids(one, limits, f"{field}[{index}]", field) for index, one in enumerate(prompt)]
    return [_token_ids(prompt, limits, field, field)]


def _not_empty(prompt: str, place: str, field: str) -> str:
    if not prompt:
        raise ApiError(400, f"{place}: must not be empty", param=field)
    return prompt


def _token_ids(ids: list[Any], limits: Limits, place: str, field: str) -> list[int]:
    if not ids:
        raise ApiError(400, f"{place}: must not be empty", param=field)
    for one in ids:
        if type(one) is not int or not 0 <= one < limits.vocab_size:
            message = f"{place}: {one!r} is not a token id (0 to {limits.vocab_size - 1})"
            raise ApiError(400, message, param=field)
    return ids
