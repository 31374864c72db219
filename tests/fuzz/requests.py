"""Fuzz targets of what clients ask in protocols that become chats: Responses, Messages and Ollama's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import msgspec

from tests.fuzz import seeds_of_requests as seeds
from tests.fuzz.forms.trees import changed_json
from tests.fuzz.target import Target
from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols import chat, completions, embeddings
from weighbridge.wire.protocols.messages import MessagesProtocol
from weighbridge.wire.protocols.ollama import PROTOCOLS as OLLAMA_PROTOCOLS
from weighbridge.wire.protocols.response.items import REFERENCE
from weighbridge.wire.protocols.responses import (
    LONGEST_KEY,
    LONGEST_VALUE,
    MAX_METADATA,
    ResponseRequest,
    ResponsesProtocol,
)

_RESPONSES, _MESSAGES = ResponsesProtocol(), MessagesProtocol()
_ROLES = {"system", "developer", "user", "assistant", "tool"}
_PICTURES = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "gif", "webp", "bmp"))


def _asked(protocol: WireProtocol, data: bytes) -> Ask:
    """What is asked; a request that is wrong is a 400, and its error can be told."""
    try:
        return protocol.read(data)
    except ApiError as error:
        if error.status != 400 or not json.loads(protocol.error(error)):
            raise AssertionError(
                f"an error that cannot be told, or not as the client's: {error.status}"
            ) from error
        raise


def _check_chat(ask: Ask) -> list[dict[str, Any]]:
    """What goes on is a chat, and every part of a message is of its type. Returns its messages."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(ask.fields))
    messages: list[dict[str, Any]] = found["messages"]
    assert found.get("model", "") == ask.model, found
    assert messages, "a chat says something"
    for message in messages:
        _check_message(message)
    return messages


def _check_message(message: Mapping[str, Any]) -> None:
    assert message["role"], message
    assert isinstance(message["role"], str), message
    for part in _parts(message.get("content")):
        kind = part["type"]
        assert kind in ("text", "image_url"), part
        held = part["text"] if kind == "text" else part["image_url"]["url"]
        assert isinstance(held, str), part
    for call in message.get("tool_calls", ()):
        assert isinstance(call["id"], str), call
        assert isinstance(call["function"]["name"], str), call
        assert isinstance(call["function"]["arguments"], str), call
    for name in ("reasoning_content", "refusal"):
        assert isinstance(message.get(name, ""), str), message
    if message["role"] == "tool":
        assert isinstance(message["tool_call_id"], str), message


def _parts(content: Any) -> list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return []
    assert isinstance(content, list), content
    return content


def _check_ours(messages: list[dict[str, Any]]) -> None:
    assert {message["role"] for message in messages} <= _ROLES, messages


def parse_responses(data: bytes) -> None:
    """A request for a response: a chat comes of it, and it can be told what was asked."""
    ask = _asked(_RESPONSES, data)
    own: ResponseRequest = ask.own
    metadata = own.written.metadata or {}
    assert len(metadata) <= MAX_METADATA, metadata
    assert all(len(key) <= LONGEST_KEY and len(value) <= LONGEST_VALUE for key, value in metadata.items())
    assert json.loads(own.input) == own.items
    if any(item["type"] == REFERENCE for item in own.items):
        return  # what they stand for is remembered by servers
    if own.is_remembered:
        own.complete(ask)
    _check_ours(_check_chat(ask))
    _RESPONSES.encoder(ask).end()


def parse_messages(data: bytes) -> None:
    """A request for a message: its chat ends with a turn that is not the model's."""
    ask = _asked(_MESSAGES, data)
    messages = _check_chat(ask)
    _check_ours(messages)
    assert not messages[-1].get("tool_calls"), "calls at the end wait for their results"
    assert (ask.max_tokens or 0) > 0, ask.max_tokens
    _MESSAGES.encoder(ask).end()


def parse_ollama(data: bytes) -> None:
    """A chat, a prompt or texts to embed; the first byte says which."""
    protocol = OLLAMA_PROTOCOLS[(data[0] if data else 0) % len(OLLAMA_PROTOCOLS)]
    ask = _asked(protocol, data[1:])
    protocol.encoder(ask)
    assert ask.model
    if ask.answer is not None:
        assert json.loads(ask.answer)["done"]
    elif ask.path == chat.PATH:
        messages = _check_chat(ask)
        written = json.loads(data[1:])
        _check_pictures(messages, written)
        _check_answered(messages, written)
    else:
        assert ask.path in (completions.PATH, embeddings.PATH), ask.path


def _check_pictures(messages: list[dict[str, Any]], written: dict[str, Any]) -> None:
    """A picture is of a kind that is known, unless its data URL says itself of which."""
    given = [*(written.get("messages") or ()), written]
    own = {str(image) for one in given for image in one.get("images") or () if str(image).startswith("data:")}
    for message in messages:
        for part in _parts(message["content"]):
            if part["type"] == "image_url" and (url := part["image_url"]["url"]) not in own:
                assert url.startswith(_PICTURES), url


def _check_answered(messages: list[dict[str, Any]], written: Any) -> None:
    """What tools said without naming a call answers one call each, as long as there are such."""
    pending: list[str] = []
    for message, said in zip(messages, written.get("messages") or (), strict=False):
        if message["role"] != "tool":
            calls = message.get("tool_calls")
            pending = [call["id"] for call in calls] if calls else pending
        elif said.get("tool_call_id") is not None:
            pending = [one for one in pending if one != message["tool_call_id"]]
        elif pending:
            assert message["tool_call_id"] in pending, (message, pending)
            pending.remove(message["tool_call_id"])


def _change_ollama(data: bytes, draw: Random) -> bytes | None:
    made = changed_json(data[1:], draw, seeds.OLLAMA_PIECES)
    return None if made is None else data[:1] + made


RESPONSES = Target(
    "responses",
    parse_responses,
    (ApiError,),
    seeds.responses,
    seeds.WORDS,
    lambda data, draw: changed_json(data, draw, seeds.RESPONSES_PIECES),
)
MESSAGES = Target(
    "messages",
    parse_messages,
    (ApiError,),
    seeds.messages,
    seeds.WORDS,
    lambda data, draw: changed_json(data, draw, seeds.MESSAGES_PIECES),
)
OLLAMA = Target("ollama", parse_ollama, (ApiError,), seeds.ollama, seeds.WORDS, _change_ollama)
