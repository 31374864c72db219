"""OpenAI's text completions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import FinishPart, Part, TextPart
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols.openai import (
    Common,
    NonNegative,
    OpenAIEncoder,
    Peek,
    Positive,
    ask_of,
    body_of,
    choice_index,
    datas,
    parts_of,
)

PATH = "/v1/completions"
#: A list of texts, or of lists of token ids.
_SEVERAL = re.compile(rb'\[\s*["[]')
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode

#: Prompts of one request; each takes a seat of its own.
MAX_PROMPTS = 2048


class CompletionRequest(Common, kw_only=True):
    """A completion as an engine reads it."""

    prompt: Any
    max_tokens: NonNegative | None = None  # 0: the prompt alone, for what is told of it
    logprobs: NonNegative | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Positive | None = None


class _CompletionPeek(Peek, kw_only=True):
    prompt: msgspec.Raw
    max_tokens: NonNegative | None = None
    echo: bool | None = None
    logprobs: NonNegative | None = None


class CompletionProtocol(WireProtocol):
    name, path = "completions", PATH

    def read(self, body: bytes) -> Ask:
        peek = decode(body, _CompletionPeek)
        ask = ask_of(PATH, peek, body)
        ask.choices *= _prompts(bytes(ask.fields["prompt"]))
        ask.echoes = bool(peek.echo)
        ask.scores_prompt |= ask.echoes and peek.logprobs is not None
        return ask

    def encoder(self, ask: Ask) -> CompletionEncoder:
        return CompletionEncoder(ask)


def _prompts(raw: bytes) -> int:
    """How many prompts there are: each gets its own output."""
    if not _SEVERAL.match(raw):
        return 1
    items = _decode_items(raw)
    if len(items) > MAX_PROMPTS:
        message = (
            f"prompt: has {len(items)} prompts, but one request takes at most {MAX_PROMPTS}; send several"
        )
        raise ApiError(400, message, param="prompt")
    return len(items)


class CompletionEncoder(OpenAIEncoder):
    def __init__(self, ask: Ask) -> None:
        super().__init__(
            ask, "cmpl", "text_completion", "text_completion", completion_parts, completion_answer_parts
        )

    def empty_choice(self, index: int) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": None}

    def add_to(self, choice: dict[str, Any], part: Part) -> None:
        if isinstance(part, TextPart):
            choice["text"] += part.text

    def chunk_choice(self, part: Part) -> dict[str, Any]:
        text = part.text if isinstance(part, TextPart) else ""
        finish = part.reason if isinstance(part, FinishPart) else None
        return {"index": getattr(part, "choice", 0), "text": text, "logprobs": None, "finish_reason": finish}


def _text_parts(choice: dict[str, Any]) -> list[Part]:
    text = choice.get("text")
    return [TextPart(text, choice_index(choice))] if text and isinstance(text, str) else []


def completion_parts(raw: bytes) -> Sequence[Part]:
    """The parts of `text_completion` events."""
    return parts_of(datas(raw), _text_parts)


def completion_answer_parts(body: bytes) -> Sequence[Part]:
    """The parts of a whole `text_completion`."""
    return parts_of([body_of(body)], _text_parts)
