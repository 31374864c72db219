"""Prompts as clients write them, checked and turned into token ids: chats, texts, ids."""

from __future__ import annotations

from typing import Any

from weighbridge.server.endpoint import ChatTokenizer
from weighbridge.server.engine.sampling import Limits
from weighbridge.server.tokens import chat_tokens
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.chat import ChatRequest


class PromptReader:
    """Reads prompts for one model. Raises NeverFits for one that is plainly longer than `longest` tokens."""

    def __init__(self, tokenizer: ChatTokenizer, limits: Limits, longest: int) -> None:
        self.limits = limits
        self._tokenizer = tokenizer
        self._longest = longest

    def chat(self, body: ChatRequest) -> list[int]:
        """Token ids of a chat. Raises ApiError for tools or messages that the model's template cannot show."""
        return chat_tokens(self._tokenizer, body, self._longest)

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
