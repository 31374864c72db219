"""Engine deltas as OpenAI's JSON: whole answers and stream chunks of both endpoints."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.engine.api import Delta
from weighbridge.engine.request import Embedding, FinishReason, TokenLogprob
from weighbridge.server.engine.token_logs import ChatLogs, TextLogs, TokenNames, prompt_logs
from weighbridge.server.engine.tool_calls import WrittenToolCall, as_delta, parse
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.pieces import PieceStream
from weighbridge.wire.usage import usage_fields

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Gathered:
    """One choice of a whole answer."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None
    stopped_by: str | int | None = None
    embedding: Embedding | None = None
    chances: list[float] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None

    @property
    def size(self) -> int:
        """About how many characters and numbers it is written with."""
        size = sum(map(len, self.text)) + logs_size(self.logprobs) + logs_size(self.prompt_logprobs or ())
        return size if self.embedding is None else size + 8 * len(self.embedding.vector)


def logs_size(items: Sequence[TokenLogprob]) -> int:
    """About how many characters log-probabilities are written with."""
    return sum([8 * (1 + len(item.top)) for item in items])


@dataclass(frozen=True, slots=True)
class Telling:
    """What log-probabilities an answer has. `output`: of its tokens; `prompt`: of the prompt's, as vLLM writes them."""

    tokens: TokenNames
    prompt_ids: Sequence[int] = ()
    output: bool = False
    prompt: bool = False


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

    def __init__(self, model: str, telling: Telling | None = None) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.model = model
        self.created = int(time.time())
        self._telling = telling
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

    def whole(self, choices: Sequence[Any], usage: Usage) -> bytes:
        """An answer in one piece; `choices` as `choices_of` makes them, of one prompt or of several."""
        answer = {
            "id": self.id,
            "object": self.whole_object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage_fields(usage),
        }
        return _encode(answer)

    def choices_of(self, gathered: Sequence[Gathered]) -> list[Any]:
        """The choices of this format's prompt."""
        return [self._choice(index, one) for index, one in enumerate(gathered)]

    @abstractmethod
    def _choice(self, index: int, gathered: Gathered) -> Any:
        """One of them, as `whole` takes it."""
        ...

    def _prompt_logs(self, scores: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """vLLM's field, where it was asked for and this is the piece that has it."""
        telling = self._telling
        if telling is None or not telling.prompt or scores is None:
            return {}
        return {"prompt_logprobs": prompt_logs(telling.tokens, telling.prompt_ids, scores)}

    def _event(self, choice: dict[str, Any], beside: dict[str, Any] | None = None) -> bytes:
        """`beside`: fields of the event next to its choices."""
        end = b"," + _encode(beside)[1:] if beside else b"}"
        return self._head + _encode(choice) + b"]" + end + b"\n\n"


class WholeFormat(Format):
    """What is never streamed."""

    def chunk(self, delta: Delta) -> bytes:
        return b""


class ChatFormat(Format):
    """`chat.completion` and its chunks. `reading`: how calls and thoughts are parsed out of the text."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, model: str, reading: AnswerReading, telling: Telling | None = None) -> None:
        super().__init__(model, telling)
        self._logs = ChatLogs(telling.tokens) if telling is not None and telling.output else None
        self._scores: list[TokenLogprob] | None = None  # of the prompt, in a whole answer
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
        told = self._prompt_logs(delta.prompt_logprobs)
        if not (content or delta.finish or delta.logprobs or told):
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
        return self._event(choice, told)

    def whole(self, choices: Sequence[Any], usage: Usage) -> bytes:
        answer = super().whole(choices, usage)
        told = self._prompt_logs(self._scores)
        return answer[:-1] + b"," + _encode(told)[1:] if told else answer

    def choices_of(self, gathered: Sequence[Gathered]) -> list[Any]:
        self._scores = gathered[0].prompt_logprobs
        return super().choices_of(gathered)

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
        return None if self._logs is None or items is None else self._logs.content(items)


@dataclass(frozen=True, slots=True)
class ChoiceRange:
    """Where the choices of one prompt stand among those of all: how many there are, and the number of the first."""

    choices: int = 1
    first: int = 0


class TextFormat(Format):
    """`text_completion`. `echo`: the prompt's text comes first, with its log-probabilities where any are wanted."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self, model: str, place: ChoiceRange, echo: str | None = None, telling: Telling | None = None
    ) -> None:
        super().__init__(model, telling)
        self._echo = echo
        self._place = place
        self._logs: dict[int, TextLogs] = {}
        # What comes with the prompt's log-probabilities is written when these are here, and nothing before it.
        self._waits = telling is not None and (telling.prompt or (telling.output and echo is not None))
        self._held: list[Delta] = []

    def opening(self, choices: int) -> bytes:
        return b"" if self._waits or not self._echo else self._opened(None)

    def _opened(self, scores: Sequence[TokenLogprob] | None) -> bytes:
        return b"".join(
            [
                self._event(
                    {
                        "index": self._place.first + index,
                        "text": self._echo or "",
                        "logprobs": self._of_prompt(index, scores),
                        "finish_reason": None,
                        **self._prompt_logs(scores),
                    }
                )
                for index in range(self._place.choices)
            ]
        )

    def chunk(self, delta: Delta) -> bytes:
        if not self._waits:
            return self._chunk(delta)
        self._held.append(delta)
        if delta.prompt_logprobs is None:
            return b""
        self._waits = False
        return self._opened(delta.prompt_logprobs) + b"".join([self._chunk(one) for one in self._held])

    def _chunk(self, delta: Delta) -> bytes:
        if not (delta.text or delta.finish or delta.logprobs):
            return b""
        choice = {
            "index": self._place.first + delta.index,
            "text": delta.text,
            "logprobs": self._of_output(delta.index, delta.logprobs),
            "finish_reason": finish_name(delta.finish),
        }
        if delta.finish is not None:
            choice["stop_reason"] = delta.stopped_by
        return self._event(choice)

    def _choice(self, index: int, gathered: Gathered) -> dict[str, Any]:
        logs = self._of_prompt(index, gathered.prompt_logprobs)
        if logs is not None and gathered.logprobs:
            rest = self._of_output(index, gathered.logprobs) or {}
            logs = {name: [*items, *rest.get(name, ())] for name, items in logs.items()}
        elif logs is None:
            logs = self._of_output(index, gathered.logprobs)
        return {
            "index": self._place.first + index,
            "text": (self._echo or "") + "".join(gathered.text),
            "logprobs": logs,
            "finish_reason": finish_name(gathered.finish),
            "stop_reason": gathered.stopped_by,
            **self._prompt_logs(gathered.prompt_logprobs),
        }

    def _of_prompt(self, index: int, scores: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        telling = self._telling
        if telling is None or not telling.output or self._echo is None or scores is None:
            return None
        return self._logs_of(index, telling).of_prompt(telling.prompt_ids, scores)

    def _of_output(self, index: int, items: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        telling = self._telling
        if telling is None or not telling.output or items is None:
            return None
        return self._logs_of(index, telling).of_output(items)

    def _logs_of(self, index: int, telling: Telling) -> TextLogs:
        if index not in self._logs:
            self._logs[index] = TextLogs(telling.tokens, self._echo or "")
        return self._logs[index]


def _stopped_by(stop: str | int | None) -> dict[str, Any]:
    """The client's own string that ended a choice, under vLLM's name for it."""
    return {"stop_reason": stop} if isinstance(stop, str) else {}
