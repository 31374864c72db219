"""Prompts as clients write them, checked: chats, texts, token ids."""

from __future__ import annotations

import json
from typing import Any

from weighbridge.server.engine.sampling import Limits
from weighbridge.wire.errors import ApiError


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
