"""A chat as a route sees it: what of it may be forwarded, what it weighs, which abilities it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.fleet.abilities.ability import are_tools, is_forced, part_kinds
from weighbridge.routes.policy import Level
from weighbridge.routes.privacy.fields import EDGE_ONLY, FORWARDED, held_in
from weighbridge.wire.ask import Ask, Fields
from weighbridge.wire.body import plain
from weighbridge.wire.protocols.constraints import refuse_unkept

MEDIA_BYTES = 6000  # what a picture weighs: about 1,500 tokens at four bytes each

_ALLOWED = {Level.EDGE: FORWARDED | EDGE_ONLY, Level.CLOUD: FORWARDED}

#: What parts of messages need, by their type.
_PARTS = {"image_url": "images", "input_audio": "audio", "file": "files"}


class RouteRequest:
    """A request for a route. Raises BadInput for messages that no place could answer."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        refuse_unkept(ask.fields)
        #: The fields that may go to the edge, decoded.
        self.body: dict[str, Any] = _decoded(self.fields(Level.EDGE))
        self.messages: Sequence[Mapping[str, Any]] = _messages(self.body.get("messages"))
        #: UTF-8 bytes of all text that reaches the model.
        self.size = sum(_size(self.body.get(name)) for name in ("messages", "tools", "response_format"))

    @property
    def sent_bytes(self) -> int:
        """Of all that was sent, whatever it is."""
        return sum(memoryview(raw).nbytes for raw in self.ask.fields.values())

    def fields(self, level: Level) -> Fields:
        """The fields that may go to a place of this level, as the client wrote them."""
        allowed = _ALLOWED[level]
        return {
            name: raw for name, raw in self.ask.fields.items() if name in allowed and bytes(raw) != b"null"
        }

    def forwarded(self, level: Level) -> dict[str, Any]:
        """The same, decoded."""
        allowed = _ALLOWED[level]
        return {name: value for name, value in self.body.items() if name in allowed}

    @property
    def max_prompt_tokens(self) -> int:
        """No byte-level tokenizer makes more tokens than bytes; each message adds a few of its template's."""
        return self.size + 8 * len(self.messages) + 8

    @cached_property
    def prompt(self) -> str:
        """The last user message: what is asked, and so what difficulty is judged by."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return text_of(message)
        return text_of(self.messages[-1])

    @property
    def held(self) -> str:
        """What holds its answer to something and may not leave, by name; empty where nothing does."""
        return ", ".join(held_in(self.body))

    @property
    def deadline_seconds(self) -> float | None:
        return None if self.ask.deadline_ms is None else self.ask.deadline_ms / 1e3

    @classmethod
    def read(cls, ask: Ask) -> RouteRequest:
        """The request with all that is worked out of it, so that a long one can be read on a thread of its own."""
        request = cls(ask)
        _ = request.needs, request.prompt
        return request

    @cached_property
    def needs(self) -> frozenset[str]:
        """The abilities that a place must have."""
        wanted = set()
        choice = self.body.get("tool_choice")
        if are_tools(self.body.get("tools")) and choice != "none":
            wanted.add("forced_tools" if is_forced(choice) else "tools")
        return frozenset(wanted | {_PARTS[kind] for kind in part_kinds(self.messages) if kind in _PARTS})


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, parts joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def _decoded(fields: Fields) -> dict[str, Any]:
    try:
        return {name: plain(raw, name) for name, raw in fields.items()}
    except RecursionError:
        raise BadInput("the request body is nested too deeply") from None


def _messages(messages: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadInput("messages: must be a non-empty list of objects", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise BadInput(f"messages[{index}].role: must be a string", param="messages")
        if not isinstance(message.get("content"), str | list | None):
            raise BadInput(f"messages[{index}].content: must be a string or a list", param="messages")
    return messages


def _size(value: Any) -> int:
    """Bytes of all strings, keys included; pictures and sound at a flat rate. However deep the value is."""
    size, left = 0, [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            size += len(one.encode("utf-8", "surrogatepass"))
        elif isinstance(one, dict):
            if one.get("type") in ("image_url", "input_audio"):
                size += MEDIA_BYTES
            else:
                size += 4 * len(one)
                left += [*one, *one.values()]
        elif isinstance(one, list):
            size += 2 * len(one)
            left += one
        else:
            size += 8
    return size
