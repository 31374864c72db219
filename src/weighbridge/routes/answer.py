"""What a client sees of a leg's answer: its bytes, and nothing changed in them but what must be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from weighbridge.routes.privacy.restoring.chunks import ChunkRestorer
from weighbridge.wire.sse import DONE, event_data

_encode = msgspec.json.encode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_NULL = msgspec.Raw(b"null")
_EMPTY = (b"[]", b"null")


def sound(data: bytes) -> bytes | None:
    """JSON that some servers write although it is none (NaN, Infinity) as JSON, these as null; None for all else."""
    try:
        return _encode(json.loads(data))
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None


class BrokenOff(Exception):
    """A chunk that is an error, or none at all; its bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__("an event that cannot be passed on")
        self.data = data


class Shown:
    """Turns a leg's events into the client's: under the route's name, without log-probabilities that only the judge
    asked for and usage that nobody did, with redacted values put back."""

    def __init__(
        self,
        model: str,
        *,
        keep_logprobs: bool,
        usage: Callable[[], Mapping[str, Any]] | None,
        restore: ChunkRestorer | None,
    ) -> None:
        """`usage` gives what the usage chunk says beside usage; None: the client did not ask for that chunk."""
        self._model = msgspec.Raw(_encode(model))
        self._keep_logprobs = keep_logprobs
        self._usage = usage
        self._restore = restore

    def events(self, raw: bytes) -> bytes:
        """The same events as the client should see them, without the one that says that all is done. Raises
        BrokenOff for an error among them."""
        return b"".join([self._event(data) for data in event_data(raw) if data != b"[DONE]"])

    def _event(self, data: bytes) -> bytes:
        try:
            fields = _fields(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            whole = sound(data)
            if whole is None or not whole.startswith(b"{"):
                raise BrokenOff(data) from None
            fields = _fields(whole)
        if bytes(fields.get("error", _NULL)) not in (b"null", b"false", b'""', b"{}"):
            raise BrokenOff(data)
        fields["model"] = self._model
        choices = bytes(fields.get("choices", _NULL))
        if choices in _EMPTY:
            if bytes(fields.get("usage", _NULL)) != b"null":
                if self._usage is None:
                    return b""
                fields["weighbridge"] = msgspec.Raw(_encode(self._usage()))
        elif self._restore is not None:
            bare = _encode(self._bare(fields, choices))
            try:
                return _event(self._restore.chunk(msgspec.json.decode(bare)))
            except (AttributeError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
                raise BrokenOff(data) from error
        elif not self._keep_logprobs:
            fields = self._bare(fields, choices)
        return _event(fields)

    def _bare(self, fields: dict[str, msgspec.Raw], choices: bytes) -> dict[str, msgspec.Raw]:
        if self._keep_logprobs or b'"logprobs"' not in choices:
            return fields
        try:
            bare = [{**choice, "logprobs": _NULL} for choice in _choices(choices)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BrokenOff(choices) from None
        return {**fields, "choices": msgspec.Raw(_encode(bare))}

    def rest(self) -> bytes:
        """What was held back of a redacted answer that ended without saying so, and the end itself."""
        held = self._restore.finish() if self._restore is not None else {}
        choices = [{"index": index, "delta": delta, "finish_reason": None} for index, delta in held.items()]
        chunks = [
            {"object": "chat.completion.chunk", "model": self._model, "choices": [choice]}
            for choice in choices
        ]
        return b"".join([*map(_event, chunks), DONE])


def _event(chunk: Any) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


class _Part(msgspec.Struct):
    """A choice of a chunk without its log-probabilities, which are most of its bytes."""

    index: int = 0
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: Any = None


class _PartWithLogprobs(_Part):
    logprobs: dict[str, Any] | None = None


class _Chunk(msgspec.Struct):
    id: str | None = None
    created: int | None = None
    choices: list[_Part] | None = None
    usage: Any = None  # an object, if it is to be believed


class _ChunkWithLogprobs(_Chunk):
    choices: list[_PartWithLogprobs] | None = None  # type: ignore[assignment]


_bare = msgspec.json.Decoder(_Chunk).decode
_with_logprobs = msgspec.json.Decoder(_ChunkWithLogprobs).decode


def chunks_of(events: bytes, *, keep_logprobs: bool) -> list[dict[str, Any]]:
    """The chunks of events that were read before, decoded."""
    decode = _with_logprobs if keep_logprobs else _bare
    found = [_decoded(decode, data) for data in event_data(events) if data != b"[DONE]"]
    return [msgspec.structs.asdict(chunk) | {"choices": _plain(chunk.choices)} for chunk in found]


def _decoded(decode: Callable[[bytes], _Chunk], data: bytes) -> _Chunk:
    try:
        return decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return decode(sound(data) or b"{}")


def _plain(choices: Sequence[_Part] | None) -> list[dict[str, Any]]:
    return [msgspec.structs.asdict(choice) for choice in choices or ()]


@dataclass(slots=True)
class _Choice:
    texts: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    finish: str | None = None
    stopped_by: Any = None


#: The texts of a message; content is there even when it is empty.
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")


def whole_answer(chunks: Iterable[Mapping[str, Any]], model: str, *, keep_logprobs: bool) -> dict[str, Any]:
    """Put the chunks of a stream together to one `chat.completion`."""
    answer: dict[str, Any] = {"id": "", "object": "chat.completion", "created": 0, "model": model}
    choices: dict[int, _Choice] = {}
    usage = None
    for chunk in chunks:
        answer["id"] = answer["id"] or chunk.get("id") or ""
        answer["created"] = answer["created"] or chunk.get("created") or 0
        if isinstance(told := chunk.get("usage"), dict):
            usage = told
        for part in chunk.get("choices") or ():
            choice = choices.setdefault(part.get("index", 0), _Choice())
            delta = part.get("delta") or {}
            for name in _TEXTS:
                if delta.get(name):
                    choice.texts.setdefault(name, []).append(delta[name])
            for call in delta.get("tool_calls") or ():
                _add_call(choice.calls, call)
            choice.logprobs += (part.get("logprobs") or {}).get("content") or []
            choice.finish = part.get("finish_reason") or choice.finish
            choice.stopped_by = part.get("stop_reason") or choice.stopped_by
    answer["choices"] = [_whole_choice(index, choices[index], keep_logprobs) for index in sorted(choices)]
    answer["usage"] = usage
    return answer


def _add_call(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    call = calls.setdefault(
        part.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    )
    call["id"] = call["id"] or part.get("id") or ""
    function = part.get("function") or {}
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _whole_choice(index: int, choice: _Choice, keep_logprobs: bool) -> dict[str, Any]:
    texts = {name: "".join(pieces) for name, pieces in choice.texts.items()}
    calls = [choice.calls[number] for number in sorted(choice.calls)]
    content = texts.pop("content", "")
    message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
    message |= texts
    if calls:
        message["tool_calls"] = calls
    logprobs = {"content": choice.logprobs} if keep_logprobs and choice.logprobs else None
    stopped_by = {"stop_reason": choice.stopped_by} if isinstance(choice.stopped_by, str) else {}
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": choice.finish,
        **stopped_by,
    }
