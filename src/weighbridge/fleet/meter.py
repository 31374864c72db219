"""Counts what a stream carries: an event with something in it is a token of each of its choices, or as many as its
log-probabilities say. The usage at the end of a stream may say more, but not less."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.wire.sse import DONE, event_data
from weighbridge.wire.usage import read_usage

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]+)"')
#: Only as the whole data of an event it ends a stream; inside JSON it is text.
_DONE = b"[DONE]"
_ERROR = re.compile(rb'\s*\{\s*"error"')
#: What events look like as nearly every server writes them, and a stream's end behind the last.
_DATA, _GAP, _BETWEEN, _END = b"data: ", b"\n\n", b"\n\ndata: ", b"\n\ndata: [DONE]\n\n"
#: How servers say what of a prompt was in their cache. Inside a JSON text the quotes have backslashes, so that none of
#: these is ever a part of an answer's text.
_CACHED = re.compile(
    rb'(?i)("(?:[a-z_]{0,32}cache[a-z_]{0,32}tokens?(?:_?count)?|tokens_?cached|cache_?(?:read|creation|write)|cache_n|prompt_n'
    rb'|ephemeral_[a-z0-9]{1,9}_input_tokens)"\s*:\s*)(?:"[^"\\]{1,24}"|[0-9][0-9.eE+-]*)'
)


class _Delta(msgspec.Struct, gc=False):
    """What a choice may carry. All of it is generated, and billed: thinking and refusals as well as the answer."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


#: The fields of a delta that carry what was generated.
GENERATED = _Delta.__struct_fields__


class _Logprobs(msgspec.Struct, gc=False):
    content: list[msgspec.Raw] | None = None
    tokens: list[msgspec.Raw] | None = None  # of completions that are no chats


class _Choice(msgspec.Struct, gc=False):
    index: Any = 0
    finish_reason: Any = None
    delta: _Delta | None = None
    text: Any = None
    logprobs: _Logprobs | None = None

    @property
    def tokens(self) -> int:
        """Tokens that it carries, as far as that can be seen."""
        known, delta = self.logprobs, self.delta
        if known is not None and (said := known.content or known.tokens):
            return len(said)
        if self.text or (delta is not None and delta.content):
            return 1
        return int(delta is not None and any(map(delta.__getattribute__, GENERATED)))


class _Event(msgspec.Struct, gc=False):
    """None of these is tracked by the garbage collector: there is one for every chunk, and none holds itself."""

    choices: list[_Choice] | None = None
    error: Any = None


class _Groq(msgspec.Struct):
    usage: Any = None


#: Of a thought that is given under two names, one counts.
_SAID = ("content", "refusal", "tool_calls", "function_call")
_THOUGHT = ("reasoning_content", "reasoning")


class _WholeChoice(msgspec.Struct):
    finish_reason: Any = None
    message: dict[str, Any] | None = None
    text: Any = None

    usage: Any = None  # where Moonshot tells it

    @property
    def generated(self) -> str:
        """All that was generated for it: thinking, answer, refusal, calls."""
        message = self.message or {}
        said = [self.text, *(message.get(name) for name in _SAID)]
        said.append(next((thought for name in _THOUGHT if (thought := message.get(name))), None))
        return "".join([one if isinstance(one, str) else _calls(one) for one in said])


def _calls(value: Any) -> str:
    """What is generated of tool calls: their names and arguments."""
    found = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(function, dict):
            found += [part for name in ("name", "arguments") if isinstance(part := function.get(name), str)]
    return "".join(found)


class _Body(msgspec.Struct):
    usage: Any = None
    choices: list[_WholeChoice] | None = None
    x_groq: _Groq | None = None

    def told(self, counted: int) -> Usage | None:
        """Its usage, wherever it stands."""
        beside = [self.x_groq.usage] if self.x_groq is not None else []
        beside += [choice.usage for choice in self.choices or () if choice.usage]
        return next(filter(None, (read_usage(one, counted) for one in (self.usage, *beside))), None)


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_events = msgspec.json.Decoder(list[_Event]).decode
_decode = msgspec.json.Decoder(_Body).decode


class Meter:
    """Reads along. `usage`, `finish` and `done` are set as they come by; `events` have come, `produced` tokens in them.

    `echoes`: the first event of a choice is the prompt, and counts as nothing.
    `hide_usage`: the client did not ask for the event that carries nothing but usage, so it is taken out.
    `hide_cached`: what the server's cache held of the prompt may be another tenant's, so clients read 0.
    """

    __slots__ = (
        "_echoed",
        "_hide_usage",
        "done",
        "events",
        "failed",
        "finish",
        "hide_cached",
        "produced",
        "texts",
        "usage",
    )

    def __init__(self, hide_usage: bool, echoes: bool = False) -> None:
        self._echoed: set[Any] | None = set() if echoes else None  # choices that have told the prompt
        self._hide_usage = hide_usage
        self.hide_cached = False
        self.events = 0
        self.produced = 0
        self.usage: Usage | None = None
        self.texts: list[str] = []  # of an answer in one piece: what was generated, by choice
        self.finish: str | None = None
        self.done = False
        self.failed = False  # the replica sent an error event

    @property
    def complete(self) -> bool:
        """Whether the stream came to an end of its own."""
        return self.done or self.finish is not None or self.failed

    def count(self, chunk: bytes) -> int:
        """Events of a chunk of whole events, less comments and the one that says that all is done; adds what they
        carry to `produced`."""
        events = self._count_plain(chunk)
        if events is not None:
            return events
        found = event_data(chunk)
        if _DONE in found:
            self.done = True
            found = [data for data in found if data != _DONE]
            events = len(found)
        else:
            events = len(found) or int(not chunk.startswith(b":"))
        if len(found) == 1:
            self._read(found[0])
        elif found:
            self._read_all(found)
        self.events += events
        return events

    def _count_plain(self, chunk: bytes) -> int | None:
        """The same for what nearly every chunk is: events of one line each, all of them JSON; None for any other."""
        if not (chunk.startswith(_DATA) and chunk.endswith(_GAP)):
            return None
        if chunk == DONE:
            self.done = True
            return 0
        ends = chunk.endswith(_END)
        lines = chunk[len(_DATA) : -len(_END) if ends else -len(_GAP)]
        between = lines.count(_BETWEEN)
        if lines.count(b"\n") != between * len(_GAP):
            return None
        try:
            if between:
                found = _decode_events(b"[%b]" % lines.replace(_BETWEEN, b","))
                if len(found) != between + 1:  # one was two
                    return None
            else:
                found = [_decode_event(lines)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        self._take_all(found)
        self.done = self.done or ends
        self.events += between + 1
        return between + 1

    def _read_all(self, found: list[bytes]) -> None:
        """Take in what several events say: as one list, which takes a third of the time."""
        try:
            events = _decode_events(b"[%b]" % b",".join(found))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            events = []
        if len(events) == len(found):
            self._take_all(events)
        else:  # one is no JSON, or two are one together
            for data in found:
                self._read(data)

    def _read(self, data: bytes) -> None:
        """Take in what one event says."""
        try:
            event = _decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._guess(data)
            return
        self._take_all((event,))

    def _take_all(self, events: Iterable[_Event]) -> None:
        echoed, produced = self._echoed, 0
        for event in events:
            for choice in event.choices or ():
                if echoed is not None and choice.index not in echoed:
                    if isinstance(choice.index, int):
                        echoed.add(choice.index)
                elif choice.logprobs is None and choice.text:
                    produced += 1
                else:
                    produced += choice.tokens
                finish = choice.finish_reason
                if finish is not None and isinstance(finish, str):
                    self.finish = finish
            if event.error:
                self.failed = True
        self.produced += produced

    def _guess(self, data: bytes) -> None:
        """Take in an event that is no JSON, or in no known shape: it is taken to be a token."""
        self.produced += 1
        if match := _FINISH.search(data):
            self.finish = match[1].decode()
        if _ERROR.match(data):
            self.failed = True

    def strip(self, chunk: bytes) -> bytes:
        """Take note of usage, and take out of it, or its whole event, what the client is not to see."""
        if not _has_usage(chunk):
            return self.shown(chunk)
        gap = b"\r\n\r\n" if b"\r\n\r\n" in chunk else b"\n\n"
        kept = []
        for event in chunk.split(gap):
            alone = self._note(event)
            if not (alone and self._hide_usage):
                kept.append(event)
        return self.shown(gap.join(kept))

    def shown(self, data: bytes) -> bytes:
        """A part of an answer as its client may see it."""
        if not self.hide_cached or not (b"ache" in data or b'"prompt_n' in data):
            return data
        return _CACHED.sub(rb"\g<1>0", data)

    def _note(self, event: bytes) -> bool:
        """Read the usage of an event; True when the event has nothing else."""
        if not _has_usage(event):
            return False
        try:
            body = _decode(event[event.index(b"{") :])
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
        told = body.told(self.produced)
        if told is not None:
            self.usage = told.after(self.usage)
        return not body.choices

    def whole(self, body: bytes) -> None:
        """Read an answer that came in one piece."""
        try:
            answer = _decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        self.usage = answer.told(0)
        if self._echoed is None:  # a prompt told again is not generated
            self.texts = [choice.generated for choice in answer.choices or ()]
        finish = next((choice.finish_reason for choice in answer.choices or ()), None)
        self.finish = finish if isinstance(finish, str) else "stop" if answer.choices is None else None
        self.done = True


def _has_usage(data: bytes) -> bool:
    """Whether usage is told. A pattern alone would try every quotation mark."""
    at = data.find(b'"usage"')
    return at >= 0 and _USAGE.search(data, at) is not None
