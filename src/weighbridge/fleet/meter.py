"""Counts what a stream carries without decoding it: events are tokens, until the usage at its end says better."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]+)"')
_DONE = b"data: [DONE]"
_ERROR = re.compile(rb'data: ?\{\s*"error"')


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Body).decode


@dataclass(frozen=True, slots=True)
class Usage:
    """What a replica says a request took, in tokens."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


class Meter:
    """Reads along. `usage`, `finish` and `done` are set as they come by.

    `hide_usage`: the client did not ask for the event that carries nothing but usage, so it is taken out.
    """

    __slots__ = ("_hide_usage", "done", "failed", "finish", "produced", "usage")

    def __init__(self, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self.produced = 0
        self.usage: Usage | None = None
        self.finish: str | None = None
        self.done = False
        self.failed = False  # the replica sent an error event

    @property
    def complete(self) -> bool:
        """Whether the stream came to an end of its own."""
        return self.done or self.finish is not None or self.failed

    def count(self, chunk: bytes) -> int:
        """Events of a chunk of whole events, less those that carry no token; adds them to `produced`."""
        if chunk.startswith(b":"):
            return 0
        events = chunk.count(b"\n\n") or chunk.count(b"\r\n\r\n") or 1
        if b'"finish_reason"' in chunk and (match := _FINISH.search(chunk)):
            self.finish = match[1].decode()
        if _DONE in chunk:
            self.done = True
            events -= 1
        elif b'"error"' in chunk and _ERROR.match(chunk):
            self.failed = True
        self.produced += events
        return events

    def strip(self, chunk: bytes) -> bytes:
        """Take note of usage, and take its event out where the client did not ask for it."""
        if b'"usage"' not in chunk or not _USAGE.search(chunk):
            return chunk
        gap = b"\r\n\r\n" if b"\r\n\r\n" in chunk else b"\n\n"
        kept = []
        for event in chunk.split(gap):
            alone = self._note(event)
            if not (alone and self._hide_usage):
                kept.append(event)
        return gap.join(kept)

    def _note(self, event: bytes) -> bool:
        """Read the usage of an event; True when the event has nothing else."""
        if not _USAGE.search(event):
            return False
        try:
            body = _decode(event[event.index(b"{") :])
        except (msgspec.DecodeError, ValueError):
            return False
        if body.usage is not None:
            self.usage = _usage(body.usage, self.produced)
        return not body.choices

    def whole(self, body: bytes) -> None:
        """Read an answer that came in one piece."""
        try:
            answer = _decode(body)
        except (msgspec.DecodeError, ValueError):
            return
        if answer.usage is not None:
            self.usage = _usage(answer.usage, 0)
            self.produced = self.usage.output_tokens
        finish: Any = next((one.finish_reason for one in answer.choices or ()), None)
        self.finish = finish or ("stop" if answer.choices is None else None)
        self.done = True


def _usage(usage: _Usage, counted: int) -> Usage:
    details = usage.prompt_tokens_details
    cached = details.cached_tokens if details is not None else None
    prompt = max(usage.prompt_tokens, 0)
    output = counted if usage.completion_tokens is None else max(usage.completion_tokens, 0)
    return Usage(prompt, output, min(max(cached or 0, 0), prompt))
