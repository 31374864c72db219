"""Tokens of prompts: `/tokenize`, `/detokenize`, and the counts that Anthropic's and OpenAI's clients ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.server.endpoint import (
    ChatTokenizer,
    Endpoint,
    HttpService,
    NoTokenizer,
    json_bytes,
    json_response,
)
from weighbridge.wire.body import LONG_BODY, apart, decode, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.protocols import messages
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.token_requests import DetokenizeRequest, TokenizeRequest

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"


class TokenEndpoints:
    """Where this process has no tokenizer of a model, a replica of it is asked."""

    def __init__(self, service: HttpService) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("POST", TOKENIZE, self.tokenize),
            Endpoint("POST", DETOKENIZE, self.detokenize),
            Endpoint("POST", messages.COUNT_PATH, self.count, speaks=messages.MessagesProtocol()),
        ]

    async def tokenize(self, request: Request) -> Response:
        body = await self._body(request)
        return json_bytes(
            await self._tokens(TOKENIZE, body, await apart(len(body), decode, body, TokenizeRequest))
        )

    async def detokenize(self, request: Request) -> Response:
        body = await self._body(request)
        read = await apart(len(body), decode, body, DetokenizeRequest)
        try:
            return json_bytes(await apart(len(body), self._detokenized, read))
        except NoTokenizer:
            return json_bytes(await self._service.asked_behind(DETOKENIZE, read.model or "", _fields(body)))

    async def count(self, request: Request) -> Response:
        """Tokens of a message's prompt: as many as the message itself would be weighed with."""
        body = await self._body(request)
        return json_response({"input_tokens": await self.counted(await apart(len(body), _chat_of, body))})

    async def counted(self, chat: bytes) -> int:
        """How many tokens the prompt of a chat has."""
        read = await apart(len(chat), decode, chat, TokenizeRequest)
        return msgspec.json.decode(await self._tokens(TOKENIZE, chat, read), type=_Counted).count

    async def _tokens(self, path: str, body: bytes, read: TokenizeRequest) -> bytes:
        try:
            # Never on the loop: a text of a few bytes may take long where a tokenizer encodes apart.
            return await apart(max(len(body), LONG_BODY), self._tokenized, read)
        except NoTokenizer:
            return await self._service.asked_behind(path, read.model or "", _fields(body))

    def _tokenized(self, body: TokenizeRequest) -> bytes:
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either `prompt` or `messages`", param="prompt")
        tokenizer, longest = self._service.tokenizer(body.model or "")
        if body.prompt is not None:
            tokens = tokenizer.encode(body.prompt, body.add_special_tokens is not False)
        else:
            tokens = chat_tokens(tokenizer, _as_chat(body))
        return msgspec.json.encode({"tokens": tokens, "count": len(tokens), "max_model_len": longest})

    def _detokenized(self, body: DetokenizeRequest) -> bytes:
        tokenizer, _ = self._service.tokenizer(body.model or "")
        _check_known(body, tokenizer)
        text = tokenizer.decode(body.tokens, skip_special_tokens=False)
        return msgspec.json.encode({"prompt": text})

    async def _body(self, request: Request) -> bytes:
        return await read_body(request.receive, headers_of(request.headers.raw), self._service.max_body)


class _Counted(Struct):
    count: int


def _check_known(body: DetokenizeRequest, tokenizer: ChatTokenizer) -> None:
    if (largest := max(body.tokens, default=0)) >= tokenizer.vocab_size:
        last = tokenizer.vocab_size - 1
        raise ApiError(400, f"tokens: {largest} is not in the vocabulary (0 to {last})", param="tokens")


def _as_chat(body: TokenizeRequest) -> ChatRequest:
    return ChatRequest(
        messages=body.messages or [],
        tools=body.tools,
        tool_choice=body.tool_choice,
        chat_template_kwargs=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
    )


def _chat_of(body: bytes) -> bytes:
    return msgspec.json.encode(messages.chat_of(decode(body, messages.CountRequest)))


def _fields(body: bytes) -> Mapping[str, Any]:
    """The fields of a body that was read before, as they go on."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    return fields


# -- chats -----------------------------------------------------------------------------------------------


def chat_tokens(tokenizer: ChatTokenizer, body: ChatRequest, longest: int | None = None) -> list[int]:
    """Token ids of a chat. Raises ApiError for tools or messages that the template cannot show, and NeverFits for more
    than `longest` tokens."""
    messages = [checked_message(message, index) for index, message in enumerate(body.messages)]
    if body.continue_final_message:
        messages[-1] = begun_message(messages[-1])
    tools = [msgspec.to_builtins(tool) for tool in body.tools or ()] if body.wants_tools else None
    return tokenizer.encode_chat(
        messages, tools, body.add_generation_prompt is not False, body.chat_template_kwargs, most=longest
    )


def begun_message(message: dict[str, Any]) -> dict[str, Any]:
    """The last message as an answer that is to go on. Raises ApiError for one that is none."""
    if message["role"] != "assistant" or message.get("tool_calls"):
        what = "must be a text of the assistant's where continue_final_message is set"
        raise ApiError(400, f"messages: the last one {what}", param="messages")
    return {**message, "prefix": True}


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
    calls = message.get("tool_calls")
    if not calls:
        return {**message, "content": content or ""}
    if not isinstance(calls, list):
        raise ApiError(400, f"messages[{index}].tool_calls: must be a list", param="messages")
    return {**message, "content": content or "", "tool_calls": [_parsed(call) for call in calls]}


def _parsed(call: Any) -> Any:
    """Templates expect the arguments of earlier calls as objects, OpenAI sends them as text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except (
        ValueError,
        RecursionError,
    ):  # no JSON, or deeper than any call: the template has it as it was written
        return call
