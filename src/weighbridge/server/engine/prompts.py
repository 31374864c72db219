"""Prompts as clients write them, checked and turned into token ids: chats, texts, ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from weighbridge.server.engine.sampling import Limits
from weighbridge.server.engine.tool_calls import tools_for_template
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


class PromptReader:
    """Reads prompts for one model. Raises NeverFits for one that is plainly longer than `longest` tokens."""

    def __init__(self, tokenizer: ChatTokenizer, limits: Limits, longest: int) -> None:
        self.limits = limits
        self._tokenizer = tokenizer
        self._longest = longest

    def chat(self, body: ChatRequest) -> list[int]:
        """Token ids of a chat. Raises ApiError for tools or messages that the model's template cannot show."""
        if body.wants_tools and not self._tokenizer.supports_tools and body.tool_choice in (None, "auto"):
            raise ApiError(400, "tools: this model's chat template has no place for tools", param="tools")
        messages = [checked_message(message, index) for index, message in enumerate(body.messages)]
        tools, variables = tools_for_template(body), body.chat_template_kwargs
        return self._tokenizer.encode_chat(
            messages, tools, body.add_generation_prompt, variables, most=self._longest
        )

    def texts(self, prompt: Any, field: str, largest: int | None = None) -> list[list[int]]:
        """Token ids of one prompt or several, texts or ids.

        `largest`: so many at the most. Raises ApiError naming `field`.
        """
        if largest is not None and isinstance(prompt, list) and len(prompt) > largest:
            check_count(prompt, largest, field)
        prompts = prompts_of(prompt, self.limits, field)
        encode, most = self._tokenizer.encode, self._longest
        return [encode(item, most=most) if isinstance(item, str) else item for item in prompts]


def check_count(prompt: list[Any], largest: int, field: str) -> None:
    """Raise ApiError for too many texts; one list of token ids is one text."""
    if not isinstance(prompt[0], int):
        message = f"{field}: has {len(prompt)} texts, but one request takes at most {largest}; send several"
        raise ApiError(400, message, param=field)


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
