"""Engine deltas as OpenAI's JSON: whole answers and stream chunks of both endpoints."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.engine.api import Delta
from weighbridge.engine.request import Embedding, FinishReason, TokenLogprob
from weighbridge.server.engine.tool_calls import WrittenToolCall, as_delta, parse
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.pieces import PieceStream
from weighbridge.wire.usage import usage_fields

_encode = msgspec.json.Encoder().encode

TokenText = Callable[[int], str]


@dataclass(slots=True)
class Gathered:
    """One choice of a whole answer."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None
    stopped_by: str | int | None = None
    embedding: Embedding | None = None

    @property
    def size(self) -> int:
        """About how many characters and numbers it is written with."""
        size = sum(map(len, self.text)) + sum(8 * (1 + len(item.top)) for item in self.logprobs)
        return size if self.embedding is None else size + 8 * len(self.embedding.vector)


def finish_name(finish: FinishReason | None, called: bool = False) -> str | None:
    """OpenAI's word. A deadline that cut an answer short reads as a length."""
    if finish is None:
        return None
    if called and finish is FinishReason.STOP:
        return "tool_calls"
    return "length" if finish is FinishReason.DEADLINE else finish.value


class Format(ABC):
    """What both endpoints share. A format belongs to one request; streamed choices keep their state here."""

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(self, model: str, token_text: TokenText, with_logprobs: bool) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.model = model
        self.created = int(time.time())
        self._token_text = token_text
        self._with_logprobs = with_logprobs
        head = {"id": self.id, "object": self.chunk_object, "created": self.created, "model": model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['

    def opening(self, choices: int) -> bytes:
        """What a stream begins with."""
        return b""

    @abstractmethod
    def chunk(self, delta: Delta) -> bytes:
        """Server-sent events of one delta; empty when there is nothing to show yet."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._head + b'],"usage":' + _encode(usage_fields(usage)) + b"}\n\n"

    def whole(self, choices: Sequence[Gathered], usage: Usage) -> bytes:
        answer = {
            "id": self.id,
            "object": self.whole_object,
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(index, one) for index, one in enumerate(choices)],
            "usage": usage_fields(usage),
        }
        return _encode(answer)

    @abstractmethod
    def _choice(self, index: int, gathered: Gathered) -> dict[str, Any]: ...

    def _event(self, choice: dict[str, Any]) -> bytes:
        return self._head + _encode(choice) + b"]}\n\n"


class ChatFormat(Format):
    """`chat.completion` and its chunks. `reading`: how calls and thoughts are parsed out of the text."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self, model: str, token_text: TokenText, with_logprobs: bool, reading: AnswerReading
    ) -> None:
        super().__init__(model, token_text, with_logprobs)
        self._reading = reading
        self._is_plain = reading.is_plain
        self._streams: dict[int, PieceStream] = {}
        self._called: set[int] = set()  # choices that have called a tool

    def opening(self, choices: int) -> bytes:
        first = {"role": "assistant", "content": ""}
        return b"".join(
            self._event({"index": index, "delta": first, "logprobs": None, "finish_reason": None})
            for index in range(choices)
        )

    def chunk(self, delta: Delta) -> bytes:
        content = {"content": delta.text} if delta.text else {}
        if not self._is_plain:
            content = self._parsed(delta)
        if not (content or delta.finish or delta.logprobs):
            return b""
        if not content and not delta.finish:
            content = {"content": ""}
        choice = {
            "index": delta.index,
            "delta": content,
            "logprobs": self._logprobs(delta.logprobs),
            "finish_reason": finish_name(delta.finish, delta.index in self._called),
            **_stopped_by(delta.stopped_by),
        }
        return self._event(choice)

    def _parsed(self, delta: Delta) -> dict[str, Any]:
        """What is certain of a choice's text, thoughts and calls, now that `delta` has come."""
        stream = self._streams.get(delta.index)
        if stream is None:
            stream = self._streams[delta.index] = self._reading.stream()
        pieces = [*stream.push(delta.text)]
        if delta.finish is not None:
            pieces += stream.finish()
        content = as_delta(pieces)
        if "tool_calls" in content:
            self._called.add(delta.index)
        return content

    def _choice(self, index: int, gathered: Gathered) -> dict[str, Any]:
        text = "".join(gathered.text)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        calls: Sequence[WrittenToolCall] = ()
        if not self._is_plain:
            read = parse(text, self._reading)
            calls = read.calls
            message["content"] = read.text
            if read.thought:
                message["reasoning_content"] = read.thought
            if calls:
                message |= {"content": read.text or None, "tool_calls": [call.as_dict() for call in calls]}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(gathered.logprobs),
            "finish_reason": finish_name(gathered.finish, bool(calls)),
            **_stopped_by(gathered.stopped_by),
        }

    def _logprobs(self, items: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if not self._with_logprobs or items is None:
            return None
        return {"content": [{**self._one(i.token, i.logprob), "top_logprobs": self._top(i)} for i in items]}

    def _top(self, item: TokenLogprob) -> list[dict[str, Any]]:
        return [self._one(token, logprob) for token, logprob in item.top]

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token_text(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


class TextFormat(Format):
    """`text_completion`. `echo`: the prompt's text comes first."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self, model: str, token_text: TokenText, with_logprobs: bool, echo: str = "", first_index: int = 0
    ) -> None:
        super().__init__(model, token_text, with_logprobs)
        self._echo = echo
        self._first_index = first_index
        self._offsets: dict[int, int] = {}

    def opening(self, choices: int) -> bytes:
        if not self._echo:
            return b""
        return b"".join(
            self._event({"index": index, "text": self._echo, "logprobs": None, "finish_reason": None})
            for index in range(choices)
        )

    def chunk(self, delta: Delta) -> bytes:
        if not (delta.text or delta.finish or delta.logprobs):
            return b""
        choice = {
            "index": self._first_index + delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta.index, delta.logprobs),
            "finish_reason": finish_name(delta.finish),
        }
        return self._event(choice)

    def _choice(self, index: int, gathered: Gathered) -> dict[str, Any]:
        return {
            "index": self._first_index + index,
            "text": self._echo + "".join(gathered.text),
            "logprobs": self._logprobs(index, gathered.logprobs),
            "finish_reason": finish_name(gathered.finish),
            "stop_reason": gathered.stopped_by,
        }

    def _logprobs(self, index: int, items: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if not self._with_logprobs or items is None:
            return None
        offset = self._offsets.get(index, len(self._echo))
        texts, offsets = [self._token_text(item.token) for item in items], []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        return {
            "tokens": texts,
            "token_logprobs": [_finite(item.logprob) for item in items],
            "top_logprobs": [{self._token_text(t): _finite(v) for t, v in item.top} for item in items],
            "text_offset": offsets,
        }


def _stopped_by(stop: str | int | None) -> dict[str, Any]:
    """The client's own string that ended a choice, under vLLM's name for it."""
    return {"stop_reason": stop} if isinstance(stop, str) else {}


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what cannot happen."""
    return max(logprob, -9999.0)
