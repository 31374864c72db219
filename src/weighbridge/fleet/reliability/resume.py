"""Goes on with a stream whose replica died: what was sent is prefilled elsewhere, and the answer continues.

With a tokenizer, prompt and sent text become token ids for `/v1/completions`, which any server can continue,
and its events are turned back into those of a chat. Without one, only a completion of plain text can go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from weighbridge.errors import BadInput
from weighbridge.fleet.load.weigher import Counter
from weighbridge.wire.ask import Ask, Fields
from weighbridge.wire.protocols.constraints import GUIDES

_encode = msgspec.json.encode

#: Fields of a chat that a completion does not have, or that mean something else there.
_CHAT_ONLY = (
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "logprobs",
    "chat_template_kwargs",
    "add_generation_prompt",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
)
#: What cannot be continued from its text alone: parsers and grammars would have to know where they were.
_NEVER = (
    "tools",
    "response_format",
    "structured_outputs",
    *GUIDES,
    "bad_words",
    "logprobs",
    "prompt_logprobs",
    "echo",
    "continue_final_message",
    "functions",
)


class NotResumable(Exception):
    """Why a stream cannot go on elsewhere."""


class Resumption:
    """Remembers what a stream has sent (as it was, undecoded), and asks for the rest when that is needed."""

    def __init__(self, ask: Ask, tokenizer: Counter | None) -> None:
        self._ask = ask
        self._tokenizer = tokenizer
        self._sent: list[bytes] = []
        self._text = ""
        self._head: dict[str, Any] = {}
        self._continuing = False
        self._before = 0  # output tokens sent before it went on elsewhere

    @property
    def before(self) -> int:
        """Output tokens that were sent before it went on elsewhere."""
        return self._before

    def passing(self, chunk: bytes) -> bytes:
        """A chunk on its way to the client; one from another replica is made to look like those before it."""
        if not self._continuing:
            self._sent.append(chunk)
            return chunk
        return b"".join([self._translated(event) for event in _events(chunk)])

    def next_ask(self, produced: int) -> Ask:
        """The request for the rest. Raises NotResumable."""
        ask = self._ask
        refused = [name for name in _NEVER if _given(ask.fields, name)]
        if refused or ask.choices != 1:
            raise NotResumable(f"a stream with {refused[0] if refused else 'n > 1'} cannot be continued")
        self._read_sent()
        self._before = self._count(produced)
        fields = {name: raw for name, raw in ask.fields.items() if name not in _CHAT_ONLY}
        fields["prompt"] = msgspec.Raw(_encode(self._prompt()))
        if ask.max_tokens is not None:
            if self._before >= ask.max_tokens:
                raise NotResumable("all its tokens had been sent")
            fields["max_tokens"] = msgspec.Raw(_encode(ask.max_tokens - self._before))
        self._continuing = True
        return replace(ask, path="/v1/completions", fields=fields)

    def _count(self, produced: int) -> int:
        return len(self._tokenizer.encode(self._text, False)) if self._tokenizer is not None else produced

    def _prompt(self) -> str | list[int]:
        value = msgspec.json.decode(self._ask.prompt or b'""')
        if self._ask.path.endswith("/completions") and "/chat/" not in self._ask.path:
            if isinstance(value, str):
                return value + self._text
            if self._tokenizer is not None and isinstance(value, list) and all(type(t) is int for t in value):
                return [*value, *self._tokenizer.encode(self._text, False)]
            raise NotResumable("its prompt is not one text")
        if self._tokenizer is None:
            raise NotResumable("a chat can be continued only with the model's tokenizer; set `tokenizer:`")
        variables = msgspec.json.decode(self._ask.fields.get("chat_template_kwargs", msgspec.Raw(b"{}")))
        try:
            return self._tokenizer.encode_chat(value, None, True, variables, self._text)
        except BadInput as error:
            raise NotResumable(f"the chat template refuses it: {error}") from error

    def _read_sent(self) -> None:
        """The text of what was sent since the last time, and how its events began."""
        for event in (event for chunk in self._sent for event in _events(chunk)):
            body = _body(event)
            if body is None:
                continue
            if not self._head:
                self._head = {
                    name: body[name] for name in ("id", "object", "created", "model") if name in body
                }
            for choice in body.get("choices") or ():
                delta = choice.get("delta")
                text = delta.get("content") if isinstance(delta, Mapping) else choice.get("text")
                if isinstance(delta, Mapping) and any(
                    delta.get(n) for n in ("tool_calls", "reasoning_content")
                ):
                    raise NotResumable("it was calling a tool or reasoning")
                self._text += text or ""
        self._sent.clear()

    def _translated(self, event: bytes) -> bytes:
        body = _body(event)
        if body is None:
            return event
        choices = [self._choice(choice) for choice in body.get("choices") or ()]
        for choice in body.get("choices") or ():
            self._text += choice.get("text") or ""
        out = {**self._head, "choices": choices}
        usage = body.get("usage")
        if isinstance(usage, dict):
            out["usage"] = self._usage(usage)
        return b"data: " + _encode(out) + b"\n\n"

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        if self._head.get("object") != "chat.completion.chunk":
            return choice
        content = {"content": choice["text"]} if choice.get("text") else {}
        return {"index": 0, "delta": content, "logprobs": None, "finish_reason": choice.get("finish_reason")}

    def _usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Write usage as if one replica had done it all: what was sent before counts as output, not as prompt."""
        prompt, output = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        fixed = {
            **usage,
            "prompt_tokens": max(prompt - self._before, 0),
            "completion_tokens": output + self._before,
        }
        return {**fixed, "total_tokens": prompt + output}


def _given(fields: Fields, name: str) -> bool:
    raw = fields.get(name)
    return raw is not None and bytes(raw) not in (b"null", b"false", b"[]", b'{"type":"text"}')


def _events(chunk: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in chunk.replace(b"\r\n", b"\n").split(b"\n\n") if event]


def _body(event: bytes) -> dict[str, Any] | None:
    """The JSON of an event; None for comments and for the last one."""
    text = event.strip().removeprefix(b"data:").strip()
    if not text.startswith(b"{"):
        return None
    value = msgspec.json.decode(text)
    return value if isinstance(value, dict) else None
