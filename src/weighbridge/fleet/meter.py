"""Counts what a stream carries without decoding it: events are tokens, until the usage at its end says better."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.wire.usage import read_usage

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]+)"')
#: Only a line of its own ends a stream; inside JSON a line break is written as an escape.
_DONE = (b"data: [DONE]", b"data:[DONE]")
_DONE_WITHIN = tuple(b"\n" + line for line in _DONE)
_ERROR = re.compile(rb'(?:^|\n)data: ?\{\s*"error"')
#: How servers say what of a prompt was in their cache. Inside a JSON text the quotes have backslashes, so that none of
#: these is ever a part of an answer's text.
_CACHED = re.compile(
    rb'("(?:cached_tokens|tokens_cached|prompt_cache_(?:hit|miss)_tokens|cache_(?:read|creation)_input_tokens'
    rb'|cache_n|prompt_n)"\s*:\s*)[0-9][0-9.eE+-]*'
)


class _Choice(msgspec.Struct):
    finish_reason: Any = None


class _Body(msgspec.Struct):
    usage: Any = None
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Body).decode


class Meter:
    """Reads along. `usage`, `finish` and `done` are set as they come by.

    `hide_usage`: the client did not ask for the event that carries nothing but usage, so it is taken out.
    `hide_cached`: what the server's cache held of the prompt may be another tenant's, so clients read 0.
    """

    __slots__ = ("_hide_usage", "done", "failed", "finish", "hide_cached", "produced", "usage")

    def __init__(self, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self.hide_cached = False
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
        if b"[DONE]" in chunk and _ends(chunk):
            self.done = True
            events -= 1
        elif b'"error"' in chunk and _ERROR.search(chunk):
            self.failed = True
        self.produced += events
        return events

    def strip(self, chunk: bytes) -> bytes:
        """Take note of usage, and take out of it, or its whole event, what the client is not to see."""
        if b'"usage"' not in chunk or not _USAGE.search(chunk):
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
        if not self.hide_cached or not (b"cache" in data or b'"prompt_n' in data):
            return data
        return _CACHED.sub(rb"\g<1>0", data)

    def _note(self, event: bytes) -> bool:
        """Read the usage of an event; True when the event has nothing else."""
        if not _USAGE.search(event):
            return False
        try:
            body = _decode(event[event.index(b"{") :])
        except (msgspec.DecodeError, ValueError):
            return False
        self.usage = read_usage(body.usage, self.produced) or self.usage
        return not body.choices

    def whole(self, body: bytes) -> None:
        """Read an answer that came in one piece."""
        try:
            answer = _decode(body)
        except (msgspec.DecodeError, ValueError):
            return
        self.usage = read_usage(answer.usage, 0)
        if self.usage is not None:
            self.produced = self.usage.output_tokens
        finish = next((choice.finish_reason for choice in answer.choices or ()), None)
        self.finish = finish if isinstance(finish, str) else "stop" if answer.choices is None else None
        self.done = True


def _ends(chunk: bytes) -> bool:
    """Whether one of a chunk's lines is the end of the stream. Asked of each last chunk, so without a pattern, which
    would try every byte."""
    return chunk.startswith(_DONE) or any(line in chunk for line in _DONE_WITHIN)
