"""What OpenAI's endpoints have in common: the types of their requests, their events and their answers."""

from __future__ import annotations

import json
import time
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from weighbridge.wire.ask import LONGEST_SALT, Ask, Extension, Fields
from weighbridge.wire.body import MAX_FIELDS
from weighbridge.wire.errors import ApiError, error_event
from weighbridge.wire.events import (
    ErrorPart,
    Event,
    FinishPart,
    Parse,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    UsagePart,
)
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocol import Encoder
from weighbridge.wire.sse import DONE, event_data
from weighbridge.wire.usage import read_usage, usage_fields

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]

_encode = msgspec.json.encode
_decode_fields = msgspec.json.Decoder(Fields).decode


class StreamOptions(Struct):
    include_usage: bool | None = None


class JsonSchema(Struct):
    name: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None  # beside json_object, as llama-server and Together have it


Choices = Annotated[list[str], Meta(min_length=1, max_length=1024)]


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """Constraints beyond OpenAI's, named as vLLM names them."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    disable_fallback: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None  # what a schema does not open is closed anyway


class Peek(Struct, kw_only=True):
    """The fields that every door reads. All others pass unseen to whoever answers."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Positive | None = None
    max_tokens: Positive | None = None
    prompt_logprobs: NonNegative | None = None
    user: str | None = None
    cache_salt: Annotated[str, Meta(max_length=LONGEST_SALT)] | None = (
        None  # named as vLLM and SGLang name it
    )
    weighbridge: Extension | None = None


class Common(Peek, kw_only=True):
    """Fields of both kinds of completion. Unknown fields are ignored, as OpenAI's clients expect."""

    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[NonNegative] | None = None
    ignore_eos: bool | None = None
    min_tokens: NonNegative | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: Annotated[list[NonNegative], Meta(min_length=1)] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None
    ebnf: str | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None


class Function(Struct, omit_defaults=True):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    type: Literal["function"]
    function: Function


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    function: NamedFunction
    type: Literal["function"] | None = None  # None: there is no other


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def ask_of(path: str, peek: Peek, body: bytes) -> Ask:
    """The common request: what `peek` read, and every value of the body as it was written. Raises ApiError."""
    fields = _decode_fields(body)
    if len(fields) > MAX_FIELDS:
        raise ApiError(400, f"the request has {len(fields)} fields, but at most {MAX_FIELDS} are taken")
    return Ask(
        id="",
        path=path,
        fields=fields,
        model=peek.model or "",
        tenant="",
        stream=bool(peek.stream),
        wants_usage=peek.stream_options is not None and bool(peek.stream_options.include_usage),
        max_tokens=peek.max_tokens,
        choices=peek.n or 1,
        scores_prompt=peek.prompt_logprobs is not None,
        raw=body,
        extension=peek.weighbridge,
        user=peek.user,
        cache_salt=peek.cache_salt or "",
    )


# -- answers as parts ------------------------------------------------------------------------------------


def body_of(event: bytes) -> dict[str, Any] | None:
    """The JSON object of an event's data; None for everything else."""
    if not event.startswith(b"{"):
        return None
    try:
        value = msgspec.json.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def object_of(arguments: str) -> dict[str, Any] | None:
    """Arguments of a call as an object; None where they are none, or half of a surrogate pair is in them, which JSON
    can name and nobody can write."""
    try:
        value = json.loads(arguments or "{}")
        _encode(value)
    except (ValueError, OverflowError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def error_part(fields: Any) -> ErrorPart:
    if not isinstance(fields, dict):
        return ErrorPart(str(fields))
    code, kind = fields.get("code"), fields.get("type")
    return ErrorPart(
        str(fields.get("message") or "the request failed"),
        None if code is None else str(code),
        str(kind or "server_error"),
    )


def parts_of(bodies: Sequence[dict[str, Any] | None], choice_parts: Any) -> list[Part]:
    """The parts of decoded chunks or answers; `choice_parts` reads one choice."""
    parts: list[Part] = []
    for body in bodies:
        if body is None:
            continue
        if body.get("error"):
            parts.append(error_part(body["error"]))
        choices = body.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                parts += choice_parts(choice)
                if isinstance(reason := choice.get("finish_reason"), str):
                    by = choice.get("stop_reason")  # as vLLM and SGLang name it
                    parts.append(FinishPart(reason, choice_index(choice), by if isinstance(by, str) else ""))
        usage = read_usage(body.get("usage"))
        if usage is not None:
            parts.append(UsagePart(usage))
    return parts


def choice_index(choice: dict[str, Any]) -> int:
    index = choice.get("index")
    return index if type(index) is int and index >= 0 else 0


def message_parts(choice: dict[str, Any], name: str) -> list[Part]:
    """What the `delta` or `message` of a chat's choice says."""
    message, index = choice.get(name), choice_index(choice)
    if not isinstance(message, dict):
        return []
    parts: list[Part] = []
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning and isinstance(reasoning, str):
        parts.append(ReasoningPart(reasoning, index))
    content, logprobs = message.get("content"), _logprobs(choice)
    if isinstance(content, str) and (content or logprobs):
        parts.append(TextPart(content, index, logprobs))
    if (refusal := message.get("refusal")) and isinstance(refusal, str):
        parts.append(RefusalPart(refusal, index))
    calls = message.get("tool_calls")
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):
            function = call.get("function")
            function = function if isinstance(function, dict) else {}
            position = call.get("index", place)
            parts.append(
                ToolCallPart(
                    position if type(position) is int else place,
                    str(function.get("arguments") or ""),
                    str(call.get("id") or ""),
                    str(function.get("name") or ""),
                    index,
                )
            )
    return parts


def _logprobs(choice: dict[str, Any]) -> Sequence[dict[str, Any]]:
    told = choice.get("logprobs")
    tokens = told.get("content") if isinstance(told, dict) else None
    return [one for one in tokens if isinstance(one, dict)] if isinstance(tokens, list) else ()


def delta_of(part: Part) -> dict[str, Any]:
    """A part as OpenAI's `delta`; empty for what is no content."""
    if isinstance(part, TextPart):
        return {"content": part.text}
    if isinstance(part, ReasoningPart):
        return {"reasoning_content": part.text}
    if isinstance(part, RefusalPart):
        return {"refusal": part.text}
    if isinstance(part, ToolCallPart):
        call: dict[str, Any] = {"index": part.index, "function": {"arguments": part.arguments}}
        if part.name:
            call["function"]["name"] = part.name
        return {"tool_calls": [{**call, "id": part.id, "type": "function"} if part.id else call]}
    return {}


# -- answers as bytes ------------------------------------------------------------------------------------


class WholeEncoder(Encoder):
    """Answers that are never streamed, and go out as they came: vectors, scores, decisions."""

    def event(self, event: Event) -> bytes:
        return event.raw

    def end(self) -> bytes:
        return b""

    def failure(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, answer: WholeAnswer) -> bytes:
        return answer.body


class OpenAIEncoder(Encoder):
    """Passes bytes of its own protocol through, and writes chunks for what comes in another one."""

    def __init__(
        self, ask: Ask, prefix: str, chunk: str, whole: str, parse: Parse, parse_whole: Parse
    ) -> None:
        self._parse, self._parse_whole = parse, parse_whole
        self._chunk, self._whole = chunk, whole
        self._prefix, self._model = prefix, ask.model
        self._wants_usage = ask.wants_usage

    @cached_property
    def _head(self) -> dict[str, Any]:
        """What all chunks begin with; who passes bytes through has no need of it."""
        return {
            "id": f"{self._prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self._model,
        }

    def event(self, event: Event) -> bytes:
        if event.parse is self._parse:
            return event.raw
        parts = event.parts
        written = b"".join([self._written(part) for part in parts])
        failed = any(isinstance(part, ErrorPart) for part in parts)
        return written + DONE if event.last and not failed else written

    def end(self) -> bytes:
        return DONE

    def failure(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, answer: WholeAnswer) -> bytes:
        if answer.parse is self._parse_whole:
            return answer.body
        return _encode(self.whole_of(answer.parse(answer.body)))

    def whole_of(self, parts: Sequence[Part]) -> dict[str, Any]:
        """An answer in one piece out of its parts."""
        choices: dict[int, dict[str, Any]] = {}
        result: dict[str, Any] = {**self._head, "object": self._whole}
        for part in parts:
            if isinstance(part, UsagePart):
                result["usage"] = usage_fields(part.usage)
            elif not isinstance(part, ErrorPart):
                choice = choices.setdefault(part.choice, self.empty_choice(part.choice))
                if isinstance(part, FinishPart):
                    choice["finish_reason"] = part.reason
                else:
                    self.add_to(choice, part)
        result["choices"] = [choices[index] for index in sorted(choices)]
        return result

    @abstractmethod
    def empty_choice(self, index: int) -> dict[str, Any]:
        """A choice of an answer in one piece, before anything was said."""

    @abstractmethod
    def add_to(self, choice: dict[str, Any], part: Part) -> None:
        """Add what a part says to a choice."""

    @abstractmethod
    def chunk_choice(self, part: Part) -> dict[str, Any]:
        """A part as the one choice of a chunk."""

    def _written(self, part: Part) -> bytes:
        if isinstance(part, ErrorPart):
            return error_event(ApiError(500, part.message, kind=part.kind, code=part.code))
        chunk: dict[str, Any] = {**self._head, "object": self._chunk, "choices": []}
        if isinstance(part, UsagePart):
            if not self._wants_usage:
                return b""
            chunk["usage"] = usage_fields(part.usage)
        else:
            chunk["choices"] = [self.chunk_choice(part)]
        return b"data: " + _encode(chunk) + b"\n\n"


def datas(raw: bytes) -> list[dict[str, Any] | None]:
    """The JSON objects of whole events."""
    return [body_of(data) for data in event_data(raw)]
